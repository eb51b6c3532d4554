/* The pipeline: see pipeline.h. */
#include "pipeline.h"

void trace_add(struct trace *trace, const struct trace_record *record)
{
	if (trace && trace->n < trace->max)
		trace->records[trace->n++] = *record;
}

static void drop(struct walk *walk, enum drop_reason reason, u32 port)
{
	walk->kind = VERDICT_DROP;
	walk->reason = (u8)reason;
	walk->port = port;
	if (walk->trace)
		trace_add(walk->trace, &(struct trace_record){
					       .kind = TRACE_DROP, .value = reason, .port = port});
}

/* One direction of a port's rules, and how far the walk is. */
struct rules {
	struct port *port;
	u32 pipeline;
	u32 table;
	u32 next;    /* FLOW_GOTO_NONE: the frame is accepted */
	u32 checked; /* the table in which connections were looked up */
};

/* Carries out an entry's actions. Returns false when one of them ended the walk. */
static bool run_actions(struct walk *walk, const struct flow_entry *entry, struct rules *rules)
{
	rules->next = entry->goto_table;
	for (u32 i = 0; i < entry->n_actions; i++) {
		const struct flow_action *action = &entry->actions[i];

		switch (action->type) {
		case ACTION_DROP:
#ifdef MUTANT_IGNORE_VLAN
			/* Wrong on purpose: a port takes the frames of every VLAN
			 * (tests/mutants.py). */
			if (action->value == DROP_VLAN_NOT_MEMBER)
				break;
#endif
			drop(walk, action->value, rules->port->id);
			return false;
		case ACTION_PUSH_VLAN:
			edit_push(&walk->edit, &walk->key, (u16)action->value);
			break;
		case ACTION_POP_VLAN:
			edit_pop(&walk->edit, &walk->key);
			break;
		case ACTION_SET_VLAN_VID:
			edit_set_tci(&walk->edit, &walk->key, VLAN_VID_MASK, (u16)action->value);
			break;
		case ACTION_SET_VLAN_PCP:
			edit_set_tci(&walk->edit, &walk->key, VLAN_PCP_MASK,
				     (u16)(action->value << VLAN_PCP_SHIFT));
			break;
		case ACTION_CONNECTION:
			rules->checked = rules->table;
			if (!pipeline_connection_known(walk, rules->port))
				break;
			rules->next = action->value;
			return true;
		case ACTION_COMMIT:
			pipeline_connection_want(walk, action, rules->port, rules->pipeline,
						 rules->checked);
			break;
		default:
			assert(!"policy tables hold no other actions");
		}
	}
	return true;
}

/* Walks one direction of a port's rules. Returns false when the frame ends there. */
static bool walk_policy(struct walk *walk, struct port *port, u32 pipeline, u64 version)
{
	struct flow_table **tables = port->policy->tables[pipeline - 1];
	struct rules rules = {.port = port, .pipeline = pipeline};

	if (!READ_ONCE(tables[0])) {
		drop(walk, DROP_NOT_CONFIGURED, port->id);
		return false;
	}
	while (rules.table < POLICY_TABLES) {
		struct flow_table *t = READ_ONCE(tables[rules.table]);
		struct flow_entry *entry = t ? flow_table_lookup(t, &walk->key, version, NULL) :
					       NULL;

		if (!entry) {
			/* An engine that has no rules for its port yet is told from one whose rules
			 * have a hole. */
			drop(walk, version ? DROP_POLICY_MISS : DROP_NOT_CONFIGURED, port->id);
			return false;
		}
		if (walk->n_entries < WALK_ENTRIES)
			walk->entries[walk->n_entries++] = entry;
		if (walk->trace)
			trace_add(walk->trace, &(struct trace_record){.kind = TRACE_ENTRY,
								      .pipeline = (u8)pipeline,
								      .table = (u8)rules.table,
								      .priority = entry->priority,
								      .cookie = entry->cookie,
								      .port = port->id,
								      .vlan_tci = be16_to_cpu(
									      walk->key.vlan_tci)});
		if (!run_actions(walk, entry, &rules))
			return false;
		if (rules.next == FLOW_GOTO_NONE)
			return true;
		rules.table = rules.next;
	}
	drop(walk, DROP_POLICY_MISS, port->id);
	return false;
}

/* The frame is accepted: what stateful rules wanted is made. Returns false when there is no room
 * for it. */
static bool make_connections(struct walk *walk)
{
	struct port *full = walk->n_commits ? pipeline_connections_make(walk) : NULL;

	if (full)
		drop(walk, DROP_CONNECTION_QUOTA, full->id);
	return !full;
}

void pipeline_walk_output(struct walk *walk, struct port *out, u64 version)
{
	walk->to_version = version;
	/* The link comes and goes without a new version: it is asked when a frame is given, here
	 * only to explain. */
	if (!(out->flags & PORT_FLAG_UP) || (walk->trace && !READ_ONCE(out->link))) {
		drop(walk, DROP_PORT_DOWN, out->id);
		return;
	}
	if (!walk_policy(walk, out, OPENFLOW_TO_PORT, version) || !make_connections(walk))
		return;
	walk->kind = VERDICT_UNICAST;
	walk->port = out->id;
	if (walk->trace)
		trace_add(walk->trace,
			  &(struct trace_record){.kind = TRACE_OUTPUT,
						 .port = out->id,
						 .vlan_tci = be16_to_cpu(walk->key.vlan_tci)});
}

bool pipeline_flood_reaches(const struct walk *walk, const struct port *port)
{
	if (port == walk->in || !READ_ONCE(port->link) || !(port->flags & PORT_FLAG_UP))
		return false;
	return walk->kind == VERDICT_FLOOD || (port->flags & PORT_FLAG_LEARN);
}

static void learn(struct walk *walk, u16 vid)
{
	struct fdb_learn what = {.vid = vid,
				 .mac = walk->key.eth_src,
				 .port = walk->in->id,
				 .limit = walk->in->fdb_limit,
				 .now_ns = walk->now_ns};
	u32 port, version;

	if (walk->trace) {
		u32 known = fdb_lookup(walk->sw->fdb, vid, walk->key.eth_src, &port, &version);

		struct trace_record record = {.kind = TRACE_LEARN,
					      .port = walk->in->id,
					      .vlan_tci = be16_to_cpu(walk->key.vlan_tci)};

		memcpy(record.eth_src, walk->key.eth_src, sizeof(record.eth_src));
		if (known == FDB_NONE || port != walk->in->id)
			trace_add(walk->trace, &record);
		return;
	}
	walk->source_entry = fdb_learn(walk->sw->fdb, &what, &walk->source_version);
	/* Not learned now: asked again with the next change of the table rather than with each
	 * frame. */
	if (walk->source_entry == FDB_NONE)
		walk->relies_on_absence = 1;
}

static void flood(struct walk *walk, u8 kind, u32 what)
{
	walk->kind = kind;
	walk->storm = 1;
	walk->relies_on_absence |= kind == VERDICT_UNKNOWN;
	if (walk->trace)
		trace_add(walk->trace, &(struct trace_record){.kind = TRACE_FLOOD, .value = what});
}

/* The switch without a controller: learn the source, find the destination. */
static void normal(struct walk *walk, const struct flow_key *kept)
{
	static const u8 broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	static const u8 reserved[5] = {0x01, 0x80, 0xc2, 0x00, 0x00};
	u16 vid = be16_to_cpu(walk->key.vlan_tci) & VLAN_VID_MASK;
	const u8 *dst = walk->key.eth_dst;
	struct policy_masks *masks;
	struct port *out;
	u64 version;
	u32 port = 0;

	if (walk->in->flags & PORT_FLAG_LEARN)
		learn(walk, vid);
	walk->generation = fdb_generation(walk->sw->fdb);
	if (!memcmp(dst, reserved, 5) && dst[5] < 0x10) {
		drop(walk, DROP_RESERVED_MAC, walk->in->id);
		return;
	}
	if (dst[0] & 1) {
		bool all = !memcmp(dst, broadcast, 6);

		flood(walk, VERDICT_FLOOD, all ? 0 : 1);
		return;
	}
	walk->fdb_entry = fdb_lookup(walk->sw->fdb, vid, dst, &port, &walk->fdb_version);
	if (walk->fdb_entry == FDB_NONE) {
		if (!make_connections(walk))
			return;
		flood(walk, VERDICT_UNKNOWN, 2);
		return;
	}
	if (walk->trace)
		trace_add(walk->trace,
			  &(struct trace_record){
				  .kind = TRACE_FDB,
				  .port = port,
				  .value =
					  fdb_entry_at(walk->sw->fdb, walk->fdb_entry)->is_static});
	out = dataplane_port(walk->dataplane, port);
	if (port == walk->in->id) {
		drop(walk, DROP_SAME_PORT, walk->in->id);
		return;
	}
	if (!out || out->switch_id != walk->sw->id) {
		drop(walk, DROP_PORT_DOWN, walk->in->id);
		return;
	}
	/* In this order: masks that are at least as wide as the version needs (struct policy). */
	version = LOAD_ACQUIRE(&out->policy->version);
	masks = LOAD_ACQUIRE(&out->policy->masks);
	if (kept && masks && !flow_key_covers(kept, &masks->to)) {
		walk->kind = VERDICT_STAGE;
		walk->port = port;
		return;
	}
	pipeline_walk_output(walk, out, version);
}

void pipeline_walk(struct walk *walk, const struct flow_key *kept)
{
	walk->fdb_entry = FDB_NONE;
	walk->source_entry = FDB_NONE;
	if (walk->trace)
		trace_add(walk->trace,
			  &(struct trace_record){.kind = TRACE_KEY,
						 .key_flags = walk->key.flags,
						 .vlan_tci = be16_to_cpu(walk->key.vlan_tci),
						 .port = walk->in->id,
						 .eth_type = be16_to_cpu(walk->key.eth_type),
						 .l4_src = be16_to_cpu(walk->key.l4_src),
						 .l4_dst = be16_to_cpu(walk->key.l4_dst),
						 .ip_proto = walk->key.ip_proto});
	if (walk->trace && walk->trace->n) {
		struct trace_record *key = &walk->trace->records[walk->trace->n - 1];

		memcpy(key->eth_dst, walk->key.eth_dst, 6);
		memcpy(key->eth_src, walk->key.eth_src, 6);
		memcpy(key->ip_src, walk->key.ip_src, 16);
		memcpy(key->ip_dst, walk->key.ip_dst, 16);
	}
	if (!(walk->in->flags & PORT_FLAG_UP)) {
		drop(walk, DROP_PORT_DOWN, walk->in->id);
		return;
	}
	if (!walk_policy(walk, walk->in, OPENFLOW_FROM_PORT, walk->from_version))
		return;
	normal(walk, kept);
}
