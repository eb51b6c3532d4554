/* `vswitch trace`: a frame's way through the very code of the fast path, in a dry run that learns
 * nothing and counts nothing.
 *
 * Control thread. The frame is a user's; it is parsed like a guest's.
 */
#include "control.h"
#include "parse.h"
#include "pipeline.h"
#include "worker.h"

#define TRACE_MAX 4096

/* How long the frame is where it leaves: said in the record of the output that was noted last. */
static void note_length(const struct walk *walk, const struct packet *packet)
{
	struct trace_record *last = &walk->trace->records[walk->trace->n - 1];

	if (walk->trace->n && last->kind == TRACE_OUTPUT)
		last->value = packet->length + (walk->edit.push ? 4 : 0) - (walk->edit.pop ? 4 : 0);
}

/* Follows one copy to `out`. */
static void trace_output(const struct walk *walk, struct port *out, const struct packet *packet)
{
	struct walk copy = *walk;
	u32 before = walk->trace->n;

	copy.n_entries = copy.n_connections = copy.n_commits = 0;
	pipeline_walk_output(&copy, out, LOAD_ACQUIRE(&out->policy->version));
	note_length(&copy, packet);
	if (copy.kind == VERDICT_UNICAST && !mtu_fits(packet, out->mtu)) {
		/* Instead of the output that was noted. */
		walk->trace->n--;
		trace_add(walk->trace, &(struct trace_record){.kind = TRACE_DROP,
							      .value = DROP_MTU_EXCEEDED,
							      .port = out->id});
	}
	/* A flood passes by those that are not members of its VLAN. */
	if (copy.kind == VERDICT_DROP && copy.reason == DROP_VLAN_NOT_MEMBER)
		walk->trace->n = before;
}

static void trace_flood(const struct walk *walk, const struct packet *packet)
{
	u32 before = walk->trace->n;

	for (u32 i = 0; i < walk->sw->ports->n; i++)
		if (pipeline_flood_reaches(walk, walk->sw->ports->ports[i]))
			trace_output(walk, walk->sw->ports->ports[i], packet);
	if (walk->trace->n == before)
		trace_add(walk->trace, &(struct trace_record){.kind = TRACE_DROP,
							      .value = DROP_NO_DESTINATION,
							      .port = walk->in->id});
}

static void trace_frame(struct walk *walk, struct port *in, const u8 *frame, u32 length)
{
	u8 header[PACKET_HEADROOM + PACKET_HEADER_MAX];
	struct segment segment = {frame, length};
	struct packet packet = {.header = header + PACKET_HEADROOM,
				.length = length,
				.n_segments = 1,
				.segments = &segment};
	u32 before;

	packet.header_length = packet.header_taken =
		(u16)(length < PACKET_HEADER_MAX ? length : PACKET_HEADER_MAX);
	memcpy(packet.header, frame, packet.header_length);
	parse_packet(&packet, in->id, &walk->key, true);
	if (!mtu_fits(&packet, in->mtu)) {
		trace_add(walk->trace, &(struct trace_record){.kind = TRACE_DROP,
							      .value = DROP_MTU_EXCEEDED,
							      .port = in->id});
		return;
	}
	before = walk->trace->n;
	walk->packet = &packet;
	pipeline_walk(walk, NULL);
	if (walk->kind == VERDICT_FLOOD || walk->kind == VERDICT_UNKNOWN) {
		trace_flood(walk, &packet);
	} else if (walk->kind == VERDICT_UNICAST) {
		struct port *out = dataplane_port(walk->dataplane, walk->port);

		note_length(walk, &packet);
		if (out && !mtu_fits(&packet, out->mtu) && walk->trace->n > before) {
			walk->trace->n--;
			trace_add(walk->trace, &(struct trace_record){.kind = TRACE_DROP,
								      .value = DROP_MTU_EXCEEDED,
								      .port = out->id});
		}
	}
}

int64_t control_trace(struct dataplane *dataplane, const struct order_trace *order,
		      struct answer *answer, u32 size)
{
	struct port *in = dataplane_port(dataplane, order->port_id);
	u32 available = order->order.length - (u32)sizeof(*order);
	struct trace trace = {.records = (struct trace_record *)(answer + 1),
			      .max = (size - (u32)sizeof(*answer)) /
				     (u32)sizeof(struct trace_record)};
	struct walk walk = {.dataplane = dataplane,
			    .in = in,
			    .trace = &trace,
			    .now_ns = dataplane_now(dataplane)};
	enum drop_reason reason = DROP_NONE;

	if (!in)
		return -ENOENT;
	if (order->length > available)
		return -EINVAL;
	memcpy(trace.connected, order->connected, sizeof(trace.connected));
	if (trace.max < 64)
		return -E2BIG;
	if (trace.max > TRACE_MAX)
		trace.max = TRACE_MAX;
	walk.sw = in->switch_id ? dataplane->switches[in->switch_id] : NULL;
	walk.from_version = in->policy->version;
	if (order->length < 14)
		reason = DROP_RUNT;
	else if (order->length > PACKET_LENGTH_MAX)
		reason = DROP_OVERSIZE;
	else if (!walk.sw)
		reason = DROP_PORT_DOWN;
	if (reason)
		trace_add(&trace, &(struct trace_record){
					  .kind = TRACE_DROP, .value = reason, .port = in->id});
	else
		trace_frame(&walk, in, (const u8 *)(order + 1), order->length);
	answer->count = trace.n;
	return (int64_t)(trace.n * sizeof(struct trace_record));
}
