/* Matches and instructions: each field and action in literal bytes, errors as OpenFlow 1.3.5 names
 * them. */
#include "openflow_bytes.h"

/* ---- matches ---- */

static void every_field_comes_back_in_statistics_as_it_was_sent(void)
{
	static const struct {
		const char *sent, *back; /* NULL: the same */
	} cases[] = {
		{"", NULL},
		{"8000 00 04 00000003", NULL},
		{"8000 06 06 020000000001", NULL},
		{"8000 07 0c 010000000000 010000000000", NULL},
		{"8000 08 06 020000000001", NULL},
		{"8000 0a 02 88cc", NULL},
		{"8000 0c 02 0000", NULL},
		{"8000 0c 02 1064", NULL},
		{"8000 0d 04 1000 1000", NULL},
		{"8000 0d 04 1008 1ff8", NULL},
		{"8000 0d 04 1008 1fff", "8000 0c 02 1008"},
		{"8000 0c 02 1064 8000 0e 01 05", NULL},
		{ETH_IPV4 "8000 10 01 2e 8000 12 01 03", NULL},
		{ETH_IPV6 PROTO_TCP, NULL},
		{ETH_IPV4 "8000 16 04 0a000001 8000 19 08 0a000000 ff000000", NULL},
		{ETH_IPV4 "8000 17 08 0a000001 ffffffff", ETH_IPV4 "8000 16 04 0a000001"},
		{ETH_IPV4 "8000 17 08 00000000 00000000", ETH_IPV4},
		{ETH_IPV4 PROTO_TCP "8000 1a 02 1234 8000 1c 02 0050", NULL},
		{ETH_IPV6 "8000 14 01 11 8000 1e 02 1234 8000 20 02 0050", NULL},
		{ETH_IPV4 "8000 14 01 84 8000 22 02 1234 8000 24 02 0050", NULL},
		{ETH_IPV4 "8000 14 01 01 8000 26 01 08 8000 28 01 00", NULL},
		{ETH_IPV6 "8000 14 01 3a 8000 3a 01 87 8000 3c 01 00", NULL},
		{ETH_ARP "8000 2a 02 0001 8000 2c 04 0a000001 8000 2f 08 0a000000 ff000000", NULL},
		{ETH_IPV6 "8000 34 10 20010db8000000000000000000000001", NULL},
		{ETH_IPV6
		 "8000 37 20 20010db8000000000000000000000000 ffffffff000000000000000000000000",
		 NULL},
		{"ffff 03 06 " VS "08 08", NULL},
		{"ffff 02 05 " VS "08", NULL},
		{"ffff 03 06 " VS "08 1f", "ffff 02 05 " VS "08"},
		{ETH_IPV4 PROTO_TCP "ffff 04 08 " VS "0001 ffff ffff 06 08 " VS "0050 005a", NULL},
		{ETH_IPV4 PROTO_TCP "ffff 06 08 " VS "0050 0050",
		 ETH_IPV4 PROTO_TCP "8000 1c 02 0050"},
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mod mod = {.match = cases[i].sent};
		static struct bytes expected;

		clear();
		target.controllers = true;
		CHECK_EQ(apply_mod(&mod), 0);
		CHECK_EQ(apply_hex(FLOW_STATS), 0);
		expected.n = 0;
		put_match(&expected, cases[i].back ? cases[i].back : cases[i].sent);
		if (reply_length != 16 + 48 + expected.n ||
		    memcmp(reply + 64, expected.data, expected.n)) {
			fprintf(stderr, "case %u: %s\n", i, cases[i].sent);
			CHECK(!"the match came back as another");
		}
	}
	clear();
}

static void bad_matches_get_the_error_that_openflow_names(void)
{
	static const struct {
		const char *match;
		u32 error;
	} cases[] = {
		{"8000 00 04 00000001", OFPBMC_BAD_FIELD}, /* in_port: not in a port's rules */
		{"8000 04 08 0000000000000000", OFPBMC_BAD_FIELD},
		{"8000 4c 08 0000000000000000", OFPBMC_BAD_FIELD},
		{"0001 00 04 00000001", OFPBMC_BAD_FIELD},
		{"ffff 02 05 00004f4e 08", OFPBMC_BAD_FIELD},
		{"ffff 08 05 " VS "08", OFPBMC_BAD_FIELD},
		{"8000 06 05 0200000000", OFPBMC_BAD_LEN},
		{"8000 07 06 020000000001", OFPBMC_BAD_LEN},
		{"8000 06 06 0200", OFPBMC_BAD_LEN},
		{"8000", OFPBMC_BAD_LEN},
		{"ffff 02 03 ff7673", OFPBMC_BAD_LEN},
		{"8000 0b 04 0800 ffff", OFPBMC_BAD_MASK},
		{ETH_IPV4 "8000 15 02 06 ff", OFPBMC_BAD_MASK},
		{"8000 07 0c 010000000001 010000000000", OFPBMC_BAD_WILDCARDS},
		{"8000 0c 02 0064", OFPBMC_BAD_VALUE},
		{"8000 0c 02 2064", OFPBMC_BAD_VALUE},
		{"8000 0c 02 1064 8000 0e 01 08", OFPBMC_BAD_VALUE},
		{ETH_IPV4 "8000 10 01 40", OFPBMC_BAD_VALUE},
		{ETH_IPV4 "8000 12 01 04", OFPBMC_BAD_VALUE},
		{ETH_ARP "8000 2a 02 0101", OFPBMC_BAD_VALUE},
		{"ffff 02 05 " VS "20", OFPBMC_BAD_VALUE},
		{ETH_IPV4 PROTO_TCP "ffff 06 08 " VS "0051 0050", OFPBMC_BAD_VALUE},
		{"8000 0e 01 01", OFPBMC_BAD_PREREQ},
		{"8000 0c 02 0000 8000 0e 01 01", OFPBMC_BAD_PREREQ},
		{"8000 16 04 0a000001", OFPBMC_BAD_PREREQ},
		{ETH_IPV6 "8000 16 04 0a000001", OFPBMC_BAD_PREREQ},
		{ETH_IPV4 "8000 34 10 20010db8000000000000000000000001", OFPBMC_BAD_PREREQ},
		{"8000 14 01 06", OFPBMC_BAD_PREREQ},
		{ETH_IPV4 "8000 1c 02 0050", OFPBMC_BAD_PREREQ},
		{ETH_IPV4 "8000 14 01 11 8000 1c 02 0050", OFPBMC_BAD_PREREQ},
		{ETH_IPV4 "8000 1c 02 0050 8000 14 01 06", OFPBMC_BAD_PREREQ},
		{ETH_IPV6 "8000 14 01 01 8000 26 01 08", OFPBMC_BAD_PREREQ},
		{ETH_IPV4 "8000 14 01 01 ffff 06 08 " VS "0050 005a", OFPBMC_BAD_PREREQ},
		{ETH_IPV4 "8000 2a 02 0001", OFPBMC_BAD_PREREQ},
		{"8000 06 06 020000000001 8000 06 06 020000000001", OFPBMC_DUP_FIELD},
		{ETH_IPV4 PROTO_TCP "8000 1c 02 0050 ffff 06 08 " VS "0050 005a", OFPBMC_DUP_FIELD},
	};

	clear();
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mod mod = {.match = cases[i].match};

		CHECK_EQ(apply_mod(&mod), -EINVAL);
		if (replied_error() != cases[i].error)
			fprintf(stderr, "case %u: %s\n", i, cases[i].match);
		CHECK_EQ(replied_error(), cases[i].error);
	}
	CHECK_EQ(target.version, 7);
	CHECK_EQ(target.entries, 0);
	clear();
}

static void match_longer_than_its_message_is_refused(void)
{
	static struct bytes bytes;
	struct mod mod = {.match = ETH_IPV4};

	clear();
	bytes.n = 0;
	put_mod(&bytes, &mod);
	bytes.data[51] = 24;
	CHECK_EQ(apply(&bytes), -EINVAL);
	CHECK_EQ(replied_error(), OFPBMC_BAD_LEN);
	bytes.data[51] = 3;
	CHECK_EQ(apply(&bytes), -EINVAL);
	CHECK_EQ(replied_error(), OFPBMC_BAD_LEN);
	bytes.data[49] = 0;
	CHECK_EQ(apply(&bytes), -EINVAL);
	CHECK_EQ(replied_error(), OFPBMC_BAD_TYPE);
	clear();
}

/* ---- instructions ---- */

static void instructions_come_back_in_statistics_as_they_were_sent(void)
{
	static const char *const cases[] = {
		"",
		GOTO_2,
		APPLY("0018") DROP_ACL,
		APPLY("0020") PUSH SET_VID GOTO_1,
		APPLY("0030") PUSH SET_VID SET_PCP,
		APPLY("0010") POP GOTO_1,
		APPLY("0018") OUTPUT_2,
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mod mod = {.instructions = cases[i]};
		static struct bytes expected;

		clear();
		target.controllers = true;
		CHECK_EQ(apply_mod(&mod), 0);
		CHECK_EQ(apply_hex(FLOW_STATS), 0);
		expected.n = 0;
		put_hex(&expected, cases[i]);
		CHECK_EQ(reply_length, 16 + 48 + 8 + expected.n);
		CHECK(!memcmp(reply + 72, expected.data, expected.n));
	}
	clear();
}

static void actions_are_kept_in_their_order_with_their_values(void)
{
	struct mod mod = {.match = "8000 0d 04 1000 1000",
			  .instructions = APPLY("0038") SET_PCP POP PUSH SET_VID GOTO_1};
	struct flow_entry *entry;

	clear();
	CHECK_EQ(apply_mod(&mod), 0);
	entry = only_entry(0);
	REQUIRE(entry);
	CHECK_EQ(entry->n_actions, 4);
	CHECK_EQ(entry->actions[0].type, ACTION_SET_VLAN_PCP);
	CHECK_EQ(entry->actions[0].value, 5);
	CHECK_EQ(entry->actions[1].type, ACTION_POP_VLAN);
	CHECK_EQ(entry->actions[2].type, ACTION_PUSH_VLAN);
	CHECK_EQ(entry->actions[2].value, 0x8100);
	CHECK_EQ(entry->actions[3].type, ACTION_SET_VLAN_VID);
	CHECK_EQ(entry->actions[3].value, 100);
	CHECK_EQ(entry->goto_table, 1);
	clear();
}

static void bad_instructions_get_the_error_that_openflow_names(void)
{
	static const struct {
		const char *instructions;
		u32 error;
		bool controllers;
	} cases[] = {
		{"0001 0008 00 000000", OFPBIC_BAD_TABLE_ID, 0}, /* not forward */
		{"0001 0008 04 000000", OFPBIC_BAD_TABLE_ID, 0}, /* there is no table 4 */
		{"0001 0010 01 000000 0000000000000000", OFPBIC_BAD_LEN, 0},
		{"0001 0004", OFPBIC_BAD_LEN, 0},
		{"0001 0010 01 000000", OFPBIC_BAD_LEN, 0},
		{"0001", OFPBIC_BAD_LEN, 0},
		{GOTO_1 GOTO_2, OFPBIC_UNSUP_INST, 0},
		{"0003 0008 00000000", OFPBIC_UNSUP_INST, 0},
		{"0006 0008 00000001", OFPBIC_UNSUP_INST, 0},
		{"0009 0008 00000001", OFPBIC_UNKNOWN_INST, 0},
		{"ffff 0008 " VS, OFPBIC_BAD_EXPERIMENTER, 0},
		{APPLY("0018") OUTPUT_2, OFPBAC_BAD_TYPE, 0},
		{APPLY("0018") "0000 0010 00000000 0000 000000000000", OFPBAC_BAD_OUT_PORT, 1},
		{APPLY("0018") "0000 0010 00001000 0000 000000000000", OFPBAC_BAD_OUT_PORT, 1},
		{APPLY("0018") "0000 0010 fffffffb 0000 000000000000", OFPBAC_BAD_OUT_PORT, 1},
		{APPLY("0010") "0000 0008 00000001", OFPBAC_BAD_LEN, 1},
		{APPLY("0010") "0016 0008 00000001", OFPBAC_BAD_TYPE, 1},
		{APPLY("0010") "0011 0008 0800 0000", OFPBAC_BAD_ARGUMENT, 0},
		{APPLY("0018") PUSH PUSH, OFPBAC_TOO_MANY, 0},
		{APPLY("0018") SET_VID, OFPBAC_MATCH_INCONSISTENT, 0},
		{APPLY("0020") POP SET_VID, OFPBAC_MATCH_INCONSISTENT, 0},
		{APPLY("0028") PUSH POP SET_VID, OFPBAC_MATCH_INCONSISTENT, 0},
		{APPLY("0020") PUSH "0019 0010 8000 0c 02 0064 000000000000",
		 OFPBAC_BAD_SET_ARGUMENT, 0},
		{APPLY("0020") PUSH "0019 0010 8000 0e 01 08 00000000000000",
		 OFPBAC_BAD_SET_ARGUMENT, 0},
		{APPLY("0020") PUSH "0019 0010 8000 06 06 020000000001 0000", OFPBAC_BAD_SET_TYPE,
		 0},
		{APPLY("0020") PUSH "0019 0010 8000 0d 04 1064 1fff 00000000", OFPBAC_BAD_SET_TYPE,
		 0},
		{APPLY("0020") PUSH "0019 0010 8000 0c 03 1064 000000000000", OFPBAC_BAD_SET_LEN,
		 0},
		{APPLY("0018") PUSH "0019 0008 8000 0c 02", OFPBAC_BAD_SET_LEN, 0},
		{APPLY("0018") "ffff 0010 00004f4e 0001 000d 00000000", OFPBAC_BAD_EXPERIMENTER, 0},
		{APPLY("0018") "ffff 0010 " VS "0004 000d 00000000", OFPBAC_BAD_EXP_TYPE, 0},
		{APPLY("0018") "ffff 0010 " VS "0002 0000 00000000", OFPBAC_BAD_ARGUMENT,
		 0}, /* back */
		{APPLY("0018") "ffff 0010 " VS "0002 000d 00000000", OFPBAC_BAD_ARGUMENT, 0},
		{APPLY("0018") "ffff 0010 " VS "0002 00ff 00000000", OFPBAC_BAD_EXP_TYPE, 1},
		{APPLY("0018") "ffff 0010 " VS "0003 0000 00000000", OFPBAC_BAD_ARGUMENT, 0},
		{APPLY("0018") "ffff 0010 " VS "0003 00ff 00000000", OFPBAC_BAD_EXP_TYPE, 1},
		{APPLY("0018") "ffff 0010 " VS "0001 0000 00000000", OFPBAC_BAD_ARGUMENT, 0},
		{APPLY("0018") "ffff 0010 " VS "0001 0100 00000000", OFPBAC_BAD_ARGUMENT, 0},
		{APPLY("0020") DROP_ACL PUSH, OFPBAC_UNSUPPORTED_ORDER, 0},
		{APPLY("0050") POP POP POP POP POP POP POP POP POP, OFPBAC_TOO_MANY, 0},
		{APPLY("0010") "0012 0004 00000000", OFPBAC_BAD_LEN, 0},
		{APPLY("0010") "0012 0010 00000000", OFPBAC_BAD_LEN, 0},
	};

	clear();
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mod mod = {.instructions = cases[i].instructions};

		target.controllers = cases[i].controllers;
		CHECK_EQ(apply_mod(&mod), -EINVAL);
		if (replied_error() != cases[i].error)
			fprintf(stderr, "case %u: %s\n", i, cases[i].instructions);
		CHECK_EQ(replied_error(), cases[i].error);
	}
	CHECK_EQ(target.version, 7);
	clear();
}

static void pop_from_an_untagged_match_is_inconsistent(void)
{
	struct mod mod = {.match = "8000 0c 02 0000", .instructions = APPLY("0010") POP};

	clear();
	CHECK_EQ(apply_mod(&mod), -EINVAL);
	CHECK_EQ(replied_error(), OFPBAC_MATCH_INCONSISTENT);
	clear();
}

int main(void)
{
	RUN(every_field_comes_back_in_statistics_as_it_was_sent);
	RUN(bad_matches_get_the_error_that_openflow_names);
	RUN(match_longer_than_its_message_is_refused);
	RUN(instructions_come_back_in_statistics_as_they_were_sent);
	RUN(actions_are_kept_in_their_order_with_their_values);
	RUN(bad_instructions_get_the_error_that_openflow_names);
	RUN(pop_from_an_untagged_match_is_inconsistent);
	return check_done();
}
