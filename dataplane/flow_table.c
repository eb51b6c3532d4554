/* Prioritised, masked entries in versions: see flow_table.h. This file holds the tables of tuples,
 * versions and masks; flow_tuple.c holds one hash table and decides which bits it looks at.
 *
 * An entry goes into the finest tuple that its own mask covers and whose chain for it is short.
 * Only when all chains are long, a new tuple is made, by the fields that tell the entry from those
 * in its way. So a small table is one short list, and a large one gets the few tuples that its
 * entries ask for; an entry never moves.
 *
 * Entries are written by administrators and controllers (checked by openflow.c), keys come from
 * guests' frames. Threads: flow_table_lookup() and flow_table_mask() on workers, all else on the
 * control thread. Never blocks a reader.
 */
#include "flow_table.h"

#include <stdlib.h>
#include <sys/auxv.h>

#include "flow_tuple.h"

/* Chains up to this length are not worth a tuple. 4, 8 and 16 cost a lookup about the same (`bench`
 * of tests/c/test_flow_table_large.c): 8 keeps few tuples and short lists. */
#define CHAIN_LIMIT 8
/* Entries whose masks have nothing in common can ask for a tuple each. More than this cost a lookup
 * more than long chains. */
#define TUPLES_MAX 256

/* What a lookup walks, by falling priority as far as the writer has come to sort it. */
struct tuple_item {
	struct flow_tuple *tuple;
	int max_priority; /* none of its entries has a higher one; -1: empty */
};

struct tuple_list {
	struct flow_retired retired;
	u32 n;
	struct tuple_item items[];
};

struct flow_table {
	struct tuple_list *list; /* RCU */
	u64 secret[FLOW_SECRET_WORDS];
	struct flow_key mask; /* readers load it word by word */

	/* The writer's own. */
	u32 live;
	u32 looked_at[sizeof(struct flow_key)]; /* by byte of the key: entries whose mask has bits
						   there */
	struct flow_entry *hidden; /* removed, not yet reclaimed */
	struct flow_retired *retired;
};

/* From the 16 random bytes that the kernel gives each process: needs no system call. */
static void make_secret(u64 *secret)
{
	const void *random = (const void *)getauxval(AT_RANDOM);
	u64 state[2] = {0x243f6a8885a308d3ull, 0x13198a2e03707344ull};

	if (random)
		memcpy(state, random, sizeof(state));
	for (int i = 0; i < FLOW_SECRET_WORDS; i++) {
		/* splitmix64 */
		u64 z = state[i & 1] += 0x9e3779b97f4a7c15ull;

		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
		z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
		secret[i] = z ^ (z >> 31);
	}
}

struct flow_table *flow_table_new(void)
{
	struct flow_table *table = calloc(1, sizeof(*table));

	if (!table)
		return NULL;
	table->list = calloc(1, sizeof(*table->list));
	if (!table->list) {
		free(table);
		return NULL;
	}
	make_secret(table->secret);
	return table;
}

static void free_retired(struct flow_table *table)
{
	while (table->retired) {
		struct flow_retired *next = table->retired->next;

		free(table->retired);
		table->retired = next;
	}
}

static void retire(struct flow_table *table, struct flow_retired *memory)
{
	memory->next = table->retired;
	table->retired = memory;
}

void flow_table_free(struct flow_table *table)
{
	if (!table)
		return;
	for (u32 i = 0; i < table->list->n; i++) {
		struct flow_tuple *tuple = table->list->items[i].tuple;

		for (u32 n = 0; n < tuple->buckets->used; n++)
			free(tuple->buckets->nodes[n].entry);
		flow_tuple_free(tuple);
	}
	free_retired(table);
	free(table->list);
	free(table);
}

/* ---- readers ---- */

static void merge_used(struct flow_key *used, const struct flow_match *match)
{
	flow_key_merge(used, &match->mask);
	if (match->range_src)
		used->l4_src = 0xffff;
	if (match->range_dst)
		used->l4_dst = 0xffff;
}

/* The entry of the tuple's chain with a priority above `floor`, or NULL. The chain falls: the first
 * is the highest. */
ALWAYS_INLINE struct flow_entry *search_chain(const struct flow_node *node, u32 hash, int floor,
					      const struct flow_key *key, u64 version,
					      struct flow_key *used)
{
	for (; node; node = LOAD_ACQUIRE(&node->next)) {
		struct flow_entry *entry;

		if ((int)node->priority <= floor)
			return NULL;
		if (node->hash != hash)
			continue;
		entry = node->entry;
		if (used)
			merge_used(used, &entry->match);
		if (flow_match_accepts(&entry->match, key) && entry->added <= version &&
		    __atomic_load_n(&entry->removed, __ATOMIC_RELAXED) > version)
			return entry;
	}
	return NULL;
}

struct flow_entry *flow_table_lookup(const struct flow_table *table, const struct flow_key *key,
				     u64 version, struct flow_key *used)
{
	const struct tuple_list *list = LOAD_ACQUIRE(&table->list);
	struct flow_entry *best = NULL;
	int floor = -1;

	for (u32 i = 0; i < list->n; i++) {
		const struct tuple_item *item = &list->items[i];
		const struct flow_buckets *buckets;
		struct flow_entry *found;
		u32 hash;

		/* Whoever may see an entry has loaded its version after the priority was raised. */
		if (__atomic_load_n(&item->max_priority, __ATOMIC_RELAXED) <= floor)
			continue;
		hash = flow_tuple_hash(table->secret, key, &item->tuple->mask);
		buckets = LOAD_ACQUIRE(&item->tuple->buckets);
		if (used)
			flow_key_merge(used, &item->tuple->mask);
		found = search_chain(LOAD_ACQUIRE(&buckets->heads[hash & buckets->bucket_mask]),
				     hash, floor, key, version, used);
		if (found) {
			best = found;
			floor = found->priority;
		}
	}
	return best;
}

void flow_table_mask(const struct flow_table *table, struct flow_key *mask)
{
	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		flow_key_words_mut(mask)[i] =
			__atomic_load_n(&flow_key_words(&table->mask)[i], __ATOMIC_RELAXED);
}

/* ---- the writer ---- */

static void count_mask(struct flow_table *table, const struct flow_match *match, int add)
{
	struct flow_key mask = {0};
	flow_word *words = flow_key_words_mut(&table->mask);
	u32 *looked_at = table->looked_at;

	merge_used(&mask, match);
	for (u32 i = 0; i < sizeof(mask); i++)
		looked_at[i] += ((const u8 *)&mask)[i] ? (u32)add : 0;
	if (add < 0)
		return;
	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		__atomic_store_n(&words[i], words[i] | flow_key_words(&mask)[i], __ATOMIC_RELAXED);
}

static void shrink_mask(struct flow_table *table)
{
	struct flow_key mask = table->mask;

	for (u32 i = 0; i < sizeof(mask); i++)
		if (!table->looked_at[i])
			((u8 *)&mask)[i] = 0;
	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		__atomic_store_n(&flow_key_words_mut(&table->mask)[i], flow_key_words(&mask)[i],
				 __ATOMIC_RELAXED);
}

static int by_falling_priority(const void *a, const void *b)
{
	return ((const struct tuple_item *)b)->max_priority -
	       ((const struct tuple_item *)a)->max_priority;
}

/* Publishes the list without empty tuples, with `add` (NULL: none), sorted. Tuples that are left
 * out go to the retired. */
static int publish_list(struct flow_table *table, struct flow_tuple *add, int priority)
{
	struct tuple_list *old = table->list;
	struct tuple_list *list = malloc(sizeof(*list) + (old->n + 1) * sizeof(list->items[0]));

	if (!list)
		return -ENOMEM;
	list->n = 0;
	for (u32 i = 0; i < old->n; i++)
		if (old->items[i].tuple->count)
			list->items[list->n++] = old->items[i];
	if (add)
		list->items[list->n++] =
			(struct tuple_item){.tuple = add, .max_priority = priority};
	qsort(list->items, list->n, sizeof(list->items[0]), by_falling_priority);
	for (u32 i = 0; i < list->n; i++)
		list->items[i].tuple->index = i;
	STORE_RELEASE(&table->list, list);
	for (u32 i = 0; i < old->n; i++) {
		struct flow_tuple *tuple = old->items[i].tuple;

		if (tuple->count || tuple == add)
			continue;
		retire(table, &tuple->buckets->retired);
		retire(table, &tuple->retired);
	}
	retire(table, &old->retired);
	return 0;
}

/* The tuple for an entry, its hash there, and room for it; NULL when there is no memory. */
static struct flow_tuple *choose_tuple(struct flow_table *table, const struct flow_entry *entry,
				       u32 *hash)
{
	const struct tuple_list *list = table->list;
	struct flow_tuple *with_room = NULL, *finest = NULL, *made;
	struct flow_needle needle;
	struct flow_key mask = {0};
	u32 limit = CHAIN_LIMIT + list->n / 16;

	flow_needle_of(&needle, &entry->match);
	for (u32 i = 0; i < list->n; i++) {
		struct flow_tuple *tuple = list->items[i].tuple;
		u32 h;

		if (!flow_key_covers(&needle.mask, &tuple->mask))
			continue;
		if (finest && with_room && tuple->bits < with_room->bits)
			continue;
		h = flow_tuple_hash(table->secret, &needle.key, &tuple->mask);
		if (!finest || tuple->bits > finest->bits)
			finest = tuple;
		if (flow_tuple_chain(tuple, h, limit) < limit) {
			with_room = tuple;
			*hash = h;
		}
	}
	if (with_room)
		return flow_tuple_reserve(with_room, &table->retired) ? NULL : with_room;
	if (finest) {
		*hash = flow_tuple_hash(table->secret, &needle.key, &finest->mask);
		if (list->n >= TUPLES_MAX || !flow_tuple_refine(finest, &needle, *hash, &mask))
			return flow_tuple_reserve(finest, &table->retired) ? NULL : finest;
	}
	made = flow_tuple_new(&mask);
	if (!made)
		return NULL;
	if (publish_list(table, made, -1)) {
		flow_tuple_free(made);
		return NULL;
	}
	*hash = flow_tuple_hash(table->secret, &needle.key, &mask);
	return made;
}

int flow_table_add(struct flow_table *table, struct flow_entry *entry)
{
	struct flow_tuple *tuple;
	struct tuple_item *item;
	u32 hash = 0;

	tuple = choose_tuple(table, entry, &hash);
	if (!tuple)
		return -ENOMEM;
	count_mask(table, &entry->match, 1);
	item = &table->list->items[tuple->index];
	if (item->max_priority < entry->priority)
		__atomic_store_n(&item->max_priority, entry->priority, __ATOMIC_RELAXED);
	entry->removed = FLOW_VERSION_MAX;
	entry->hidden = false;
	flow_tuple_link(tuple, entry, hash);
	table->live++;
	return 0;
}

void flow_table_remove(struct flow_table *table, struct flow_entry *entry, u64 version)
{
	__atomic_store_n(&entry->removed, version, __ATOMIC_RELAXED);
	table->live--;
	if (entry->hidden)
		return;
	entry->hidden = true;
	entry->next = table->hidden;
	table->hidden = entry;
}

void flow_table_restore(struct flow_table *table, struct flow_entry *entry)
{
	/* It stays on the list of hidden entries, where flow_table_reclaim() finds it alive. */
	__atomic_store_n(&entry->removed, FLOW_VERSION_MAX, __ATOMIC_RELAXED);
	table->live++;
}

/* Highest priorities fall again, where an entry that had one is gone. */
static void lower_priorities(struct flow_table *table)
{
	for (u32 i = 0; i < table->list->n; i++) {
		struct tuple_item *item = &table->list->items[i];
		const struct flow_buckets *buckets = item->tuple->buckets;
		int max = -1;

		if (!item->tuple->max_left)
			continue;
		item->tuple->max_left = false;
		for (u32 chain = 0; chain <= buckets->bucket_mask; chain++)
			if (buckets->heads[chain] && (int)buckets->heads[chain]->priority > max)
				max = (int)buckets->heads[chain]->priority;
		__atomic_store_n(&item->max_priority, max, __ATOMIC_RELAXED);
	}
}

static bool list_is_good(const struct tuple_list *list)
{
	for (u32 i = 0; i < list->n; i++)
		if (!list->items[i].tuple->count ||
		    (i && list->items[i].max_priority > list->items[i - 1].max_priority))
			return false;
	return true;
}

/* Unlinks what no reader of `version` or later can see; returns the entries, chained by next. Their
 * `hash` then is the number of the node that they had. */
static struct flow_entry *unlink_hidden(struct flow_table *table, u64 version)
{
	struct flow_entry *gone = NULL, **at = &table->hidden, *entry;

	while ((entry = *at)) {
		struct flow_tuple *tuple = entry->tuple;

		if (entry->removed > version) {
			if (entry->removed == FLOW_VERSION_MAX) {
				entry->hidden = false;
				*at = entry->next;
			} else {
				at = &entry->next;
			}
			continue;
		}
		*at = entry->next;
		if (entry->priority >= table->list->items[tuple->index].max_priority)
			tuple->max_left = true;
		count_mask(table, &entry->match, -1);
		entry->hash = flow_tuple_unlink(tuple, entry);
		entry->next = gone;
		gone = entry;
	}
	return gone;
}

void flow_entry_inherit(struct flow_entry *heir, struct flow_entry *ancestor)
{
	heir->ancestor = ancestor;
	ancestor->heir = heir;
}

void flow_entry_disinherit(struct flow_entry *heir)
{
	if (heir->ancestor)
		heir->ancestor->heir = NULL;
	heir->ancestor = NULL;
}

void flow_entry_counts(const struct flow_entry *entry, u64 *packets, u64 *bytes)
{
	*packets = *bytes = 0;
	for (; entry; entry = entry->ancestor) {
		*packets += __atomic_load_n(&entry->packets, __ATOMIC_RELAXED);
		*bytes += __atomic_load_n(&entry->bytes, __ATOMIC_RELAXED);
	}
}

/* Gives an entry's counts to its heir before it goes. The heir was made later, so it is still there
 * or goes in the same turn. */
static void hand_down(struct flow_entry *entry)
{
	u64 packets, bytes;

	if (!entry->heir)
		return;
	flow_entry_counts(entry, &packets, &bytes);
	__atomic_fetch_add(&entry->heir->packets, packets, __ATOMIC_RELAXED);
	__atomic_fetch_add(&entry->heir->bytes, bytes, __ATOMIC_RELAXED);
	entry->heir->ancestor = NULL;
}

u32 flow_table_reclaim(struct flow_table *table, u64 version, void (*grace)(void *), void *context,
		       void (*free_entry)(struct flow_entry *))
{
	struct flow_entry *gone = unlink_hidden(table, version), *entry;
	u32 n = 0;

	if (gone) {
		lower_priorities(table);
		shrink_mask(table);
	}
	/* Without memory the old list does as well: empty tuples are skipped, order only saves
	 * time. */
	if (!list_is_good(table->list))
		(void)publish_list(table, NULL, 0);
	if (gone || table->retired)
		grace(context);
	for (entry = gone; entry; entry = entry->next)
		hand_down(entry);
	while ((entry = gone)) {
		gone = entry->next;
		flow_tuple_give_back(entry->tuple, entry->hash);
		free_entry(entry);
		n++;
	}
	free_retired(table);
	return n;
}

struct flow_entry *flow_table_find(const struct flow_table *table, const struct flow_match *match,
				   u16 priority)
{
	const struct tuple_list *list = table->list;
	struct flow_needle needle;

	flow_needle_of(&needle, match);
	for (u32 i = 0; i < list->n; i++) {
		const struct flow_tuple *tuple = list->items[i].tuple;
		const struct flow_node *node;
		u32 hash;

		if (list->items[i].max_priority < priority ||
		    !flow_key_covers(&needle.mask, &tuple->mask))
			continue;
		hash = flow_tuple_hash(table->secret, &needle.key, &tuple->mask);
		node = tuple->buckets->heads[hash & tuple->buckets->bucket_mask];
		for (; node && node->priority >= priority; node = node->next)
			if (node->hash == hash && node->priority == priority &&
			    node->entry->removed == FLOW_VERSION_MAX &&
			    flow_match_equal(&node->entry->match, match))
				return node->entry;
	}
	return NULL;
}

void flow_table_each(struct flow_table *table, bool (*each)(struct flow_entry *, void *),
		     void *context)
{
	for (u32 i = 0; i < table->list->n; i++) {
		const struct flow_buckets *buckets = table->list->items[i].tuple->buckets;

		for (u32 n = 0; n < buckets->used; n++) {
			struct flow_entry *entry = buckets->nodes[n].entry;

			if (entry && entry->removed == FLOW_VERSION_MAX && !each(entry, context))
				return;
		}
	}
}

u32 flow_table_count(const struct flow_table *table)
{
	return table->live;
}

u32 flow_table_tuples(const struct flow_table *table)
{
	return table->list->n;
}
