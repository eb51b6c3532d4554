/* OpenFlow orders from a stranger: whatever the bytes, tables stay consistent, and an order in
 * error changes nothing.
 *
 * Input: a byte (1: a controller's tables), then orders, each a big-endian length of two bytes and
 * that many bytes of messages. After each order: the counts agree; every entry's match and
 * instructions survive being written and read again; every entry is found, or hidden by one that
 * has no lower priority. Built with libFuzzer: clang-14 -fsanitize=fuzzer,address,undefined
 * fuzz_openflow.c dataplane/{flow_t,openflow}*.c
 */
#include <stdlib.h>

#include "../../dataplane/openflow_wire.h"

#define TABLES 8
#define MUST(condition)           \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

static struct flow_table *tables[TABLES];
static struct openflow_target target;
static u8 reply[1 << 16];

static void no_readers(void *context)
{
	(void)context;
}

static void free_entry(struct flow_entry *entry)
{
	free(entry);
}

static void check_match(const struct flow_match *match)
{
	struct flow_match again;
	u8 bytes[OFP_MATCH_MAX];
	u32 length = openflow_match_encode(match, bytes), used;

	MUST(!openflow_match_decode(&again, bytes, length, target.controllers, &used));
	MUST(used == length && flow_match_equal(&again, match));
}

static void check_instructions(const struct flow_entry *entry)
{
	struct flow_entry again = *entry;
	u8 bytes[OFP_INSTRUCTIONS_MAX];
	u32 length = openflow_instructions_encode(entry, bytes);

	MUST(!openflow_instructions_decode(&again, bytes, length, &target));
	MUST(again.goto_table == entry->goto_table && again.n_actions == entry->n_actions);
	for (u32 i = 0; i < entry->n_actions; i++)
		MUST(again.actions[i].type == entry->actions[i].type &&
		     again.actions[i].value == entry->actions[i].value);
}

struct sums {
	u32 entries;
	u64 cookies, priorities;
};

static bool check_entry(struct flow_entry *entry, void *context)
{
	struct flow_key key = entry->match.key;
	const struct flow_entry *found;
	struct sums *sums = context;

	sums->entries++;
	sums->cookies += entry->cookie * (entry->priority + 1u);
	sums->priorities += entry->priority + (entry->goto_table << 16) + (entry->n_actions << 24);
	check_match(&entry->match);
	check_instructions(entry);
	if (entry->match.range_src)
		key.l4_src = cpu_to_be16(entry->match.src_max);
	if (entry->match.range_dst)
		key.l4_dst = cpu_to_be16(entry->match.dst_max);
	found = flow_table_lookup(tables[entry->table], &key, target.version, NULL);
	MUST(found && found->priority >= entry->priority);
	found = flow_table_find(tables[entry->table], &entry->match, entry->priority);
	MUST(found == entry);
	return true;
}

static struct sums check_tables(void)
{
	struct sums sums = {0};

	for (u32 i = 0; i < TABLES; i++)
		if (tables[i])
			flow_table_each(tables[i], check_entry, &sums);
	MUST(sums.entries == target.entries);
	return sums;
}

static void apply_order(const u8 *data, u32 length)
{
	struct sums before = check_tables(), after;
	u64 version = target.version;
	u8 *copy = malloc(length ? length : 1);
	u32 reply_length;
	int error;

	memcpy(copy, data, length);
	error = openflow_apply(&target, copy, length, reply, sizeof(reply), &reply_length);
	free(copy);
	MUST(!error || error == -EINVAL || error == -E2BIG);
	MUST(reply_length <= sizeof(reply));
	after = check_tables();
	if (!error)
		return;
	MUST(target.version == version);
	MUST(!memcmp(&before, &after, sizeof(before)));
	MUST(error == -E2BIG ? !reply_length : reply_length >= sizeof(struct ofp_error_msg));
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	size_t at = 1;

	if (!size)
		return 0;
	target = (struct openflow_target){.tables = tables,
					  .n_tables = TABLES,
					  .version = 1,
					  .entries_max = 64,
					  .controllers = data[0] & 1};
	while (at + 2 <= size) {
		size_t length = (size_t)data[at] << 8 | data[at + 1];

		at += 2;
		if (length > size - at)
			length = size - at;
		apply_order(data + at, (u32)length);
		at += length;
		if (at & 1)
			for (u32 i = 0; i < TABLES; i++)
				if (tables[i])
					flow_table_reclaim(tables[i], target.version, no_readers,
							   NULL, free_entry);
	}
	for (u32 i = 0; i < TABLES; i++) {
		flow_table_free(tables[i]);
		tables[i] = NULL;
	}
	return 0;
}
