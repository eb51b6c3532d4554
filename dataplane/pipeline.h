/* From a flow key to what is done with the frame: the from_port rules, the switch, and per output the to_port rules.
 *
 * The same code answers a worker's cache miss, each copy of a flood, and `vswitch trace`. Reads tables inside the caller's RCU read section, never touches a
 * frame, never blocks. Frames are strangers'; the tables are the administrator's.
 */
#ifndef VSWITCH_PIPELINE_H
#define VSWITCH_PIPELINE_H

#include "dataplane.h"
#include "edit.h"

#define WALK_ENTRIES (2 * POLICY_TABLES)

enum verdict_kind {
	VERDICT_DROP,	 /* reason, port: where it is counted */
	VERDICT_UNICAST, /* port, edit */
	VERDICT_FLOOD,	 /* group addresses: to every member of the VLAN; edit and key as between the ports */
	VERDICT_UNKNOWN, /* unknown unicast: to the ports that learn */
	VERDICT_STAGE,	 /* ask again with the fields of `port`'s rules too */
};

struct trace {
	struct trace_record *records;
	u32 n, max;
};

/* The state of one walk and, at its end, its answer. */
struct walk {
	struct dataplane *dataplane;
	struct port *in;
	struct virtual_switch *sw;
	struct trace *trace;	  /* NULL: none. A trace changes nothing: no learning */
	struct flow_key key;	  /* as the frame is now, between the ports: its VLAN as on a trunk */
	struct edit edit;
	u64 now_ns;

	u8 kind; /* enum verdict_kind */
	u8 reason;
	u8 storm; /* counts against the storm limit */
	u8 relies_on_absence; /* the answer holds only while no FDB entry is added or removed */
	u32 port;
	u64 from_version;	    /* of the from_port rules: set by the caller, who loaded it before the masks of its key */
	u32 generation;		    /* of the FDB, loaded before it was asked */
	u64 to_version;		    /* of the output's rules, when they were asked */
	u32 fdb_entry, fdb_version; /* the destination's; FDB_NONE: none */
	u32 source_entry, source_version; /* the source's learned entry; FDB_NONE: none */
	u32 n_entries;
	struct flow_entry *entries[WALK_ENTRIES]; /* the rules that matched, for their counters */
};

/* Walks the from_port rules and NORMAL for walk->key (dataplane, in, sw, trace, key, now_ns, from_version set; the rest zero). `kept`: the fields that the caller's cached key keeps, NULL: all. */
void pipeline_walk(struct walk *walk, const struct flow_key *kept);

/* Walks `out`'s to_port rules from a walk that ended in VERDICT_FLOOD or _UNKNOWN; `copy` starts as that walk with n_entries = 0, and ends as VERDICT_UNICAST or VERDICT_DROP.
 * `version`: of `out`'s policy. */
void pipeline_walk_output(struct walk *copy, struct port *out, u64 version);

/* True when `port` is one that the flood of `walk` reaches before its rules are asked. */
bool pipeline_flood_reaches(const struct walk *walk, const struct port *port);

void trace_add(struct trace *trace, const struct trace_record *record);

#endif
