/* One hash table of a flow_table: see flow_tuple.h. Control thread; readers only follow what it
 * publishes. */
#include "flow_tuple.h"

#include <stdlib.h>

#define CAPACITY_MIN 4

void flow_needle_of(struct flow_needle *needle, const struct flow_match *match)
{
	needle->key = match->key;
	needle->mask = match->mask;
	for (int i = 0; i < 2; i++) {
		u16 min = i ? match->dst_min : match->src_min,
		    max = i ? match->dst_max : match->src_max;
		be16 *key = i ? &needle->key.l4_dst : &needle->key.l4_src;
		be16 *mask = i ? &needle->mask.l4_dst : &needle->mask.l4_src;
		u32 differ = min ^ max, common;

		if (!(i ? match->range_dst : match->range_src) || *mask)
			continue;
		common = differ ? 0xffffu << (32 - __builtin_clz(differ)) : 0xffffu;
		*mask = cpu_to_be16((u16)common);
		*key = cpu_to_be16((u16)(min & common));
	}
}

static struct flow_buckets *buckets_new(u32 capacity, bool one_chain)
{
	u32 heads = one_chain ? 1 : capacity;
	struct flow_buckets *buckets =
		calloc(1, sizeof(*buckets) + heads * sizeof(buckets->heads[0]) +
				  capacity * sizeof(struct flow_node));

	if (!buckets)
		return NULL;
	buckets->nodes = (struct flow_node *)(void *)&buckets->heads[heads];
	buckets->capacity = capacity;
	buckets->bucket_mask = heads - 1;
	return buckets;
}

struct flow_tuple *flow_tuple_new(const struct flow_key *mask)
{
	struct flow_tuple *tuple = calloc(1, sizeof(*tuple));

	if (!tuple)
		return NULL;
	tuple->mask = *mask;
	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		tuple->bits += (u32)__builtin_popcountll(flow_key_words(mask)[i]);
	tuple->buckets = buckets_new(CAPACITY_MIN, !tuple->bits);
	if (!tuple->buckets) {
		free(tuple);
		return NULL;
	}
	return tuple;
}

void flow_tuple_free(struct flow_tuple *tuple)
{
	free(tuple->buckets);
	free(tuple);
}

/* Readers follow the chain while the node goes in: the node is whole before it is linked. */
static void link_node(struct flow_buckets *buckets, struct flow_node *node)
{
	struct flow_node **at = &buckets->heads[node->hash & buckets->bucket_mask];

	while (*at && (*at)->priority > node->priority)
		at = &(*at)->next;
	node->next = *at;
	STORE_RELEASE(at, node);
}

int flow_tuple_reserve(struct flow_tuple *tuple, struct flow_retired **retired)
{
	struct flow_buckets *old = tuple->buckets, *grown;

	if (old->free || old->used < old->capacity)
		return 0;
	if (old->capacity > UINT32_MAX / 2)
		return -ENOMEM;
	grown = buckets_new(2 * old->capacity, !tuple->bits);
	if (!grown)
		return -ENOMEM;
	/* Chain by chain from its end: each node then goes to the head of its new chain. */
	for (u32 chain = 0; chain <= old->bucket_mask; chain++) {
		struct flow_node **tails[2] = {
			&grown->heads[chain],
			&grown->heads[(chain + old->bucket_mask + 1) & grown->bucket_mask]};

		for (const struct flow_node *node = old->heads[chain]; node; node = node->next) {
			struct flow_node *copy = &grown->nodes[grown->used++];
			bool upper = (node->hash & grown->bucket_mask) != chain;

			*copy = *node;
			copy->next = NULL;
			*tails[upper] = copy;
			tails[upper] = &copy->next;
		}
	}
	STORE_RELEASE(&tuple->buckets, grown);
	old->retired.next = *retired;
	*retired = &old->retired;
	return 0;
}

void flow_tuple_link(struct flow_tuple *tuple, struct flow_entry *entry, u32 hash)
{
	struct flow_buckets *buckets = tuple->buckets;
	struct flow_node *node = buckets->free;

	if (node)
		buckets->free = node->next;
	else
		node = &buckets->nodes[buckets->used++];
	entry->tuple = tuple;
	entry->hash = hash;
	node->entry = entry;
	node->hash = hash;
	node->priority = entry->priority;
	link_node(buckets, node);
	tuple->count++;
}

u32 flow_tuple_unlink(struct flow_tuple *tuple, const struct flow_entry *entry)
{
	struct flow_buckets *buckets = tuple->buckets;
	struct flow_node **at = &buckets->heads[entry->hash & buckets->bucket_mask], *node;

	while ((*at)->entry != entry)
		at = &(*at)->next;
	node = *at;
	/* A reader on the node goes on by its next, which stays. */
	STORE_RELEASE(at, node->next);
	tuple->count--;
	return (u32)(node - buckets->nodes);
}

void flow_tuple_give_back(struct flow_tuple *tuple, u32 number)
{
	struct flow_buckets *buckets = tuple->buckets;
	struct flow_node *node = &buckets->nodes[number];

	node->entry = NULL;
	node->next = buckets->free;
	buckets->free = node;
}

u32 flow_tuple_chain(const struct flow_tuple *tuple, u32 hash, u32 limit)
{
	const struct flow_buckets *buckets = tuple->buckets;
	u32 length = 0;

	for (const struct flow_node *node = buckets->heads[hash & buckets->bucket_mask];
	     node && length < limit; node = node->next)
		length++;
	return length;
}

/* ---- which bits to look at ---- */

/* The fields by which entries are told apart, the ones that usually differ most first. */
static const struct {
	u8 offset, size;
} fields[] = {
#define FIELD(name) {offsetof(struct flow_key, name), sizeof(((struct flow_key *)0)->name)}
	FIELD(ip_dst),	 FIELD(ip_src),	  FIELD(eth_dst), FIELD(eth_src),
	FIELD(l4_dst),	 FIELD(l4_src),	  FIELD(in_port), FIELD(vlan_tci),
	FIELD(ip_proto), FIELD(eth_type), FIELD(ip_tos),  FIELD(flags),
#undef FIELD
};

/* How many of a field's leading bytes, all of which the mask has, to look at. Coarse on purpose:
 * entries with prefixes of nearby lengths share a tuple. */
static u32 coarse_bytes(const u8 *mask, u32 size)
{
	u32 n = 0;

	while (n < size && mask[n] == 0xff)
		n++;
	if (size == 6)
		return n == 6 ? 6 : n / 3 * 3;
	if (n <= 4 || n == 16)
		return n;
	return n < 8 ? n & ~1u : 8;
}

/* The tag of a frame is looked at as a whole but for its priority, where the entry says it all. */
static bool add_field(struct flow_key *mask, const struct flow_key *most, u32 field)
{
	const u8 *from = (const u8 *)most + fields[field].offset;
	u8 *to = (u8 *)mask + fields[field].offset;
	u32 n;

	if (fields[field].offset == offsetof(struct flow_key, vlan_tci)) {
		be16 vid = cpu_to_be16(VLAN_PRESENT | VLAN_VID_MASK);

		if ((most->vlan_tci & vid) != vid || (mask->vlan_tci & vid) == vid)
			return false;
		mask->vlan_tci |= vid;
		return true;
	}
	n = coarse_bytes(from, fields[field].size);
	for (u32 i = 0; i < n; i++) {
		if (to[i] == 0xff)
			continue;
		memset(to, 0xff, n);
		return true;
	}
	return false;
}

/* How many entries of the chain would share a chain with the needle under `mask`. */
static u32 collisions(const struct flow_node *chain, const struct flow_needle *needle,
		      const struct flow_key *mask)
{
	struct flow_needle other;
	u32 n = 0;

	for (const struct flow_node *node = chain; node; node = node->next) {
		u64 differ = 0;

		flow_needle_of(&other, &node->entry->match);
		for (int i = 0; i < FLOW_KEY_WORDS; i++) {
			u64 m = flow_key_words(mask)[i];

			differ |= m & ~flow_key_words(&other.mask)[i];
			differ |= m &
				  (flow_key_words(&other.key)[i] ^ flow_key_words(&needle->key)[i]);
		}
		n += !differ;
	}
	return n;
}

bool flow_tuple_refine(const struct flow_tuple *tuple, const struct flow_needle *needle, u32 hash,
		       struct flow_key *finer)
{
	const struct flow_node *chain = tuple->buckets->heads[hash & tuple->buckets->bucket_mask];
	bool chosen = true;
	u32 left, enough;

	*finer = tuple->mask;
	if (flow_key_equal(&needle->mask, finer))
		return false;
	left = collisions(chain, needle, finer);
	enough = left / 2;
	while (chosen && (left > enough || flow_key_equal(finer, &tuple->mask))) {
		struct flow_key best = *finer;

		chosen = false;
		for (u32 i = 0; i < ARRAY_SIZE(fields); i++) {
			struct flow_key candidate = *finer;
			u32 n;

			if (!add_field(&candidate, &needle->mask, i))
				continue;
			n = collisions(chain, needle, &candidate);
			if (n >= left)
				continue;
			best = candidate;
			left = n;
			chosen = true;
		}
		*finer = best;
	}
	if (left > enough || flow_key_equal(finer, &tuple->mask))
		*finer = needle->mask;
	return !flow_key_equal(finer, &tuple->mask);
}
