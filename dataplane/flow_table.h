/* A table of prioritised, masked entries, changed in place by one writer while workers look things
 * up.
 *
 * Every decision of the switch that an administrator or a controller can write is an entry of a
 * flow_table: guards, VLAN modes, ACLs, and later a controller's tables. The structure is a
 * tuple-merge hash table (Daly et al., "TupleMerge: Fast Software Packet Processing for Online
 * Packet Classification", IEEE/ACM ToN 2019).
 *
 * Threads: one writer (the control thread); any number of readers inside an RCU read section
 * (rcu.h). A reader sees, for the version it names, exactly the entries with added <= version <
 * removed, however far the writer has gone on.
 */
#ifndef VSWITCH_FLOW_TABLE_H
#define VSWITCH_FLOW_TABLE_H

#include "flow_key.h"

#define FLOW_VERSION_MAX UINT64_MAX
#define FLOW_ACTIONS_MAX 8
#define FLOW_GOTO_NONE 0xff

/* What an entry matches: key & mask, and the two L4 fields by inclusive ranges (host order) where
 * the mask has no bits for them. `range_src`/`range_dst` say which ranges count. key has no bits
 * outside mask. */
struct flow_match {
	struct flow_key key;
	struct flow_key mask;
	bool range_src, range_dst;
	u16 src_min, src_max;
	u16 dst_min, dst_max;
};

enum flow_action_type {
	ACTION_DROP, /* value: enum drop_reason. Ends the walk */
	ACTION_PUSH_VLAN, /* value: TPID, host order; the new tag has VID 0 and PCP 0 until they are
			     set */
	ACTION_POP_VLAN,
	ACTION_SET_VLAN_VID, /* value: 0..4095; needs a tag */
	ACTION_SET_VLAN_PCP, /* value: 0..7; needs a tag */
	ACTION_OUTPUT, /* value: port id, or OUTPUT_NORMAL */
	ACTION_CONNECTION, /* value: the table that frames of a living connection go on with,
			      FLOW_GOTO_NONE: they are accepted. Others: as if it were not there */
	ACTION_COMMIT, /* value: idle timeout in seconds. When the frame is accepted, it makes a
			  connection of the port */
};

struct flow_action {
	u8 type; /* enum flow_action_type */
	u32 value;
};

/* One rule. Immutable once added, but for the counters and `removed`. */
struct flow_entry {
	struct flow_match match;
	u64 cookie;
	u64 added, removed; /* versions; removed is FLOW_VERSION_MAX while the entry lives */
	u64 created_ns; /* CLOCK_MONOTONIC; informative */
	u64 packets, bytes; /* added to atomically, when a worker's cache entry is evicted or
			       flushed */
	u16 priority; /* higher wins; among equal priorities any one */
	u8 table; /* which of its pipeline's tables; informative */
	u8 goto_table; /* FLOW_GOTO_NONE: the walk of this pipeline ends, the frame goes on */
	u8 n_actions;
	struct flow_action actions[FLOW_ACTIONS_MAX];

	/* flow_table.c's own */
	struct flow_entry *next; /* hidden entries */
	struct flow_entry *heir, *ancestor; /* flow_entry_inherit() */
	void *tuple;
	u32 hash;
	bool hidden;
};

struct flow_table;

/* An empty table, or NULL when there is no memory. */
struct flow_table *flow_table_new(void);

/* Frees the table and its entries. No reader may be left. */
void flow_table_free(struct flow_table *table);

/* Makes `entry` (from malloc, all public fields set) visible from version `entry->added` on. The
 * table owns it from now. The caller has removed an entry of the same match and priority before, if
 * there was one. Returns 0 or -ENOMEM (then the entry stays the caller's). */
int flow_table_add(struct flow_table *table, struct flow_entry *entry);

/* Hides the entry from readers of `version` and later; it stays in place until
 * flow_table_reclaim(). */
void flow_table_remove(struct flow_table *table, struct flow_entry *entry, u64 version);

/* Takes a flow_table_remove() back whose version was never published, with no flow_table_reclaim()
 * between. */
void flow_table_restore(struct flow_table *table, struct flow_entry *entry);

/* Makes the counts of `ancestor`, which was removed from the same table in the version of `heir`,
 * count for `heir` too. Workers may go on counting on the ancestor; what they brought there before
 * its flow_table_reclaim() is kept. */
void flow_entry_inherit(struct flow_entry *heir, struct flow_entry *ancestor);
void flow_entry_disinherit(struct flow_entry *heir);

/* An entry's counts with those of its ancestors. Writer only. */
void flow_entry_counts(const struct flow_entry *entry, u64 *packets, u64 *bytes);

/* Unlinks every entry with removed <= version and gives it to `free_entry` (after the caller made
 * sure that no reader is left that uses an older version: unlinking itself happens in the first
 * pass, freeing must wait for a grace period, so the function calls `grace()` between). Returns how
 * many. */
u32 flow_table_reclaim(struct flow_table *table, u64 version, void (*grace)(void *), void *context,
		       void (*free_entry)(struct flow_entry *));

/* The highest-priority entry that matches `key` in `version`, or NULL. Where `used` is given, ORs
 * the key bits that the answer depended on into it (a superset is fine; never too few: another key
 * that agrees in these bits has the same answer). */
struct flow_entry *flow_table_lookup(const struct flow_table *table, const struct flow_key *key,
				     u64 version, struct flow_key *used);

/* The live entry with exactly this match and priority, or NULL (OpenFlow's strict match). Writer
 * only. */
struct flow_entry *flow_table_find(const struct flow_table *table, const struct flow_match *match,
				   u16 priority);

/* Calls `each` for every live entry, in no order, until it returns false. It may remove the entry
 * it is given. Writer only. */
void flow_table_each(struct flow_table *table, bool (*each)(struct flow_entry *, void *),
		     void *context);

/* Union of the masks of all entries that may be visible: what a cache must keep of a key so that
 * its answers stay right. May be read by workers, word by word: each word is wide enough for every
 * entry that the reader's version can see. Grows before an entry becomes visible; shrinks in
 * flow_table_reclaim(), a byte at a time: when no entry looks at the byte any more. */
void flow_table_mask(const struct flow_table *table, struct flow_key *mask);

/* Live entries; hash tuples. For statistics and tests. */
u32 flow_table_count(const struct flow_table *table);
u32 flow_table_tuples(const struct flow_table *table);

/* True when both say the same, bit by bit. */
ALWAYS_INLINE bool flow_match_equal(const struct flow_match *a, const struct flow_match *b)
{
	return flow_key_equal(&a->key, &b->key) && flow_key_equal(&a->mask, &b->mask) &&
	       a->range_src == b->range_src && a->range_dst == b->range_dst &&
	       (!a->range_src || (a->src_min == b->src_min && a->src_max == b->src_max)) &&
	       (!a->range_dst || (a->dst_min == b->dst_min && a->dst_max == b->dst_max));
}

/* True when `match` matches `key`: the definition, used by the leaf check and by tests as the slow
 * reference. */
ALWAYS_INLINE bool flow_match_accepts(const struct flow_match *m, const struct flow_key *key)
{
	u64 different = 0;

	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		different |= (flow_key_words(key)[i] & flow_key_words(&m->mask)[i]) ^
			     flow_key_words(&m->key)[i];
	if (different)
		return false;
	if (m->range_src &&
	    (u16)(be16_to_cpu(key->l4_src) - m->src_min) > (u16)(m->src_max - m->src_min))
		return false;
	if (m->range_dst &&
	    (u16)(be16_to_cpu(key->l4_dst) - m->dst_min) > (u16)(m->dst_max - m->dst_min))
		return false;
	return true;
}

#endif
