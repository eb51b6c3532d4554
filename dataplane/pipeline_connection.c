/* Connections in the pipeline: what a port's rules ask of them, between tables that are entries like all others.
 *
 * Worker threads during a walk, the control thread for a trace and when rules have changed. Frames are strangers': their header copies are
 * read by connection_frame.c. Never blocks, never allocates.
 */
#include "pipeline.h"
#include "worker.h"

#define TIMEOUT_NONE 0

static void note(struct walk *walk, u32 port, u32 value)
{
	if (walk->trace)
		trace_add(walk->trace, &(struct trace_record){.kind = TRACE_CONNECTION,
							      .port = port,
							      .value = value});
}

/* The answer holds while this does. An absence makes room: what was made in its place is not kept anyway. */
static void rely_on(struct walk *walk, const struct connection_ref *ref)
{
	for (u32 i = 0; i < ARRAY_SIZE(walk->connections); i++) {
		if (i == walk->n_connections) {
			walk->n_connections++;
		} else if (walk->connections[i].present || !ref->present || !walk->unkept) {
			continue;
		}
		walk->connections[i] = *ref;
		return;
	}
	walk->unkept = 1;
}

/* A trace may ask what becomes of an answer before there was a question. */
static bool is_taken_for_known(const struct walk *walk, const struct port *port,
			       const struct connection_frame *frame)
{
	return walk->trace && frame->kind != FRAME_UNTRACKED &&
	       (walk->trace->connected[0] == port->id || walk->trace->connected[1] == port->id);
}

bool pipeline_connection_known(struct walk *walk, const struct port *port)
{
	struct connection_table *table = &walk->dataplane->connections;
	struct connection_frame frame;
	struct connection_ref ref;
	bool known;

	connection_frame_read(&frame, &walk->key, walk->packet, port->id);
	known = connection_find(table, &frame, walk->now_ns, &ref) ||
		is_taken_for_known(walk, port, &frame);
	walk->unkept |= !frame.cacheable;
	/* An error is about the connection, it does not keep it alive. */
	if (known && !walk->trace && frame.kind != FRAME_ERROR) {
		connection_touch(table, &ref, frame.tcp, walk->now_ns);
		if (frame.is_fragment && frame.kind == FRAME_PLAIN)
			connection_note_fragment(table, &frame, &ref, walk->now_ns);
	}
	if ((known && frame.kind != FRAME_ERROR) || (frame.kind == FRAME_PLAIN && frame.cacheable))
		rely_on(walk, &ref);
	if (frame.kind != FRAME_UNTRACKED || known)
		note(walk, port->id, known);
	return known;
}

void pipeline_connection_want(struct walk *walk, const struct flow_action *action,
			      struct port *port, u32 pipeline, u32 table)
{
	struct commit *commit = &walk->commits[walk->n_commits];

	if (walk->n_commits == ARRAY_SIZE(walk->commits))
		return; /* one for each direction is all that rules of ours ask for */
	connection_frame_read(&commit->frame, &walk->key, walk->packet, port->id);
	if (commit->frame.kind != FRAME_PLAIN)
		return; /* accepted, but nothing is remembered of it */
	commit->key = walk->key;
	commit->port = port;
	commit->timeout_s = (u16)action->value;
	commit->pipeline = (u8)pipeline;
	commit->table = (u8)table;
	walk->n_commits++;
	walk->unkept = 1;
	note(walk, port->id, 2);
}

struct port *pipeline_connections_make(struct walk *walk)
{
	struct connection_table *table = &walk->dataplane->connections;

	for (u32 i = 0; i < walk->n_commits; i++) {
		struct commit *commit = &walk->commits[i];
		struct connection_new what = {.frame = &commit->frame,
					      .key = &commit->key,
					      .now_ns = walk->now_ns,
					      .limit = READ_ONCE(commit->port->connection_limit),
					      .timeout_s = commit->timeout_s,
					      .pipeline = commit->pipeline,
					      .table = commit->table};
		struct connection_ref ref;

		if (walk->trace) {
			if (!connection_has_room(table, &commit->frame, what.limit))
				return commit->port;
			continue;
		}
		if (!connection_make(table, &what, &ref))
			return commit->port;
		if (commit->frame.is_fragment)
			connection_note_fragment(table, &commit->frame, &ref, walk->now_ns);
		rely_on(walk, &ref);
	}
	return NULL;
}

/* The idle timeout that the rules give to a connection that begins with this frame, or TIMEOUT_NONE. */
static u32 ask(const struct port *port, const struct connection *connection)
{
	struct flow_table *const *tables = port->policy->tables[connection->pipeline - 1];
	u32 table = connection->table;

	while (table < POLICY_TABLES && tables[table]) {
		const struct flow_entry *entry = flow_table_lookup(tables[table], &connection->key,
								   port->policy->version, NULL);

		if (!entry)
			return TIMEOUT_NONE;
		for (u32 i = 0; i < entry->n_actions; i++)
			if (entry->actions[i].type == ACTION_COMMIT)
				return entry->actions[i].value;
		table = entry->goto_table;
	}
	return TIMEOUT_NONE;
}

void pipeline_connections_ask_again(struct port *port)
{
	struct connection_table *table = &port->dataplane->connections;
	u64 now = dataplane_now(port->dataplane);

	if (!READ_ONCE(table->zones[port->id]))
		return;
	for (u32 index = 1; index <= READ_ONCE(table->used); index++) {
		struct connection *connection = connection_at(table, index);
		u32 timeout_s;

		if (!connection || connection->tuple.zone != port->id)
			continue;
		timeout_s = ask(port, connection);
		if (timeout_s != TIMEOUT_NONE)
			WRITE_ONCE(connection->timeout_s, (u16)timeout_s);
		if (timeout_s == TIMEOUT_NONE || connection_is_idle(connection, now))
			connection_end(table, connection);
	}
}
