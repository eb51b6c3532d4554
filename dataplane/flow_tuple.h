/* One hash table of a flow_table: entries that are told apart by the same bits of the key.
 *
 * A tuple's mask may be coarser than the masks of its entries; whoever finds a node still has to
 * ask flow_match_accepts(). Masks and keys come from administrators and controllers (checked by
 * openflow.c), keys of lookups from guests. Threads: one writer; readers without locks inside an
 * RCU read section. What the writer takes out of the readers' sight is put on a list of retired
 * memory and freed after a grace period (flow_table_reclaim). Nothing here frees an entry.
 */
#ifndef VSWITCH_FLOW_TUPLE_H
#define VSWITCH_FLOW_TUPLE_H

#include "flow_table.h"

/* Memory that readers may still be in. First member of what is retired; freed with free(). */
struct flow_retired {
	struct flow_retired *next;
};

/* One entry's place in a chain. Chains are sorted by falling priority. */
struct flow_node {
	struct flow_node *next;
	struct flow_entry *entry; /* NULL: free */
	u32 hash;
	u32 priority;
};

/* Chains and the memory of their nodes. Replaced as a whole when it is full: the old nodes stay as
 * they are for the readers that are still in them. */
struct flow_buckets {
	struct flow_retired retired;
	struct flow_node *nodes;
	struct flow_node *free; /* writer: nodes given back, linked by next */
	u32 capacity;
	u32 used; /* writer: nodes[used …] were never used */
	u32 bucket_mask;
	struct flow_node *heads[];
};

struct flow_tuple {
	struct flow_retired retired;
	struct flow_key mask;
	struct flow_buckets *buckets; /* RCU */

	/* The writer's own. */
	u32 count; /* nodes in chains, hidden entries included */
	u32 bits;  /* set in mask */
	u32 index; /* in the table's list */
	bool max_left; /* an entry of the highest priority was unlinked */
};

/* The bits and values by which an entry can be hashed: those of its mask, and what all numbers of a
 * port range have in common. */
struct flow_needle {
	struct flow_key key, mask;
};

#define FLOW_SECRET_WORDS 8

/* Keyed, so that a stranger who chooses keys can't choose chains: a sum of products (NH: Black et
 * al., "UMAC", CRYPTO '99), folded to 32 bits. */
ALWAYS_INLINE u32 flow_tuple_hash(const u64 *secret, const struct flow_key *key,
				  const struct flow_key *mask)
{
	const flow_word *k = flow_key_words(key), *m = flow_key_words(mask);
	unsigned __int128 sum = 0;

	for (int i = 0; i < FLOW_KEY_WORDS; i += 2)
		sum += (unsigned __int128)((k[i] & m[i]) + secret[i]) *
		       ((k[i + 1] & m[i + 1]) + secret[i + 1]);
	return (u32)((((u64)sum ^ (u64)(sum >> 64)) * 0x9e3779b97f4a7c15ull) >> 32);
}

void flow_needle_of(struct flow_needle *needle, const struct flow_match *match);

/* An empty tuple, or NULL when there is no memory. One entry fits without asking for more. */
struct flow_tuple *flow_tuple_new(const struct flow_key *mask);

/* Frees it and its buckets at once: no reader may be left. */
void flow_tuple_free(struct flow_tuple *tuple);

/* Makes room for one more node; the old buckets go to `retired`. 0 or -ENOMEM. */
int flow_tuple_reserve(struct flow_tuple *tuple, struct flow_retired **retired);

/* Puts the entry into its chain. There is room (flow_tuple_reserve). Sets entry->tuple and
 * entry->hash. */
void flow_tuple_link(struct flow_tuple *tuple, struct flow_entry *entry, u32 hash);

/* Takes the entry out of its chain and returns the number of its node. It is given back after a
 * grace period. */
u32 flow_tuple_unlink(struct flow_tuple *tuple, const struct flow_entry *entry);

/* Lets the node be used again. */
void flow_tuple_give_back(struct flow_tuple *tuple, u32 number);

/* Nodes in the chain of `hash`, counted up to `limit`. */
u32 flow_tuple_chain(const struct flow_tuple *tuple, u32 hash, u32 limit);

/* A finer mask than the tuple's by which the needle is told from most entries of the chain of
 * `hash`; at finest the needle's own. Returns false when there is none that is finer. */
bool flow_tuple_refine(const struct flow_tuple *tuple, const struct flow_needle *needle, u32 hash,
		       struct flow_key *finer);

#endif
