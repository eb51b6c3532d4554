/* A worker's own memory of answers: exact match on the masked key, two cache lines an entry.
 *
 * One worker reads and writes it; nobody else looks. Entries hold the versions of what they were
 * derived from and are good while those match. Their packet and byte counts belong to the rules
 * that matched and are brought there when the entry goes or a flush is asked for.
 */
#ifndef VSWITCH_FLOW_CACHE_H
#define VSWITCH_FLOW_CACHE_H

#include "pipeline.h"

struct cache_entry {
	struct flow_key key; /* masked */

	u64 packets, bytes; /* not yet brought to the rules */
	u32 port;
	u32 config_version;
	u32 from_version, to_version; /* low halves */
	u32 fdb_entry, fdb_version;   /* FDB_NONE: does not rely on one */
	u32 source_entry;
	u32 generation; /* of the FDB when CACHE_GENERATION, else the version of source_entry */
	struct edit edit;
	u8 kind; /* enum verdict_kind */
	u8 reason;
	u8 flags; /* CACHE_* */
	u8 n_entries;
	u32 hash;
} CACHE_ALIGNED;

#define CACHE_STORM 1
#define CACHE_GENERATION 2 /* relies on an address being absent from the FDB */
#define CACHE_CONNECTION 4 /* relies on connections: see cache_connections */

_Static_assert(sizeof(struct cache_entry) == 128, "two cache lines");

struct cache_bucket {
	u32 signature[8];
	u32 index[8]; /* 0: free */
} CACHE_ALIGNED;

struct cache_rules {
	struct flow_entry *entries[WALK_ENTRIES];
};

/* Read only for entries with CACHE_CONNECTION. */
struct cache_connections {
	struct connection_ref refs[2];
	u8 n;
};

struct flow_cache {
	struct cache_entry *entries; /* [1 … size] */
	struct cache_rules *rules;   /* beside entries */
	struct cache_connections *connections; /* beside entries */
	struct connection_table *table; /* theirs; set by who opens the cache */
	struct cache_bucket *buckets;
	u32 bucket_mask;
	u32 size;
	u32 used; /* entries ever taken */
	u32 hand; /* where to look for a victim */
	u64 hits, misses;
};

/* entries: a power of two, 64 at least. 0 or -ENOMEM. */
int flow_cache_open(struct flow_cache *cache, u32 entries);
void flow_cache_close(struct flow_cache *cache);

/* Brings all counts to the rules, and forgets which rules they were where `forget`: afterwards no
 * entry refers to any rule and all are misses. */
void flow_cache_flush(struct flow_cache *cache, bool forget);

/* The walk's answer under this key; replaces what was there under it, evicts another when there is
 * no room. Not for VERDICT_STAGE with trace. */
struct cache_entry *flow_cache_insert(struct flow_cache *cache, const struct flow_key *key,
				      u32 hash, const struct walk *walk, u32 config_version);

ALWAYS_INLINE void flow_cache_prefetch(const struct flow_cache *cache, u32 hash)
{
	__builtin_prefetch(&cache->buckets[hash & cache->bucket_mask]);
}

ALWAYS_INLINE u32 flow_cache_second(const struct flow_cache *cache, u32 hash)
{
	return ((hash & cache->bucket_mask) ^ ((hash >> 20) | 1)) & cache->bucket_mask;
}

/* The entry that the first signature match names, unchecked; 0: none. For prefetching it. */
u32 flow_cache_guess(const struct flow_cache *cache, u32 hash);

/* The entry with this key, or NULL; stale ones too. */
struct cache_entry *flow_cache_find(const struct flow_cache *cache, const struct flow_key *key,
				    u32 hash);

#endif
