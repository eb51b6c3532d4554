/* The promises of dataplane/openflow.h: what each message does, statistics, and all or nothing.
 *
 * Linked with --wrap=malloc --wrap=calloc --wrap=realloc, so that memory can run out on purpose.
 */
#include "openflow_bytes.h"

/* ---- memory that runs out ---- */

static int allocations_left = -1; /* -1: no limit */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *memory, size_t size);

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

void *__wrap_realloc(void *memory, size_t size)
{
	return out_of_memory() ? NULL : __real_realloc(memory, size);
}

/* ---- framing ---- */

static void bad_messages_get_the_error_that_openflow_names(void)
{
	static const struct {
		const char *message;
		u32 error;
	} cases[] = {
		{"05 14 0008 00000001", OFPBRC_BAD_VERSION},
		{"04 14 0007 00000001", OFPBRC_BAD_LEN},
		{"04 14 0010 00000001", OFPBRC_BAD_LEN},
		{"04 14 0010 00000001 0000000000000000", OFPBRC_BAD_LEN},
		{"04 14 00", OFPBRC_BAD_LEN},
		{"04 0e 0008 00000001", OFPBRC_BAD_LEN},
		{"04 00 0008 00000001", OFPBRC_BAD_TYPE},
		{"04 0d 0008 00000001", OFPBRC_BAD_TYPE},
		{"04 12 0008 00000001", OFPBRC_BAD_LEN},
		{"04 12 0010 00000001 0000 0000 00000000", OFPBRC_BAD_MULTIPART},
		{"04 12 0010 00000001 0003 0001 00000000", OFPBRC_MULTIPART_BUFFER_OVERFLOW},
		{"04 12 0018 00000001 0003 0000 00000000 0000000000000000", OFPBRC_BAD_LEN},
		{"04 12 0010 00000001 0001 0000 00000000", OFPBRC_BAD_LEN},
		{"04 12 0030 00000001 0001 0000 00000000 04 000000 ffffffff ffffffff 00000000 "
		 "0000000000000000 0000000000000000",
		 OFPBRC_BAD_TABLE_ID},
		{"04 12 0030 00000001 0001 0000 00000000 00 000000 ffffffff ffffffff 00000000 "
		 "0000000000000000 0000000000000000",
		 OFPBMC_BAD_LEN},
	};

	clear();
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		CHECK_EQ(apply_hex(cases[i].message), -EINVAL);
		if (replied_error() != cases[i].error)
			fprintf(stderr, "case %u: %s\n", i, cases[i].message);
		CHECK_EQ(replied_error(), cases[i].error);
	}
	clear();
}

static void flow_mods_that_ask_for_what_is_not_there_are_refused(void)
{
	static const struct {
		u32 offset;
		u8 value;
		u32 error;
	} cases[] = {
		{24, TABLES, OFPFMFC_BAD_TABLE_ID}, {24, OFPTT_ALL, OFPFMFC_BAD_TABLE_ID},
		{25, 5, OFPFMFC_BAD_COMMAND},	    {27, 1, OFPFMFC_BAD_TIMEOUT},
		{29, 1, OFPFMFC_BAD_TIMEOUT},	    {35, 1, OFPBRC_BUFFER_UNKNOWN},
		{45, 1, OFPFMFC_BAD_FLAGS},	    {44, 1, OFPFMFC_BAD_FLAGS},
	};

	clear();
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		static struct bytes bytes;
		struct mod mod = {0};

		bytes.n = 0;
		put_mod(&bytes, &mod);
		bytes.data[cases[i].offset] = cases[i].value;
		CHECK_EQ(apply(&bytes), -EINVAL);
		CHECK_EQ(replied_error(), cases[i].error);
	}
	clear();
}

static void error_carries_the_request_s_number_and_64_bytes_of_it(void)
{
	struct mod mod = {.match = ETH_IPV4, .instructions = "0009 0008 00000001 " GOTO_1};
	struct ofp_error_msg error;

	clear();
	CHECK_EQ(apply_mod(&mod), -EINVAL);
	memcpy(&error, reply, sizeof(error));
	CHECK_EQ(be32_to_cpu(error.header.xid), 0xabcd);
	CHECK_EQ(reply_length, 12 + 64);
	CHECK_EQ(reply[12], OFP_VERSION);
	CHECK_EQ(reply[13], OFPT_FLOW_MOD);
	CHECK_EQ(reply[15], 80);
	clear();
}

static void barrier_is_answered_in_its_place(void)
{
	clear();
	CHECK_EQ(apply_hex("04 14 0008 00000011 04 14 0008 00000012"), 0);
	CHECK_EQ(reply_length, 16);
	CHECK_EQ(reply[1], OFPT_BARRIER_REPLY);
	CHECK_EQ(reply[7], 0x11);
	CHECK_EQ(reply[15], 0x12);
	CHECK_EQ(target.version, 7);
	clear();
}

/* ---- what flow mods do ---- */

static void added_entry_is_seen_in_the_next_version_only(void)
{
	struct mod mod = {
		.priority = 5, .cookie = 0x1122, .match = ETH_IPV4, .instructions = GOTO_1};
	struct flow_key key = {.eth_type = cpu_to_be16(0x0800)};
	struct flow_entry *entry;

	clear();
	CHECK_EQ(apply_mod(&mod), 0);
	CHECK_EQ(reply_length, 0);
	CHECK_EQ(target.version, 8);
	CHECK_EQ(target.entries, 1);
	CHECK(!flow_table_lookup(tables[0], &key, 7, NULL));
	entry = flow_table_lookup(tables[0], &key, 8, NULL);
	REQUIRE(entry);
	CHECK_EQ(entry->cookie, 0x1122);
	CHECK_EQ(entry->priority, 5);
	clear();
}

static void add_replaces_the_same_match_and_priority(void)
{
	static const struct {
		bool controllers;
		u16 flags;
		u64 packets;
	} cases[] = {
		{false, 0, 0}, /* a port's rule starts at zero */
		{true, 0, 3},
		{true, OFPFF_RESET_COUNTS, 0},
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mod mod = {.match = ETH_IPV4, .cookie = 1};
		struct flow_entry *entry;
		u64 packets, bytes;

		clear();
		target.controllers = cases[i].controllers;
		CHECK_EQ(apply_mod(&mod), 0);
		entry = only_entry(0);
		REQUIRE(entry);
		entry->packets = 3;
		mod.cookie = 2;
		mod.flags = cases[i].flags;
		mod.instructions = GOTO_1;
		CHECK_EQ(apply_mod(&mod), 0);
		CHECK_EQ(target.entries, 1);
		entry = only_entry(0);
		REQUIRE(entry);
		CHECK_EQ(entry->cookie, 2);
		CHECK_EQ(entry->goto_table, 1);
		flow_entry_counts(entry, &packets, &bytes);
		CHECK_EQ(packets, cases[i].packets);
	}
	clear();
}

static void modify_changes_instructions_and_keeps_cookie_and_counts(void)
{
	struct mod add = {.match = ETH_IPV4, .priority = 9, .cookie = 5};
	struct mod modify = {.command = OFPFC_MODIFY, .cookie = 77, .instructions = GOTO_1};
	struct flow_entry *before, *after;
	u64 packets, bytes;

	clear();
	CHECK_EQ(apply_mod(&add), 0);
	before = only_entry(0);
	REQUIRE(before);
	before->packets = 10;
	before->bytes = 1000;
	CHECK_EQ(apply_mod(&modify), 0);
	after = only_entry(0);
	REQUIRE(after && after != before);
	CHECK_EQ(after->goto_table, 1);
	CHECK_EQ(after->cookie, 5);
	CHECK_EQ(after->priority, 9);
	/* A worker that has not heard of it yet goes on counting on the old one. */
	before->packets++;
	after->packets += 2;
	modify.instructions = GOTO_2;
	CHECK_EQ(apply_mod(&modify), 0);
	after = only_entry(0);
	REQUIRE(after);
	flow_entry_counts(after, &packets, &bytes);
	CHECK_EQ(packets, 13);
	reclaim_all();
	flow_entry_counts(after, &packets, &bytes);
	CHECK_EQ(packets, 13);
	CHECK_EQ(bytes, 1000);
	CHECK_EQ(after->packets, 13);
	modify.flags = OFPFF_RESET_COUNTS;
	CHECK_EQ(apply_mod(&modify), 0);
	flow_entry_counts(only_entry(0), &packets, &bytes);
	CHECK_EQ(packets, 0);
	clear();
}

static void modify_reaches_what_is_more_specific_and_strict_only_the_same(void)
{
	struct mod wide = {.match = ETH_IPV4, .priority = 1};
	struct mod narrow = {.match = ETH_IPV4 PROTO_TCP, .priority = 2};
	struct mod strict = {.command = OFPFC_MODIFY_STRICT,
			     .match = ETH_IPV4,
			     .priority = 1,
			     .instructions = GOTO_1};
	struct mod loose = {
		.command = OFPFC_MODIFY, .match = ETH_IPV4 PROTO_TCP, .instructions = GOTO_2};
	struct flow_key tcp = {.eth_type = cpu_to_be16(0x0800), .ip_proto = 6};
	struct flow_key udp = {.eth_type = cpu_to_be16(0x0800), .ip_proto = 17};

	clear();
	CHECK_EQ(apply_mod(&wide), 0);
	CHECK_EQ(apply_mod(&narrow), 0);
	CHECK_EQ(apply_mod(&strict), 0);
	CHECK_EQ(flow_table_lookup(tables[0], &udp, target.version, NULL)->goto_table, 1);
	CHECK_EQ(flow_table_lookup(tables[0], &tcp, target.version, NULL)->goto_table,
		 FLOW_GOTO_NONE);
	CHECK_EQ(apply_mod(&loose), 0);
	CHECK_EQ(flow_table_lookup(tables[0], &udp, target.version, NULL)->goto_table, 1);
	CHECK_EQ(flow_table_lookup(tables[0], &tcp, target.version, NULL)->goto_table, 2);
	strict.priority = 3;
	CHECK_EQ(apply_mod(&strict), 0);
	CHECK_EQ(target.entries, 2);
	clear();
}

static void add_six(void)
{
	struct mod mods[] = {
		{.match = ETH_IPV4 PROTO_TCP "8000 1c 02 0050", .priority = 1, .cookie = 0x10},
		{.match = ETH_IPV4 PROTO_TCP "ffff 06 08 " VS "0050 005a",
		 .priority = 2,
		 .cookie = 0x11},
		{.match = ETH_IPV4 PROTO_TCP "ffff 06 08 " VS "0050 0064",
		 .priority = 3,
		 .cookie = 0x20},
		{.match = ETH_IPV4, .priority = 4, .cookie = 0x21},
		{.match = ETH_IPV6, .priority = 5, .cookie = 0x30, .table = 1},
		{.priority = 6, .cookie = 0x31, .table = 2, .instructions = APPLY("0018") OUTPUT_2},
	};

	clear();
	target.controllers = true;
	for (u32 i = 0; i < ARRAY_SIZE(mods); i++)
		CHECK_EQ(apply_mod(&mods[i]), 0);
	CHECK_EQ(target.entries, 6);
}

static void delete_takes_what_the_message_means_and_no_more(void)
{
	static const struct {
		struct mod mod;
		u32 left;
	} cases[] = {
		{{.command = OFPFC_DELETE, .table = OFPTT_ALL}, 0},
		{{.command = OFPFC_DELETE}, 2},
		{{.command = OFPFC_DELETE, .match = ETH_IPV4}, 2},
		{{.command = OFPFC_DELETE, .match = ETH_IPV4 PROTO_TCP}, 3},
		{{.command = OFPFC_DELETE,
		  .match = ETH_IPV4 PROTO_TCP "ffff 06 08 " VS "0050 005a"},
		 4},
		{{.command = OFPFC_DELETE, .match = ETH_IPV4 PROTO_TCP "8000 1c 02 0050"}, 5},
		{{.command = OFPFC_DELETE, .match = ETH_IPV4 PROTO_TCP "8000 1a 02 0050"}, 6},
		{{.command = OFPFC_DELETE, .table = OFPTT_ALL, .cookie = 0x10, .cookie_mask = 0xf0},
		 4},
		{{.command = OFPFC_DELETE, .table = OFPTT_ALL, .out_port = 2}, 5},
		{{.command = OFPFC_DELETE, .table = OFPTT_ALL, .out_port = 3}, 6},
		{{.command = OFPFC_DELETE, .table = 3}, 6},
		{{.command = OFPFC_DELETE_STRICT, .match = ETH_IPV4, .priority = 4}, 5},
		{{.command = OFPFC_DELETE_STRICT, .match = ETH_IPV4, .priority = 3}, 6},
		{{.command = OFPFC_DELETE_STRICT,
		  .match = ETH_IPV4,
		  .priority = 4,
		  .cookie_mask = 1},
		 6},
		{{.command = OFPFC_DELETE_STRICT,
		  .table = OFPTT_ALL,
		  .match = ETH_IPV6,
		  .priority = 5},
		 5},
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		u32 live = 0;

		add_six();
		CHECK_EQ(apply_mod(&cases[i].mod), 0);
		CHECK_EQ(target.entries, cases[i].left);
		for (u32 t = 0; t < TABLES; t++)
			live += tables[t] ? flow_table_count(tables[t]) : 0;
		CHECK_EQ(live, cases[i].left);
	}
	clear();
}

static void overlap_is_refused_where_it_is_asked_for(void)
{
	static const struct {
		const char *match;
		u16 priority;
		bool overlaps;
	} cases[] = {
		{ETH_IPV4 PROTO_TCP "8000 1c 02 0055", 2, true},
		{ETH_IPV4 PROTO_TCP "8000 1c 02 005b", 2, false},
		{ETH_IPV4 PROTO_TCP "ffff 06 08 " VS "0040 004f", 2, false},
		{ETH_IPV4 PROTO_TCP "ffff 06 08 " VS "0040 0050", 2, true},
		{ETH_IPV4 PROTO_TCP "8000 1a 02 0001", 2, true},
		{ETH_IPV4, 2, true},
		{ETH_IPV4, 7, false},
		{ETH_IPV6, 2, false},
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mod mod = {.match = cases[i].match,
				  .priority = cases[i].priority,
				  .flags = OFPFF_CHECK_OVERLAP};

		add_six();
		CHECK_EQ(apply_mod(&mod), cases[i].overlaps ? -EINVAL : 0);
		if (cases[i].overlaps)
			CHECK_EQ(replied_error(), OFPFMFC_OVERLAP);
	}
	clear();
}

static void full_table_says_so_and_still_takes_replacements(void)
{
	struct mod mod = {.match = ETH_IPV4, .priority = 4};

	add_six();
	target.entries_max = 6;
	CHECK_EQ(apply_mod(&mod), 0);
	mod.priority = 40;
	CHECK_EQ(apply_mod(&mod), -EINVAL);
	CHECK_EQ(replied_error(), OFPFMFC_TABLE_FULL);
	CHECK_EQ(target.entries, 6);
	clear();
}

/* ---- all or nothing ---- */

static void put_mixture(struct bytes *bytes)
{
	struct mod add = {.match = ETH_ARP, .priority = 40};
	struct mod replace = {.match = ETH_IPV4, .priority = 4, .cookie = 99};
	struct mod modify = {.command = OFPFC_MODIFY, .instructions = GOTO_1};
	struct mod delete = {
		.command = OFPFC_DELETE, .table = OFPTT_ALL, .cookie = 0x30, .cookie_mask = 0xf0};

	bytes->n = 0;
	put_mod(bytes, &add);
	put_mod(bytes, &replace);
	put_mod(bytes, &modify);
	put_mod(bytes, &delete);
	put_mod(bytes, &add);
	put_mod(bytes, &modify);
}

static void error_in_the_last_message_takes_all_back(void)
{
	static struct bytes bytes;
	struct mod all = {.command = OFPFC_DELETE, .table = OFPTT_ALL};
	struct mod bad = {.match = "8000 14 01 06"};
	u64 before, version;

	add_six();
	before = fingerprint();
	version = target.version;
	put_mixture(&bytes);
	put_mod(&bytes, &bad);
	for (u32 i = 0; i < 3; i++) {
		CHECK_EQ(apply(&bytes), -EINVAL);
		CHECK_EQ(replied_error(), OFPBMC_BAD_PREREQ);
		CHECK_EQ(target.version, version);
		CHECK_EQ(target.entries, 6);
		CHECK(fingerprint() == before);
		if (i)
			reclaim_all();
	}
	CHECK(fingerprint() == before);
	/* What was restored knows nothing of what was to take its place. */
	CHECK_EQ(apply_mod(&all), 0);
	reclaim_all();
	CHECK_EQ(target.entries, 0);
	clear();
}

static void reply_without_room_changes_nothing(void)
{
	static struct bytes bytes;
	u64 before, version;

	add_six();
	before = fingerprint();
	version = target.version;
	put_mixture(&bytes);
	put_hex(&bytes, FLOW_STATS);
	for (u32 size = 0; size < 400; size += 7) {
		CHECK_EQ(openflow_apply(&target, bytes.data, bytes.n, reply, size, &reply_length),
			 -E2BIG);
		CHECK_EQ(reply_length, 0);
		CHECK_EQ(target.version, version);
	}
	CHECK(fingerprint() == before);
	CHECK_EQ(apply(&bytes), 0);
	CHECK_EQ(target.version, version + 1);
	clear();
}

static void memory_that_runs_out_changes_nothing(void)
{
	static struct bytes bytes;
	u64 before, version;
	int error = -EINVAL;
	u32 failures = 0;

	add_six();
	before = fingerprint();
	version = target.version;
	put_mixture(&bytes);
	for (int limit = 0; error; limit++) {
		REQUIRE(limit < 100);
		allocations_left = limit;
		error = openflow_apply(&target, bytes.data, bytes.n, reply, sizeof(reply),
				       &reply_length);
		allocations_left = -1;
		if (!error)
			break;
		failures++;
		CHECK_EQ(error, -EINVAL);
		CHECK_EQ(replied_error(), OFPFMFC_TABLE_FULL);
		CHECK_EQ(target.version, version);
		CHECK(fingerprint() == before);
	}
	CHECK(failures > 3);
	CHECK_EQ(target.version, version + 1);
	CHECK_EQ(target.entries, 5);
	reclaim_all();
	clear();
}

/* ---- statistics ---- */

static void statistics_flush_and_show_counts(void)
{
	struct ofp_flow_stats stats;
	struct mod mod = {.priority = 0x1234, .cookie = 0x55};

	clear();
	CHECK_EQ(apply_mod(&mod), 0);
	only_entry(0)->packets = 7;
	only_entry(0)->bytes = 700;
	flushes = 0;
	CHECK_EQ(apply_hex(FLOW_STATS), 0);
	CHECK_EQ(flushes, 1);
	memcpy(&stats, reply + 16, sizeof(stats));
	CHECK_EQ(reply[1], OFPT_MULTIPART_REPLY);
	CHECK_EQ(reply[7], 7);
	CHECK_EQ(be16_to_cpu(stats.priority), 0x1234);
	CHECK_EQ(be64_to_cpu(stats.cookie), 0x55);
	CHECK_EQ(be64_to_cpu(stats.packet_count), 7);
	CHECK_EQ(be64_to_cpu(stats.byte_count), 700);
	CHECK(be32_to_cpu(stats.duration_sec) < 10);
	clear();
}

static void long_statistics_are_cut_into_messages_below_64_kib(void)
{
	u32 entries = 0, messages = 0;

	clear();
	target.entries_max = 5000;
	for (u32 i = 0; i < 3000; i++) {
		struct mod mod = {.match = ETH_IPV4, .priority = (u16)i};

		CHECK_EQ(apply_mod(&mod), 0);
	}
	CHECK_EQ(apply_hex(FLOW_STATS), 0);
	for (u32 at = 0; at < reply_length; messages++) {
		struct ofp_multipart head;
		u32 length;

		memcpy(&head, reply + at, sizeof(head));
		length = be16_to_cpu(head.header.length);
		CHECK_EQ(head.header.type, OFPT_MULTIPART_REPLY);
		CHECK_EQ(be16_to_cpu(head.flags),
			 at + length < reply_length ? OFPMPF_REPLY_MORE : 0);
		CHECK_EQ((length - sizeof(head)) % 64, 0);
		entries += (length - (u32)sizeof(head)) / 64;
		at += length;
	}
	CHECK_EQ(entries, 3000);
	CHECK_EQ(messages, 3);
	clear();
}

static void aggregate_sums_what_the_request_selects(void)
{
	struct ofp_aggregate_stats sums;

	add_six();
	only_entry(1)->packets = 5;
	only_entry(2)->packets = 6;
	only_entry(2)->bytes = 60;
	CHECK_EQ(
		apply_hex(
			"04 12 0038 00000007 0002 0000 00000000 ff 000000 ffffffff ffffffff 00000000 "
			"0000000000000030 00000000000000f0 0001 0004 00000000"),
		0);
	CHECK_EQ(reply_length, 16 + sizeof(sums));
	memcpy(&sums, reply + 16, sizeof(sums));
	CHECK_EQ(be32_to_cpu(sums.flow_count), 2);
	CHECK_EQ(be64_to_cpu(sums.packet_count), 11);
	CHECK_EQ(be64_to_cpu(sums.byte_count), 60);
	clear();
}

static void table_statistics_show_each_table(void)
{
	add_six();
	CHECK_EQ(apply_hex("04 12 0010 00000007 0003 0000 00000000"), 0);
	CHECK_EQ(reply_length, 16 + TABLES * sizeof(struct ofp_table_stats));
	for (u32 i = 0; i < TABLES; i++) {
		static const u32 active[TABLES] = {4, 1, 1, 0};
		struct ofp_table_stats stats;

		memcpy(&stats, reply + 16 + i * sizeof(stats), sizeof(stats));
		CHECK_EQ(stats.table_id, i);
		CHECK_EQ(be32_to_cpu(stats.active_count), active[i]);
	}
	clear();
}

int main(void)
{
	RUN(bad_messages_get_the_error_that_openflow_names);
	RUN(flow_mods_that_ask_for_what_is_not_there_are_refused);
	RUN(error_carries_the_request_s_number_and_64_bytes_of_it);
	RUN(barrier_is_answered_in_its_place);
	RUN(added_entry_is_seen_in_the_next_version_only);
	RUN(add_replaces_the_same_match_and_priority);
	RUN(modify_changes_instructions_and_keeps_cookie_and_counts);
	RUN(modify_reaches_what_is_more_specific_and_strict_only_the_same);
	RUN(delete_takes_what_the_message_means_and_no_more);
	RUN(overlap_is_refused_where_it_is_asked_for);
	RUN(full_table_says_so_and_still_takes_replacements);
	RUN(error_in_the_last_message_takes_all_back);
	RUN(reply_without_room_changes_nothing);
	RUN(memory_that_runs_out_changes_nothing);
	RUN(statistics_flush_and_show_counts);
	RUN(long_statistics_are_cut_into_messages_below_64_kib);
	RUN(aggregate_sums_what_the_request_selects);
	RUN(table_statistics_show_each_table);
	return check_done();
}
