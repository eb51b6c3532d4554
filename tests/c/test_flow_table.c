/* The promises of dataplane/flow_table.h, against a linear scan by flow_match_accepts().
 *
 * Linked with --wrap=malloc --wrap=calloc, so that memory can run out on purpose.
 */
#include <pthread.h>
#include <stdlib.h>

#include "flow_entries.h"

#define SCAN_MAX 4096

/* ---- memory that runs out ---- */

static int allocations_left = -1; /* -1: no limit */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);

static bool out_of_memory(void)
{
	return allocations_left >= 0 && allocations_left-- <= 0;
}

void *__wrap_malloc(size_t size)
{
	return out_of_memory() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return out_of_memory() ? NULL : __real_calloc(n, size);
}

/* The reference: all entries ever added, asked one by one. */
struct scan {
	struct flow_entry *entries[SCAN_MAX];
	u32 n;
};

static int scan_priority(const struct scan *scan, const struct flow_key *key, u64 version)
{
	int best = -1;

	for (u32 i = 0; i < scan->n; i++) {
		const struct flow_entry *entry = scan->entries[i];

		if ((int)entry->priority > best && entry->added <= version &&
		    entry->removed > version && flow_match_accepts(&entry->match, key))
			best = entry->priority;
	}
	return best;
}

static struct flow_table *scan_table;
static struct scan *forgetting;

static void forget_entry(struct flow_entry *entry)
{
	for (u32 i = 0; i < forgetting->n; i++)
		if (forgetting->entries[i] == entry) {
			forgetting->entries[i] = forgetting->entries[--forgetting->n];
			break;
		}
	free_entry(entry);
}

/* ---- the promises ---- */

static void empty_table_matches_nothing(void)
{
	struct flow_table *table = flow_table_new();
	struct flow_key key = {0}, used = {0}, none = {0};

	CHECK(!flow_table_lookup(table, &key, 1, &used));
	CHECK(flow_key_equal(&used, &none));
	CHECK_EQ(flow_table_count(table), 0);
	CHECK_EQ(flow_table_tuples(table), 0);
	flow_table_free(table);
}

static void higher_priority_wins_whatever_was_added_first(void)
{
	struct flow_match any = {0};

	for (u32 order = 0; order < 2; order++) {
		struct flow_table *table = flow_table_new();
		struct flow_key key = {0};

		for (u32 i = 0; i < 100; i++)
			flow_table_add(table, entry_of(&any, (u16)(order ? 100 - i : i + 1), 1));
		CHECK_EQ(table_priority(table, &key, 1), 100);
		flow_table_free(table);
	}
}

static void entry_is_seen_from_added_until_removed(void)
{
	struct flow_table *table = flow_table_new();
	struct flow_match any = {0};
	struct flow_entry *entry = entry_of(&any, 1, 5);
	struct flow_key key = {0};

	CHECK_EQ(flow_table_add(table, entry), 0);
	CHECK(!flow_table_lookup(table, &key, 4, NULL));
	CHECK(flow_table_lookup(table, &key, 5, NULL) == entry);
	flow_table_remove(table, entry, 8);
	CHECK(flow_table_lookup(table, &key, 7, NULL) == entry);
	CHECK(!flow_table_lookup(table, &key, 8, NULL));
	CHECK_EQ(flow_table_count(table), 0);
	CHECK(!flow_table_find(table, &any, 1));
	flow_table_restore(table, entry);
	CHECK(flow_table_lookup(table, &key, 8, NULL) == entry);
	CHECK(flow_table_find(table, &any, 1) == entry);
	CHECK_EQ(flow_table_count(table), 1);
	flow_table_free(table);
}

static void reclaim_frees_after_grace_and_only_what_is_hidden(void)
{
	struct flow_table *table = flow_table_new();
	struct flow_match any = {0};
	struct flow_entry *entries[3];
	struct flow_key key = {0};

	for (u32 i = 0; i < 3; i++) {
		entries[i] = entry_of(&any, (u16)(i + 1), 1);
		flow_table_add(table, entries[i]);
	}
	flow_table_remove(table, entries[2], 2);
	flow_table_remove(table, entries[1], 9);
	flow_table_remove(table, entries[0], 9);
	flow_table_restore(table, entries[0]);
	graces = freed = 0;
	CHECK_EQ(flow_table_reclaim(table, 2, no_readers, NULL, free_entry), 1);
	CHECK_EQ(graces, 1);
	CHECK_EQ(freed, 1);
	CHECK_EQ(table_priority(table, &key, 2), 2);
	CHECK_EQ(flow_table_reclaim(table, 9, no_readers, NULL, free_entry), 1);
	CHECK_EQ(table_priority(table, &key, 9), 1);
	CHECK_EQ(flow_table_count(table), 1);
	graces = 0;
	CHECK_EQ(flow_table_reclaim(table, 9, no_readers, NULL, free_entry), 0);
	CHECK_EQ(graces, 0);
	flow_table_free(table);
}

static void mask_grows_with_entries_and_shrinks_when_they_are_reclaimed(void)
{
	struct flow_table *table = flow_table_new();
	struct flow_match match = {
		.mask = {.ip_proto = 0xff}, .range_dst = true, .dst_min = 80, .dst_max = 90};
	struct flow_match other = {.mask = {.eth_type = 0xffff}};
	struct flow_entry *entry = entry_of(&match, 1, 1);
	struct flow_key mask, expected = {.ip_proto = 0xff, .l4_dst = 0xffff, .eth_type = 0xffff};

	flow_table_add(table, entry);
	flow_table_add(table, entry_of(&other, 1, 1));
	flow_table_mask(table, &mask);
	CHECK(flow_key_equal(&mask, &expected));
	flow_table_remove(table, entry, 2);
	flow_table_mask(table, &mask);
	CHECK(flow_key_equal(&mask, &expected));
	reclaim_all(table, 2);
	flow_table_mask(table, &mask);
	CHECK(flow_key_equal(&mask, &other.mask));
	flow_table_free(table);
}

static void find_wants_the_same_match_and_priority(void)
{
	struct flow_table *table = flow_table_new();
	struct flow_match match = {
		.mask = {.ip_proto = 0xff}, .range_dst = true, .dst_min = 80, .dst_max = 90};
	struct flow_match longer = match, exact = match;
	struct flow_entry *entry = entry_of(&match, 7, 1);

	longer.dst_max = 91;
	exact.range_dst = false;
	flow_table_add(table, entry);
	CHECK(flow_table_find(table, &match, 7) == entry);
	CHECK(!flow_table_find(table, &match, 8));
	CHECK(!flow_table_find(table, &longer, 7));
	CHECK(!flow_table_find(table, &exact, 7));
	flow_table_free(table);
}

static bool remove_odd(struct flow_entry *entry, void *context)
{
	u32 *seen = context;

	(*seen)++;
	if (entry->priority & 1)
		flow_table_remove(scan_table, entry, 2);
	return *seen < 1000;
}

static void each_visits_every_live_entry_and_may_remove_it(void)
{
	struct flow_match match;
	u32 seen = 0;

	scan_table = flow_table_new();
	for (u32 i = 0; i < 500; i++) {
		random_match(&match);
		flow_table_add(scan_table, entry_of(&match, (u16)i, 1));
	}
	flow_table_each(scan_table, remove_odd, &seen);
	CHECK_EQ(seen, 500);
	CHECK_EQ(flow_table_count(scan_table), 250);
	seen = 0;
	flow_table_each(scan_table, remove_odd, &seen);
	CHECK_EQ(seen, 250);
	seen = 999;
	flow_table_each(scan_table, remove_odd, &seen);
	CHECK_EQ(seen, 1000);
	flow_table_free(scan_table);
}

/* One step of the differential test: some changes in a new version, then lookups in the last
 * versions. */
static void change_and_compare(struct flow_table *table, struct scan *scan, u64 version,
			       u32 changes)
{
	for (u32 i = 0; i < changes; i++) {
		if (scan->n && (check_random(100) < 45 || scan->n == SCAN_MAX)) {
			struct flow_entry *entry = scan->entries[check_random(scan->n)];

			if (entry->removed == FLOW_VERSION_MAX)
				flow_table_remove(table, entry, version);
		} else {
			struct flow_match match;
			u16 priority = (u16)check_random(65536);

			random_match(&match);
			if (flow_table_find(table, &match, priority))
				continue;
			scan->entries[scan->n] = entry_of(&match, priority, version);
			CHECK_EQ(flow_table_add(table, scan->entries[scan->n]), 0);
			scan->n++;
		}
	}
	for (u32 i = 0; i < 30; i++) {
		struct flow_key key;
		u64 at = version - check_random(version < 3 ? (u32)version : 3);

		random_key(&key);
		CHECK_EQ(table_priority(table, &key, at), scan_priority(scan, &key, at));
	}
}

static void lookups_agree_with_a_linear_scan_in_every_version(void)
{
	static struct scan scan;

	for (u32 round = 0; round < 4; round++) {
		struct flow_table *table = flow_table_new();

		scan.n = 0;
		for (u64 version = 1; version < 400; version++) {
			u32 live = 0;

			change_and_compare(table, &scan, version, check_random(round < 2 ? 6 : 40));
			if (!check_random(20)) {
				forgetting = &scan;
				flow_table_reclaim(table, version - 2 + check_random(3), no_readers,
						   NULL, forget_entry);
			}
			for (u32 i = 0; i < scan.n; i++)
				live += scan.entries[i]->removed == FLOW_VERSION_MAX;
			CHECK_EQ(flow_table_count(table), live);
		}
		flow_table_free(table);
	}
}

static void used_bits_decide_the_answer(void)
{
	struct flow_table *table = flow_table_new();
	struct flow_match match;

	for (u32 i = 0; i < 600; i++) {
		random_match(&match);
		flow_table_add(table, entry_of(&match, (u16)i, 1));
	}
	for (u32 i = 0; i < 20000; i++) {
		struct flow_key key, other, used = {0}, all;
		struct flow_entry *entry;

		random_key(&key);
		random_key(&other);
		entry = flow_table_lookup(table, &key, 1, &used);
		flow_table_mask(table, &all);
		CHECK(flow_key_covers(&all, &used));
		for (int w = 0; w < FLOW_KEY_WORDS; w++)
			flow_key_words_mut(&other)[w] =
				(flow_key_words(&key)[w] & flow_key_words(&used)[w]) |
				(flow_key_words(&other)[w] & ~flow_key_words(&used)[w]);
		CHECK(flow_table_lookup(table, &other, 1, NULL) == entry);
	}
	flow_table_free(table);
}

static void memory_that_runs_out_changes_nothing(void)
{
	u32 failures = 0;
	struct flow_table *table;
	struct flow_match match;
	static struct scan scan;

	for (int limit = 0; limit < 2; limit++) {
		allocations_left = limit;
		table = flow_table_new();
		allocations_left = -1;
		CHECK(!table);
	}
	table = flow_table_new();
	scan.n = 0;
	for (u32 i = 0; i < 2000; i++) {
		struct flow_entry *entry;
		int error;

		random_match(&match);
		entry = entry_of(&match, (u16)i, 1);
		allocations_left = (int)check_random(3);
		error = flow_table_add(table, entry);
		if (!error)
			/* Reclaim does without memory as well. */
			reclaim_all(table, 1);
		allocations_left = -1;
		if (error) {
			CHECK_EQ(error, -ENOMEM);
			failures++;
			free(entry);
		} else {
			scan.entries[scan.n++] = entry;
		}
	}
	CHECK(failures > 10);
	CHECK_EQ(flow_table_count(table), scan.n);
	for (u32 i = 0; i < 1000; i++) {
		struct flow_key key;

		random_key(&key);
		CHECK_EQ(table_priority(table, &key, 1), scan_priority(&scan, &key, 1));
	}
	flow_table_free(table);
}

/* ---- readers while the writer writes ---- */

#define KEYS 64
#define RACE_ROUNDS 1000

/* Version v has, for key k, an entry with cookie v / (k + 1) * (k + 1): each version has exactly
 * one right answer per key. */
struct race {
	struct flow_table *table;
	u64 version;
	bool done;
	u64 inside[2]; /* by reader: odd while in a read section */
	u64 wrong, lookups;
};

static struct race race;

static u64 cookie_of(u64 version, u32 key)
{
	return version / (key + 1) * (key + 1);
}

static void race_match(struct flow_match *match, u32 key, u64 version)
{
	memset(match, 0, sizeof(*match));
	match->key.eth_type = cpu_to_be16(0x0800);
	match->mask.eth_type = 0xffff;
	set_ip(match->key.ip_dst, cpu_to_be32(key * 0x01010101));
	set_ip(match->mask.ip_dst, 0xffffffff);
	/* Other tuples from version to version. */
	if (version & 1)
		match->mask.ip_src[0] = 0xff;
	if (version & 2)
		match->mask.l4_src = 0xffff;
}

static void *race_reader(void *context)
{
	u64 *inside = context, wrong = 0, lookups = 0;
	u32 turn = 0;

	while (!LOAD_ACQUIRE(&race.done)) {
		__atomic_add_fetch(inside, 1, __ATOMIC_SEQ_CST);
		u64 version = LOAD_ACQUIRE(&race.version);

		for (u32 i = 0; i < 16; i++, turn++) {
			struct flow_key key = {.eth_type = cpu_to_be16(0x0800)};
			struct flow_entry *entry;
			u32 k = turn % KEYS;

			set_ip(key.ip_dst, cpu_to_be32(k * 0x01010101));
			entry = flow_table_lookup(race.table, &key, version, NULL);
			wrong += !entry || entry->cookie != cookie_of(version, k);
			lookups++;
		}
		__atomic_add_fetch(inside, 1, __ATOMIC_RELEASE);
	}
	__atomic_add_fetch(&race.wrong, wrong, __ATOMIC_RELAXED);
	__atomic_add_fetch(&race.lookups, lookups, __ATOMIC_RELAXED);
	return NULL;
}

/* Waits until each reader has left the section that it may be in. */
static void race_grace(void *context)
{
	(void)context;
	for (u32 i = 0; i < ARRAY_SIZE(race.inside); i++) {
		u64 seen = __atomic_fetch_add(&race.inside[i], 0, __ATOMIC_SEQ_CST);

		while ((seen & 1) && __atomic_load_n(&race.inside[i], __ATOMIC_ACQUIRE) == seen)
			sched_yield();
	}
}

static void replace(struct flow_entry **current, u32 key, u64 version)
{
	struct flow_match match;

	race_match(&match, key, version);
	if (current[key])
		flow_table_remove(race.table, current[key], version);
	current[key] = entry_of(&match, (u16)check_random(65536), version);
	current[key]->cookie = version;
	CHECK_EQ(flow_table_add(race.table, current[key]), 0);
}

static void reader_of_a_version_sees_exactly_its_entries_while_the_writer_goes_on(void)
{
	struct flow_entry *current[KEYS] = {0};
	pthread_t readers[ARRAY_SIZE(race.inside)];

	memset(&race, 0, sizeof(race));
	race.table = flow_table_new();
	for (u32 k = 0; k < KEYS; k++)
		replace(current, k, 0);
	for (u32 i = 0; i < ARRAY_SIZE(readers); i++)
		REQUIRE(!pthread_create(&readers[i], NULL, race_reader, &race.inside[i]));
	/* On a busy machine the writer could be through before they begin. */
	for (u32 i = 0; i < ARRAY_SIZE(readers); i++)
		while (!LOAD_ACQUIRE(&race.inside[i]))
			sched_yield();
	for (u64 version = 1; version <= RACE_ROUNDS; version++) {
		for (u32 k = 0; k < KEYS; k++)
			if (cookie_of(version, k) == version)
				replace(current, k, version);
		STORE_RELEASE(&race.version, version);
		if (check_random(8) == 0) {
			race_grace(NULL);
			flow_table_reclaim(race.table, version, race_grace, NULL, free_entry);
		}
	}
	STORE_RELEASE(&race.done, true);
	for (u32 i = 0; i < ARRAY_SIZE(readers); i++)
		pthread_join(readers[i], NULL);
	CHECK_EQ(race.wrong, 0);
	CHECK(race.lookups > 0);
	CHECK_EQ(flow_table_count(race.table), KEYS);
	flow_table_free(race.table);
}

int main(void)
{
	RUN(empty_table_matches_nothing);
	RUN(higher_priority_wins_whatever_was_added_first);
	RUN(entry_is_seen_from_added_until_removed);
	RUN(reclaim_frees_after_grace_and_only_what_is_hidden);
	RUN(mask_grows_with_entries_and_shrinks_when_they_are_reclaimed);
	RUN(find_wants_the_same_match_and_priority);
	RUN(each_visits_every_live_entry_and_may_remove_it);
	RUN(lookups_agree_with_a_linear_scan_in_every_version);
	RUN(used_bits_decide_the_answer);
	RUN(memory_that_runs_out_changes_nothing);
	RUN(reader_of_a_version_sees_exactly_its_entries_while_the_writer_goes_on);
	return check_done();
}
