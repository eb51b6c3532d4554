/* What the OpenFlow tests share: tables without a switch around them, messages written as
 * hexadecimal text.
 *
 * Included by one test program each; what it keeps is that program's own.
 */
#ifndef VSWITCH_TESTS_OPENFLOW_BYTES_H
#define VSWITCH_TESTS_OPENFLOW_BYTES_H

#include <stdlib.h>

#include "../../dataplane/openflow_wire.h"
#include "check.h"

#define TABLES 4

/* ---- a switch of tables only ---- */

static struct flow_table *tables[TABLES];
static struct openflow_target target;
static u8 reply[1 << 20];
static u32 reply_length;
static u32 flushes;

static inline void flush(void *context)
{
	(void)context;
	flushes++;
}

static inline void no_readers(void *context)
{
	(void)context;
}

static inline void free_entry(struct flow_entry *entry)
{
	free(entry);
}

static inline void clear(void)
{
	for (u32 i = 0; i < TABLES; i++) {
		flow_table_free(tables[i]);
		tables[i] = NULL;
	}
	target = (struct openflow_target){.tables = tables,
					  .n_tables = TABLES,
					  .version = 7,
					  .entries_max = 100,
					  .flush = flush};
}

static inline void reclaim_all(void)
{
	for (u32 i = 0; i < TABLES; i++)
		if (tables[i])
			flow_table_reclaim(tables[i], target.version, no_readers, NULL, free_entry);
}

/* ---- messages ---- */

struct bytes {
	u8 data[1 << 16];
	u32 n;
};

static inline void put(struct bytes *bytes, const void *data, u32 n)
{
	memcpy(bytes->data + bytes->n, data, n);
	bytes->n += n;
}

/* Digits in pairs; blanks are skipped. */
static inline void put_hex(struct bytes *bytes, const char *hex)
{
	u32 digits = 0;
	u8 byte = 0;

	for (; *hex; hex++) {
		if (*hex == ' ')
			continue;
		byte = (u8)(byte << 4 | (*hex <= '9' ? *hex - '0' : *hex - 'a' + 10));
		if (++digits % 2 == 0)
			bytes->data[bytes->n++] = byte;
	}
}

static inline void put_match(struct bytes *bytes, const char *oxms)
{
	u32 start = bytes->n;
	u16 length;

	put_hex(bytes, "0001 0000");
	put_hex(bytes, oxms);
	length = cpu_to_be16((u16)(bytes->n - start));
	memcpy(bytes->data + start + 2, &length, 2);
	while ((bytes->n - start) % 8)
		bytes->data[bytes->n++] = 0;
}

static inline void end_message(struct bytes *bytes, u32 start)
{
	u16 length = cpu_to_be16((u16)(bytes->n - start));

	memcpy(bytes->data + start + 2, &length, 2);
}

struct mod {
	u8 command, table;
	u16 priority, flags;
	u64 cookie, cookie_mask;
	const char *match, *instructions; /* hex; NULL: none */
	u32 out_port; /* 0: any */
};

static inline void put_mod(struct bytes *bytes, const struct mod *mod)
{
	struct ofp_flow_mod wire = {.header = {OFP_VERSION, OFPT_FLOW_MOD, 0, cpu_to_be32(0xabcd)},
				    .cookie = cpu_to_be64(mod->cookie),
				    .cookie_mask = cpu_to_be64(mod->cookie_mask),
				    .table_id = mod->table,
				    .command = mod->command,
				    .priority = cpu_to_be16(mod->priority),
				    .buffer_id = 0xffffffff,
				    .out_port = mod->out_port ? cpu_to_be32(mod->out_port) :
								OFPP_ANY,
				    .out_group = OFPG_ANY,
				    .flags = cpu_to_be16(mod->flags)};
	u32 start = bytes->n;

	put(bytes, &wire, sizeof(wire));
	put_match(bytes, mod->match ? mod->match : "");
	if (mod->instructions)
		put_hex(bytes, mod->instructions);
	end_message(bytes, start);
}

static inline int apply(const struct bytes *bytes)
{
	/* Exactly as long as it is, so that a sanitizer sees a byte too many. */
	u8 *copy = malloc(bytes->n ? bytes->n : 1);
	int error;

	memcpy(copy, bytes->data, bytes->n);
	error = openflow_apply(&target, copy, bytes->n, reply, sizeof(reply), &reply_length);
	free(copy);
	return error;
}

static inline int apply_mod(const struct mod *mod)
{
	static struct bytes bytes;

	bytes.n = 0;
	put_mod(&bytes, mod);
	return apply(&bytes);
}

static inline int apply_hex(const char *hex)
{
	static struct bytes bytes;

	bytes.n = 0;
	put_hex(&bytes, hex);
	return apply(&bytes);
}

/* Type and code of the error that the reply holds; 0: another reply, or none. */
static u32 replied_error(void)
{
	struct ofp_error_msg error;

	if (reply_length < sizeof(error) || reply[1] != OFPT_ERROR)
		return 0;
	memcpy(&error, reply, sizeof(error));
	CHECK_EQ(be16_to_cpu(error.header.length), reply_length);
	return OFP_ERROR(be16_to_cpu(error.type), be16_to_cpu(error.code));
}

#define FLOW_STATS                                                                      \
	"04 12 0038 00000007 0001 0000 00000000  ff 000000 ffffffff ffffffff 00000000 " \
	"0000000000000000 0000000000000000  0001 0004 00000000"

static struct flow_entry *found_entry;
static u32 found_entries;

static inline bool remember(struct flow_entry *entry, void *context)
{
	(void)context;
	found_entry = entry;
	found_entries++;
	return true;
}

static inline struct flow_entry *only_entry(u32 table)
{
	found_entry = NULL;
	found_entries = 0;
	if (tables[table])
		flow_table_each(tables[table], remember, NULL);
	return found_entries == 1 ? found_entry : NULL;
}

/* A sum over all entries that differs when any of them does; not their age. */
static inline u64 fingerprint(void)
{
	u64 sum = 0;

	CHECK_EQ(apply_hex(FLOW_STATS), 0);
	for (u32 at = 16; at < reply_length;) {
		struct ofp_flow_stats stats;
		u64 hash = 14695981039346656037ull;
		u32 length;

		memcpy(&stats, reply + at, sizeof(stats));
		length = be16_to_cpu(stats.length);
		memset(reply + at + 4, 0, 8);
		for (u32 i = 0; i < length; i++)
			hash = (hash ^ reply[at + i]) * 1099511628211ull;
		sum += hash;
		at += length;
	}
	return sum;
}

#define ETH_IPV4 "8000 0a 02 0800 "
#define ETH_IPV6 "8000 0a 02 86dd "
#define ETH_ARP "8000 0a 02 0806 "
#define PROTO_TCP "8000 14 01 06 "
#define VS "ff767377 "
#define GOTO_1 "0001 0008 01 000000 "
#define GOTO_2 "0001 0008 02 000000 "

#define APPLY(length) "0004 " length " 00000000 "
#define PUSH "0011 0008 8100 0000 "
#define POP "0012 0008 00000000 "
#define SET_VID "0019 0010 8000 0c 02 1064 000000000000 "
#define SET_PCP "0019 0010 8000 0e 01 05 00000000000000 "
#define DROP_ACL "ffff 0010 " VS "0001 000d 00000000 "
#define OUTPUT_2 "0000 0010 00000002 0000 000000000000 "

#endif
