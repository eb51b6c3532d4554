/* Statistics of flow entries and tables (OpenFlow 1.3.5, 7.3.5): see openflow_wire.h. Reads a
 * controller's requests. Control thread only. */
#include "openflow_wire.h"

/* ---- replies in parts ---- */

/* A multipart reply that goes on in a new message where one would grow beyond 64 KiB. */
struct parts {
	struct openflow_reply *reply;
	struct ofp_multipart head;
	u32 start; /* of the message that is being written */
};

static void begin_part(struct parts *parts)
{
	u8 *at;

	parts->start = parts->reply->length;
	at = openflow_reply_add(parts->reply, sizeof(parts->head));
	if (at)
		memcpy(at, &parts->head, sizeof(parts->head));
}

static void end_part(struct parts *parts, bool more)
{
	struct ofp_multipart head = parts->head;

	if (parts->reply->overflow)
		return;
	head.header.length = cpu_to_be16((u16)(parts->reply->length - parts->start));
	head.flags = cpu_to_be16(more ? OFPMPF_REPLY_MORE : 0);
	memcpy(parts->reply->data + parts->start, &head, sizeof(head));
}

static void begin_parts(struct parts *parts, struct openflow_reply *reply,
			const struct ofp_multipart *request)
{
	parts->reply = reply;
	parts->head = *request;
	parts->head.header.type = OFPT_MULTIPART_REPLY;
	begin_part(parts);
}

static void add_to_part(struct parts *parts, const void *data, u32 length)
{
	u8 *at;

	if (parts->reply->length - parts->start + length > OFP_MESSAGE_MAX) {
		end_part(parts, true);
		begin_part(parts);
	}
	at = openflow_reply_add(parts->reply, length);
	if (at)
		memcpy(at, data, length);
}

/* ---- entries ---- */

struct collector {
	const struct openflow_filter *filter;
	struct parts *parts; /* NULL: only the sums are wanted */
	u64 now_ns;
	u64 packets, bytes;
	u32 entries;
};

static void add_entry(struct collector *collector, const struct flow_entry *entry, u64 packets,
		      u64 bytes)
{
	u8 data[sizeof(struct ofp_flow_stats) + OFP_MATCH_MAX + OFP_INSTRUCTIONS_MAX];
	u64 age = collector->now_ns - entry->created_ns;
	struct ofp_flow_stats stats = {.table_id = entry->table,
				       .duration_sec = cpu_to_be32((u32)(age / 1000000000)),
				       .duration_nsec = cpu_to_be32((u32)(age % 1000000000)),
				       .priority = cpu_to_be16(entry->priority),
				       .cookie = cpu_to_be64(entry->cookie),
				       .packet_count = cpu_to_be64(packets),
				       .byte_count = cpu_to_be64(bytes)};
	u32 length = sizeof(stats);

	length += openflow_match_encode(&entry->match, data + length);
	length += openflow_instructions_encode(entry, data + length);
	stats.length = cpu_to_be16((u16)length);
	memcpy(data, &stats, sizeof(stats));
	add_to_part(collector->parts, data, length);
}

static bool collect(struct flow_entry *entry, void *context)
{
	struct collector *collector = context;
	u64 packets, bytes;

	if (!openflow_filter_accepts(collector->filter, entry))
		return true;
	flow_entry_counts(entry, &packets, &bytes);
	collector->packets += packets;
	collector->bytes += bytes;
	collector->entries++;
	if (!collector->parts)
		return true;
	add_entry(collector, entry, packets, bytes);
	return !collector->parts->reply->overflow;
}

static u32 read_request(const struct openflow_target *target, const u8 *body, u32 length,
			u8 *table_id, struct openflow_filter *filter)
{
	struct ofp_flow_stats_request request;
	u32 used, error;

	if (length < sizeof(request))
		return OFPBRC_BAD_LEN;
	memcpy(&request, body, sizeof(request));
	if (request.table_id != OFPTT_ALL && request.table_id >= target->n_tables)
		return OFPBRC_BAD_TABLE_ID;
	error = openflow_match_decode(&filter->match, body + sizeof(request),
				      length - (u32)sizeof(request), target->controllers, &used);
	if (error)
		return error;
	if (used != length - sizeof(request))
		return OFPBRC_BAD_LEN;
	*table_id = request.table_id;
	filter->cookie = be64_to_cpu(request.cookie);
	filter->cookie_mask = be64_to_cpu(request.cookie_mask);
	filter->out_port = be32_to_cpu(request.out_port);
	filter->out_group = be32_to_cpu(request.out_group);
	return 0;
}

static u32 entry_stats(const struct openflow_target *target, const struct ofp_multipart *head,
		       const u8 *body, u32 length, struct openflow_reply *reply)
{
	struct openflow_filter filter;
	struct collector collector = {.filter = &filter, .now_ns = clock_ns()};
	struct ofp_aggregate_stats sums = {0};
	struct parts parts;
	u8 table_id;
	u32 error = read_request(target, body, length, &table_id, &filter);

	if (error)
		return error;
	if (target->flush)
		target->flush(target->context);
	begin_parts(&parts, reply, head);
	if (be16_to_cpu(head->type) == OFPMP_FLOW)
		collector.parts = &parts;
	for (u32 i = 0; i < target->n_tables; i++)
		if (target->tables[i] && (table_id == OFPTT_ALL || table_id == i))
			flow_table_each(target->tables[i], collect, &collector);
	if (be16_to_cpu(head->type) == OFPMP_AGGREGATE) {
		sums.packet_count = cpu_to_be64(collector.packets);
		sums.byte_count = cpu_to_be64(collector.bytes);
		sums.flow_count = cpu_to_be32(collector.entries);
		add_to_part(&parts, &sums, sizeof(sums));
	}
	end_part(&parts, false);
	return 0;
}

/* Look-ups are not counted by table: all ones says so (7.3.5). */
static u32 table_stats(const struct openflow_target *target, const struct ofp_multipart *head,
		       u32 length, struct openflow_reply *reply)
{
	struct parts parts;

	if (length)
		return OFPBRC_BAD_LEN;
	begin_parts(&parts, reply, head);
	for (u32 i = 0; i < target->n_tables; i++) {
		struct ofp_table_stats stats = {
			.table_id = (u8)i, .lookup_count = UINT64_MAX, .matched_count = UINT64_MAX};

		if (target->tables[i])
			stats.active_count = cpu_to_be32(flow_table_count(target->tables[i]));
		add_to_part(&parts, &stats, sizeof(stats));
	}
	end_part(&parts, false);
	return 0;
}

u32 openflow_multipart(const struct openflow_target *target, const u8 *message, u32 length,
		       struct openflow_reply *reply)
{
	struct ofp_multipart head;

	if (length < sizeof(head))
		return OFPBRC_BAD_LEN;
	memcpy(&head, message, sizeof(head));
	/* Every request that is spoken here fits one message. */
	if (be16_to_cpu(head.flags) & OFPMPF_REQ_MORE)
		return OFPBRC_MULTIPART_BUFFER_OVERFLOW;
	message += sizeof(head);
	length -= (u32)sizeof(head);
	switch (be16_to_cpu(head.type)) {
	case OFPMP_FLOW:
	case OFPMP_AGGREGATE:
		return entry_stats(target, &head, message, length, reply);
	case OFPMP_TABLE:
		return table_stats(target, &head, length, reply);
	default:
		return OFPBRC_BAD_MULTIPART;
	}
}
