/* Connections: what a port's stateful rules have let in or out, so that the answers pass too.
 *
 * One table for the whole data plane; a connection belongs to a zone, which is the port whose rule
 * accepted its first frame. Frames are strangers': connection_frame.c reads their header copies.
 *
 * Threads. Workers look up and touch (lock-free, inside their RCU read section) and make (one CAS on
 * the bucket). The control thread alone unlinks and frees, after a grace period. A record has one
 * line per direction, written by the worker that carries it. Nothing here allocates after the start
 * or blocks.
 */
#ifndef VSWITCH_CONNECTION_H
#define VSWITCH_CONNECTION_H

#include "api.h"
#include "flow_key.h"
#include "packet.h"

#define CONNECTIONS 262144 /* of the whole data plane, when the configuration names no number */
#define CONNECTION_LIMIT 10000 /* of one port, when nobody says otherwise */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Both ends, the smaller one first, so that both directions have the same value. */
struct connection_tuple {
	u8 address[2][16];
	be16 port[2]; /* ICMP: the identifier, in both */
	u32 zone;
	u16 vid; /* as between the ports */
	u8 proto;
	u8 family; /* 4 or 6 */
	u32 fragment; /* of fragments without ports: IP identification; else 0 */
};

enum connection_frame_kind {
	FRAME_UNTRACKED, /* not IP, to a group, or not to be read: belongs to none and makes none */
	FRAME_PLAIN, /* `tuple` is its own */
	FRAME_ERROR, /* an ICMP error: `tuple` is that of the packet that it quotes */
	FRAME_LATER, /* a fragment without ports: known by `fragment` */
};

/* What a frame says about connections. */
struct connection_frame {
	struct connection_tuple tuple; /* FRAME_LATER: without ports */
	u32 fragment; /* IP identification, where is_fragment */
	u8 kind; /* enum connection_frame_kind */
	u8 side; /* the end of the tuple that the tuple's frame came from */
	u8 tcp; /* flags */
	bool is_fragment;
	bool opening; /* may be the first of a connection */
	bool cacheable; /* what is known of it depends on its flow key only */
};

struct connection_line {
	u64 seen_ns; /* in steps of SEEN_STEP_NS; 0: never */
	u64 packets, bytes; /* what cached answers have not kept for themselves */
	u8 tcp; /* all flags seen */
} CACHE_ALIGNED;

struct connection {
	struct flow_key key; /* of its first frame, as the zone's rules saw it */

	struct connection_tuple tuple;
	u32 version; /* odd: alive */
	u32 next; /* in its bucket; when free: in the list of the free */
	u16 timeout_s;
	u8 origin; /* the end of the tuple that began */
	u8 pipeline, table; /* whose rule accepted it, and where the rules begin */
	u8 linked;

	struct connection_line lines[2]; /* by the end of the tuple that sends */
} CACHE_ALIGNED;

_Static_assert(sizeof(struct connection) == 256, "four cache lines");

/* What an answer relied on: that a connection lives, or that there was none. */
struct connection_ref {
	u32 index; /* the connection's, or its bucket's */
	u32 version;
	u8 present;
	u8 side;
};

struct connection_fragments;

struct connection_table {
	u64 *buckets; /* insertions << 32 | first record */
	struct connection *records; /* [1 … size] */
	struct connection_fragments *fragments;
	u64 seed[2];
	u64 free; /* changes << 32 | first free record */
	u32 bucket_mask;
	u32 size;
	u32 used; /* records ever taken */
	u32 linked; /* in buckets */
	u32 zones[PORTS_MAX]; /* living connections */
};

/* 0 or -ENOMEM. */
int connection_table_open(struct connection_table *table, u32 size);
void connection_table_close(struct connection_table *table);

/* connection_frame.c: reads the frame with this key, which is as between the ports. */
void connection_frame_read(struct connection_frame *frame, const struct flow_key *key,
			   const struct packet *packet, u32 zone);

/* The connection that the frame belongs to. Fills `ref` either way; false: none. A SYN belongs to no
 * connection that is closing: it may begin a new one. */
bool connection_find(struct connection_table *table, const struct connection_frame *frame,
		     u64 now_ns, struct connection_ref *ref);

/* The frame is one of the connection's: it lives on, and its TCP flags are seen. `tcp`: 0 when it has none. */
void connection_touch(struct connection_table *table, const struct connection_ref *ref, u8 tcp,
		      u64 now_ns);

/* Remembers the first fragment of a packet for the later ones. */
void connection_note_fragment(struct connection_table *table, const struct connection_frame *frame,
			      const struct connection_ref *ref, u64 now_ns);

ALWAYS_INLINE bool connection_ref_holds(const struct connection_table *table,
					const struct connection_ref *ref)
{
	if (ref->present)
		return READ_ONCE(table->records[ref->index].version) == ref->version;
	return LOAD_ACQUIRE(&table->buckets[ref->index]) >> 32 == ref->version;
}

/* Adds to the counts of a direction. */
void connection_count(struct connection_table *table, const struct connection_ref *ref, u64 packets,
		      u64 bytes);

/* A connection that is to be made. */
struct connection_new {
	const struct connection_frame *frame;
	const struct flow_key *key;
	u64 now_ns;
	u32 limit; /* of its zone */
	u16 timeout_s;
	u8 pipeline, table;
};

/* Makes it, or finds the one there is; false: there is no room. `ref` refers to it. */
bool connection_make(struct connection_table *table, const struct connection_new *what,
		     struct connection_ref *ref);
bool connection_has_room(const struct connection_table *table, const struct connection_frame *frame,
			 u32 limit);

/* What follows is the control thread's. */

enum connection_state connection_state(const struct connection *connection);
u64 connection_seen_ns(const struct connection *connection);
u64 connection_timeout_ns(const struct connection *connection);
bool connection_is_idle(const struct connection *connection, u64 now_ns);

/* The living connection `index`, or NULL. */
struct connection *connection_at(struct connection_table *table, u32 index);
void connection_end(struct connection_table *table, struct connection *connection);

/* Ends what has been idle for too long and frees what has ended; calls `grace` between. */
void connection_sweep(struct connection_table *table, u64 now_ns, void (*grace)(void *),
		      void *context);

/* Ends all connections of the zone; 0: of all. Returns how many. */
u32 connection_flush(struct connection_table *table, u32 zone);

#endif
