/* From a flow key to what is done with the frame: the from_port rules, the switch, and per output
 * the to_port rules.
 *
 * The same code answers a worker's cache miss, each copy of a flood, and `vswitch trace`. Reads
 * tables inside the caller's RCU read section, never touches a frame, never blocks. Frames are
 * strangers'; the tables are the administrator's.
 */
#ifndef VSWITCH_PIPELINE_H
#define VSWITCH_PIPELINE_H

#include "connection.h"
#include "dataplane.h"
#include "edit.h"

#define WALK_ENTRIES (2 * POLICY_TABLES)

enum verdict_kind {
	VERDICT_DROP,  /* reason, port: where it is counted */
	VERDICT_UNICAST, /* port, edit */
	VERDICT_FLOOD, /* group addresses: to every member of the VLAN; edit and key as between the
			  ports */
	VERDICT_UNKNOWN, /* unknown unicast: to the ports that learn */
	VERDICT_STAGE, /* ask again with the fields of `port`'s rules too */
};

struct trace {
	struct trace_record *records;
	u32 n, max;
	u32 connected[2]; /* ports to a connection of which the frame is taken to belong */
};

/* A rule that makes a connection matched: done when the frame is accepted. */
struct commit {
	struct connection_frame frame;
	struct flow_key key;
	struct port *port;
	u16 timeout_s;
	u8 pipeline, table;
};

/* The state of one walk and, at its end, its answer. */
struct walk {
	struct dataplane *dataplane;
	struct port *in;
	struct virtual_switch *sw;
	struct trace *trace; /* NULL: none. A trace changes nothing: no learning */
	const struct packet *packet; /* for connections: what is not in the key */
	struct flow_key key; /* as the frame is now, between the ports: its VLAN as on a trunk */
	struct edit edit;
	u64 now_ns;

	u8 kind; /* enum verdict_kind */
	u8 reason;
	u8 storm; /* counts against the storm limit */
	u8 relies_on_absence; /* the answer holds only while no FDB entry is added or removed */
	u8 unkept; /* the answer is this frame's only: it depends on more than its key, or has made
		      a connection */
	u8 n_connections;
	u8 n_commits;
	u32 port;
	u64 from_version; /* of the from_port rules: set by the caller, who loaded it before the
			     masks of its key */
	u32 generation; /* of the FDB, loaded before it was asked */
	u64 to_version; /* of the output's rules, when they were asked */
	u32 fdb_entry, fdb_version; /* the destination's; FDB_NONE: none */
	u32 source_entry, source_version; /* the source's learned entry; FDB_NONE: none */
	struct connection_ref connections[2]; /* that it relied on: of the sender's rules, of the
						 receiver's */
	u32 n_entries;
	struct flow_entry *entries[WALK_ENTRIES]; /* the rules that matched, for their counters */
	struct commit commits[2]; /* of the sender's rules, of the receiver's */
};

/* Walks the from_port rules and NORMAL for walk->key (dataplane, in, sw, trace, packet, key,
 * now_ns, from_version set; the rest zero). `kept`: the fields that the caller's cached key keeps,
 * NULL: all. */
void pipeline_walk(struct walk *walk, const struct flow_key *kept);

/* Walks `out`'s to_port rules from a walk that ended in VERDICT_FLOOD or _UNKNOWN; `copy` starts as
 * that walk with n_entries, n_connections and n_commits 0, and ends as VERDICT_UNICAST or
 * VERDICT_DROP. `version`: of `out`'s policy. */
void pipeline_walk_output(struct walk *copy, struct port *out, u64 version);

/* True when `port` is one that the flood of `walk` reaches before its rules are asked. */
bool pipeline_flood_reaches(const struct walk *walk, const struct port *port);

/* pipeline_connection.c. True when the frame belongs to a connection of the port. */
bool pipeline_connection_known(struct walk *walk, const struct port *port);

/* A rule of the port wants a connection to be made. `table`: where the port's rules began. */
void pipeline_connection_want(struct walk *walk, const struct flow_action *action,
			      struct port *port, u32 pipeline, u32 table);

/* Makes what was wanted. NULL, or the port at which the frame drops because there is no room. */
struct port *pipeline_connections_make(struct walk *walk);

/* Asks a port's changed rules again about the first frame of each of its connections, and ends
 * those that no rule would make now. Control thread, when no worker uses the old rules any more. */
void pipeline_connections_ask_again(struct port *port);

void trace_add(struct trace *trace, const struct trace_record *record);

#endif
