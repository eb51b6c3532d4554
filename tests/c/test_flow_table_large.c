/* Flow tables with many entries, friendly and hostile ones: right answers, few tuples, nothing left
 * behind.
 *
 * With the argument `bench` it prints what a lookup and an addition cost instead.
 */
#include "flow_entries.h"

/* ---- many entries ---- */

typedef void (*generator)(struct flow_match *match, u32 i);

/* Rules as people write them for a port: a network or host on the other side, often a protocol, a
 * port or a range. */
static void acl_like(struct flow_match *match, u32 i)
{
	static const u8 lengths[] = {32, 32, 32, 24, 24, 16, 28, 20, 12, 8};
	static const u16 ports[] = {22, 25, 53, 80, 123, 443, 3306, 5432, 6443, 8080};

	(void)i;
	memset(match, 0, sizeof(*match));
	match->mask.eth_type = 0xffff;
	match->key.eth_type = cpu_to_be16(0x0800);
	set_ip(match->key.ip_src, cpu_to_be32(0x0a000000 | check_random(1u << 24)));
	set_ip(match->mask.ip_src, prefix4(lengths[check_random(10)]));
	if (check_random(4)) {
		match->mask.ip_proto = 0xff;
		match->key.ip_proto = check_random(3) ? 6 : 17;
		match->key.l4_dst = cpu_to_be16(ports[check_random(10)]);
		if (check_random(3)) {
			match->mask.l4_dst = 0xffff;
		} else {
			match->range_dst = true;
			match->dst_min = be16_to_cpu(match->key.l4_dst);
			match->dst_max = (u16)(match->dst_min + 1 + check_random(5000));
		}
	}
	fit(match);
}

/* Every pair of prefix lengths of source and destination: 1089 masks. */
static void every_prefix_pair(struct flow_match *match, u32 i)
{
	memset(match, 0, sizeof(*match));
	match->mask.eth_type = 0xffff;
	match->key.eth_type = cpu_to_be16(0x0800);
	set_ip(match->key.ip_src, cpu_to_be32(check_random(UINT32_MAX)));
	set_ip(match->key.ip_dst, cpu_to_be32(check_random(UINT32_MAX)));
	set_ip(match->mask.ip_src, prefix4(i % 33));
	set_ip(match->mask.ip_dst, prefix4(i / 33 % 33));
	fit(match);
}

/* Four prefix lengths each of addresses, ports and VLANs, any subset of the other fields: the
 * textbook explosion. */
static void every_subset(struct flow_match *match, u32 i)
{
	memset(match, 0, sizeof(*match));
	random_key(&match->key);
	set_ip(match->key.ip_src, cpu_to_be32(0x0a000000 | check_random(1u << 24)));
	set_ip(match->key.ip_dst, cpu_to_be32(0x0a000000 | check_random(1u << 24)));
	set_ip(match->mask.ip_src, prefix4(8 * (i % 4 + 1)));
	set_ip(match->mask.ip_dst, prefix4(8 * (i / 4 % 4 + 1)));
	match->mask.l4_src = i & 16 ? 0xffff : 0;
	match->mask.l4_dst = i & 32 ? 0xffff : 0;
	match->mask.vlan_tci = i & 64 ? cpu_to_be16(0x1fff) : 0;
	match->mask.ip_proto = i & 128 ? 0xff : 0;
	match->mask.in_port = i & 256 ? 0xffffffff : 0;
	match->mask.eth_type = i & 512 ? 0xffff : 0;
	if (i & 1024)
		memset(match->mask.eth_dst, 0xff, 6);
	if (i & 2048)
		memset(match->mask.eth_src, 0xff, 6);
	fit(match);
}

/* Masks without any order, as OpenFlow 1.3 allows them. */
static void any_mac_mask(struct flow_match *match, u32 i)
{
	(void)i;
	memset(match, 0, sizeof(*match));
	for (u32 b = 0; b < 6; b++) {
		match->key.eth_dst[b] = (u8)check_random(256);
		match->mask.eth_dst[b] = (u8)check_random(256);
	}
	fit(match);
}

/* The same in all fields but a port range that has no common bits. */
static void wide_ranges(struct flow_match *match, u32 i)
{
	(void)i;
	memset(match, 0, sizeof(*match));
	match->mask.ip_proto = 0xff;
	match->key.ip_proto = 6;
	match->range_dst = true;
	match->dst_min = (u16)check_random(32768);
	match->dst_max = (u16)(32768 + check_random(32768));
}

/* A key that some entry matches, or nearly. */
static void key_near(struct flow_key *key, const struct flow_match *match)
{
	struct flow_key noise;

	random_key(&noise);
	for (int w = 0; w < FLOW_KEY_WORDS; w++)
		flow_key_words_mut(key)[w] =
			flow_key_words(&match->key)[w] |
			(flow_key_words(&noise)[w] & ~flow_key_words(&match->mask)[w]);
	if (match->range_dst)
		key->l4_dst = cpu_to_be16(match->dst_min);
	if (!check_random(4))
		((u8 *)key)[check_random(60)] ^= (u8)(1 << check_random(8));
}

static void compare_large(const struct flow_table *table, struct flow_entry **entries, u32 n,
			  u32 lookups)
{
	for (u32 i = 0; i < lookups; i++) {
		struct flow_key key;
		int best = -1;

		key_near(&key, &entries[check_random(n)]->match);
		for (u32 e = 0; e < n; e++)
			if ((int)entries[e]->priority > best &&
			    entries[e]->removed == FLOW_VERSION_MAX &&
			    flow_match_accepts(&entries[e]->match, &key))
				best = entries[e]->priority;
		CHECK_EQ(table_priority(table, &key, 2), best);
	}
}

static void many_entries(generator generate, u32 n, u32 tuples_max)
{
	struct flow_entry **entries = malloc(n * sizeof(*entries));
	struct flow_table *table = flow_table_new();
	struct flow_match match;

	for (u32 i = 0; i < n; i++) {
		generate(&match, i);
		entries[i] = entry_of(&match, (u16)check_random(65536), 1);
		CHECK_EQ(flow_table_add(table, entries[i]), 0);
	}
	CHECK_EQ(flow_table_count(table), n);
	CHECK(flow_table_tuples(table) <= tuples_max);
	compare_large(table, entries, n, 30);
	for (u32 i = 0; i < n; i += 2)
		flow_table_remove(table, entries[i], 2);
	compare_large(table, entries, n, 15);
	freed = 0;
	reclaim_all(table, 2);
	CHECK_EQ(freed, (n + 1) / 2);
	for (u32 i = 0; 2 * i + 1 < n; i++)
		entries[i] = entries[2 * i + 1];
	compare_large(table, entries, n / 2, 15);
	for (u32 i = 0; i < n / 2; i++)
		flow_table_remove(table, entries[i], 3);
	reclaim_all(table, 3);
	CHECK_EQ(flow_table_count(table), 0);
	CHECK_EQ(flow_table_tuples(table), 0);
	flow_table_free(table);
	free(entries);
}

static void hundred_thousand_acl_rules_work(void)
{
	many_entries(acl_like, 100000, 64);
}

static void every_pair_of_prefix_lengths_needs_few_tuples(void)
{
	many_entries(every_prefix_pair, 100000, 128);
}

static void every_subset_of_fields_stays_within_the_tuple_limit(void)
{
	many_entries(every_subset, 100000, 256);
}

static void masks_without_order_stay_within_the_tuple_limit(void)
{
	many_entries(any_mac_mask, 5000, 256);
}

static void ranges_without_common_bits_work(void)
{
	many_entries(wide_ranges, 5000, 16);
}

/* ---- figures ---- */

static void bench_one(const char *name, generator generate, u32 n)
{
	enum { LOOKUPS = 65536 };
	struct flow_match *matches = malloc(n * sizeof(*matches));
	struct flow_key *keys = malloc(LOOKUPS * sizeof(*keys));
	struct flow_table *table = flow_table_new();
	u64 start, add_ns, lookup_ns = UINT64_MAX, hits = 0;
	u32 tuples;

	for (u32 i = 0; i < n; i++)
		generate(&matches[i], i);
	start = clock_ns();
	for (u32 i = 0; i < n; i++)
		flow_table_add(table, entry_of(&matches[i], (u16)check_random(65536), 1));
	add_ns = (clock_ns() - start) / n;
	for (u32 i = 0; i < LOOKUPS; i++)
		key_near(&keys[i], &matches[check_random(n)]);
	for (u32 round = 0; round < 5; round++) {
		start = clock_ns();
		for (u32 i = 0; i < LOOKUPS; i++)
			hits += flow_table_lookup(table, &keys[i], 1, NULL) != NULL;
		start = (clock_ns() - start) * 10 / LOOKUPS;
		lookup_ns = start < lookup_ns ? start : lookup_ns;
	}
	tuples = flow_table_tuples(table);
	printf("%-18s %7u entries %4u tuples  lookup %7.1f ns  add %6llu ns  hits %3llu %%\n", name,
	       n, tuples, (double)lookup_ns / 10, (unsigned long long)add_ns,
	       (unsigned long long)(hits * 20 / LOOKUPS));
	flow_table_free(table);
	free(matches);
	free(keys);
}

static int bench(void)
{
	for (u32 n = 10; n <= 100000; n *= 10)
		bench_one("acl_like", acl_like, n);
	for (u32 n = 1000; n <= 100000; n *= 10)
		bench_one("every_prefix_pair", every_prefix_pair, n);
	for (u32 n = 1000; n <= 100000; n *= 10)
		bench_one("every_subset", every_subset, n);
	bench_one("any_mac_mask", any_mac_mask, 1000);
	bench_one("wide_ranges", wide_ranges, 1000);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "bench"))
		return bench();
	RUN(hundred_thousand_acl_rules_work);
	RUN(every_pair_of_prefix_lengths_needs_few_tuples);
	RUN(every_subset_of_fields_stays_within_the_tuple_limit);
	RUN(masks_without_order_stay_within_the_tuple_limit);
	RUN(ranges_without_common_bits_work);
	return check_done();
}
