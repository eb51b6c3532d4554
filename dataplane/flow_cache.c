/* The flow cache: see flow_cache.h. Memory is taken once; an eviction is two stores and the counts
 * of one entry. */
#include "flow_cache.h"

#include <immintrin.h>
#include <stdlib.h>
#include <sys/mman.h>

#define WAYS 8

/* Huge pages by advice: a cache of 64 Ki entries is 16 MiB, walked at random. */
static void *map_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	(void)madvise(memory, size, MADV_HUGEPAGE);
	return memory;
}

static size_t entries_bytes(const struct flow_cache *cache)
{
	return (size_t)(cache->size + 1) * sizeof(struct cache_entry);
}

static size_t rules_bytes(const struct flow_cache *cache)
{
	return (size_t)(cache->size + 1) * sizeof(struct cache_rules);
}

static size_t connections_bytes(const struct flow_cache *cache)
{
	return (size_t)(cache->size + 1) * sizeof(struct cache_connections);
}

static size_t buckets_bytes(const struct flow_cache *cache)
{
	return (size_t)(cache->bucket_mask + 1) * sizeof(struct cache_bucket);
}

int flow_cache_open(struct flow_cache *cache, u32 entries)
{
	memset(cache, 0, sizeof(*cache));
	if (entries < 64 || entries & (entries - 1))
		return -EINVAL;
	cache->size = entries;
	/* Half full at most. */
	cache->bucket_mask = entries / (WAYS / 2) - 1;
	cache->entries = map_memory(entries_bytes(cache));
	cache->rules = map_memory(rules_bytes(cache));
	cache->connections = map_memory(connections_bytes(cache));
	cache->buckets = map_memory(buckets_bytes(cache));
	if (!cache->entries || !cache->rules || !cache->connections || !cache->buckets) {
		flow_cache_close(cache);
		return -ENOMEM;
	}
	return 0;
}

void flow_cache_close(struct flow_cache *cache)
{
	if (cache->entries)
		munmap(cache->entries, entries_bytes(cache));
	if (cache->rules)
		munmap(cache->rules, rules_bytes(cache));
	if (cache->connections)
		munmap(cache->connections, connections_bytes(cache));
	if (cache->buckets)
		munmap(cache->buckets, buckets_bytes(cache));
	memset(cache, 0, sizeof(*cache));
}

static void bring_counts(struct flow_cache *cache, u32 index)
{
	struct cache_entry *entry = &cache->entries[index];

	if (!entry->packets)
		return;
#ifdef MUTANT_LOSE_COUNTER
	/* Wrong on purpose: each flush and each eviction lose a packet (tests/mutants.py). */
	entry->packets--;
#endif
	for (u32 i = 0; i < entry->n_entries; i++) {
		struct flow_entry *rule = cache->rules[index].entries[i];

		__atomic_fetch_add(&rule->packets, entry->packets, __ATOMIC_RELAXED);
		__atomic_fetch_add(&rule->bytes, entry->bytes, __ATOMIC_RELAXED);
	}
	if (entry->flags & CACHE_CONNECTION)
		for (u32 i = 0; i < cache->connections[index].n; i++)
			connection_count(cache->table, &cache->connections[index].refs[i],
					 entry->packets, entry->bytes);
	entry->packets = 0;
	entry->bytes = 0;
}

void flow_cache_flush(struct flow_cache *cache, bool forget)
{
	for (u32 i = 1; i <= cache->used; i++)
		bring_counts(cache, i);
	if (!forget)
		return;
	memset(cache->buckets, 0, buckets_bytes(cache));
	cache->used = 0;
	cache->hand = 0;
}

static u32 match_signatures(const struct cache_bucket *bucket, u32 hash)
{
	__m256i equal = _mm256_cmpeq_epi32(_mm256_load_si256((const __m256i *)bucket->signature),
					   _mm256_set1_epi32((int)hash));
	__m256i free = _mm256_cmpeq_epi32(_mm256_load_si256((const __m256i *)bucket->index),
					  _mm256_setzero_si256());

	return (u32)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_andnot_si256(free, equal)));
}

u32 flow_cache_guess(const struct flow_cache *cache, u32 hash)
{
	const struct cache_bucket *bucket = &cache->buckets[hash & cache->bucket_mask];
	u32 matches = match_signatures(bucket, hash);

	return matches ? bucket->index[__builtin_ctz(matches)] : 0;
}

struct cache_entry *flow_cache_find(const struct flow_cache *cache, const struct flow_key *key,
				    u32 hash)
{
	u32 buckets[2] = {hash & cache->bucket_mask, flow_cache_second(cache, hash)};

	for (u32 b = 0; b < 2; b++) {
		const struct cache_bucket *bucket = &cache->buckets[buckets[b]];

		for (u32 matches = match_signatures(bucket, hash); matches;
		     matches &= matches - 1) {
			struct cache_entry *entry =
				&cache->entries[bucket->index[__builtin_ctz(matches)]];

			if (likely(flow_key_equal(&entry->key, key)))
				return entry;
		}
	}
	return NULL;
}

/* Takes the entry out of its bucket. */
static void forget_entry(struct flow_cache *cache, u32 index)
{
	u32 hash = cache->entries[index].hash;
	u32 buckets[2] = {hash & cache->bucket_mask, flow_cache_second(cache, hash)};

	bring_counts(cache, index);
	for (u32 b = 0; b < 2; b++)
		for (u32 i = 0; i < WAYS; i++)
			if (cache->buckets[buckets[b]].index[i] == index)
				cache->buckets[buckets[b]].index[i] = 0;
}

/* A free way in one of the key's buckets; when there is none, the one that the hand points at is
 * emptied. */
static u32 *take_way(struct flow_cache *cache, u32 hash, u32 **signature_at)
{
	u32 buckets[2] = {hash & cache->bucket_mask, flow_cache_second(cache, hash)};
	struct cache_bucket *bucket;
	u32 way;

	for (u32 b = 0; b < 2; b++) {
		bucket = &cache->buckets[buckets[b]];
		for (way = 0; way < WAYS; way++)
			if (!bucket->index[way])
				goto found;
	}
	cache->hand++;
	bucket = &cache->buckets[buckets[cache->hand & 1]];
	way = (cache->hand >> 1) % WAYS;
found:
	*signature_at = &bucket->signature[way];
	return &bucket->index[way];
}

/* The number of an entry that may be overwritten. */
static u32 take_entry(struct flow_cache *cache, u32 *way)
{
	u32 index = *way;

	if (index) {
		bring_counts(cache, index);
		*way = 0;
		return index;
	}
	if (cache->used < cache->size)
		return ++cache->used;
	cache->hand = cache->hand % cache->size + 1;
	forget_entry(cache, cache->hand);
	return cache->hand;
}

struct cache_entry *flow_cache_insert(struct flow_cache *cache, const struct flow_key *key,
				      u32 hash, const struct walk *walk, u32 config_version)
{
	struct cache_entry *entry = flow_cache_find(cache, key, hash);
	u32 index, *way, *signature;

	if (entry) {
		index = (u32)(entry - cache->entries);
		bring_counts(cache, index);
	} else {
		way = take_way(cache, hash, &signature);
		index = take_entry(cache, way);
		entry = &cache->entries[index];
		entry->key = *key;
		entry->packets = 0;
		entry->bytes = 0;
		entry->hash = hash;
		*signature = hash;
		*way = index;
	}
	entry->config_version = config_version;
	entry->from_version = (u32)walk->from_version;
	entry->to_version = (u32)walk->to_version;
	entry->port = walk->port;
	entry->fdb_entry = walk->fdb_entry;
	entry->fdb_version = walk->fdb_version;
	entry->source_entry = walk->source_entry;
	entry->kind = walk->kind;
	entry->reason = walk->reason;
	entry->edit = walk->edit;
	entry->flags = (walk->storm ? CACHE_STORM : 0) |
		       (walk->relies_on_absence ? CACHE_GENERATION : 0);
	entry->generation = walk->relies_on_absence ? walk->generation : walk->source_version;
	entry->n_entries = (u8)walk->n_entries;
	if (walk->n_connections) {
		struct cache_connections *connections = &cache->connections[index];

		entry->flags |= CACHE_CONNECTION;
		connections->n = walk->n_connections;
		memcpy(connections->refs, walk->connections, sizeof(connections->refs));
	}
	memcpy(cache->rules[index].entries, walk->entries,
	       walk->n_entries * sizeof(walk->entries[0]));
	return entry;
}
