/* What the flow table's tests share: entries, and keys and matches from small sets, so that entries
 * overlap and keys hit. */
#ifndef VSWITCH_TESTS_FLOW_ENTRIES_H
#define VSWITCH_TESTS_FLOW_ENTRIES_H

#include <stdlib.h>

#include "../../dataplane/flow_table.h"
#include "check.h"

static u32 graces, freed;

static inline void no_readers(void *context)
{
	(void)context;
	graces++;
}

static inline void free_entry(struct flow_entry *entry)
{
	freed++;
	free(entry);
}

static inline struct flow_entry *entry_of(const struct flow_match *match, u16 priority, u64 version)
{
	struct flow_entry *entry = calloc(1, sizeof(*entry));

	entry->match = *match;
	entry->priority = priority;
	entry->added = version;
	entry->goto_table = FLOW_GOTO_NONE;
	return entry;
}

static inline void fit(struct flow_match *match)
{
	flow_key_apply(&match->key, &match->key, &match->mask);
}

static inline be32 prefix4(u32 bits)
{
	return bits ? cpu_to_be32(0xffffffffu << (32 - bits)) : 0;
}

static inline void set_ip(u8 *field, be32 value)
{
	memcpy(field, &value, sizeof(value));
}

/* Values from small sets, so that entries overlap and keys hit. */
static inline void random_key(struct flow_key *key)
{
	memset(key, 0, sizeof(*key));
	key->eth_dst[5] = (u8)check_random(4);
	key->eth_src[5] = (u8)check_random(4);
	key->eth_type = cpu_to_be16(check_random(4) ? 0x0800 : 0x86dd);
	key->vlan_tci = check_random(2) ? 0 : cpu_to_be16((u16)(VLAN_PRESENT | check_random(8)));
	set_ip(key->ip_src, cpu_to_be32(0x0a000000 | check_random(4) << 22 | check_random(64)));
	set_ip(key->ip_dst, cpu_to_be32(0x0a000000 | check_random(4) << 22 | check_random(64)));
	key->l4_src = cpu_to_be16((u16)check_random(64));
	key->l4_dst = cpu_to_be16((u16)(check_random(64) << check_random(8)));
	key->ip_proto = check_random(2) ? 6 : 17;
	key->ip_tos = (u8)check_random(4);
	key->flags = check_random(8) ? 0 : KEY_L4_UNKNOWN;
	key->in_port = check_random(4);
}

static inline void random_range(u16 *min, u16 *max)
{
	u16 a = (u16)(check_random(64) << check_random(8)),
	    b = (u16)(check_random(64) << check_random(8));

	*min = a < b ? a : b;
	*max = a < b ? b : a;
}

static inline void random_match(struct flow_match *match)
{
	struct flow_key *mask = &match->mask;

	memset(match, 0, sizeof(*match));
	random_key(&match->key);
	if (!check_random(3))
		memset(mask->eth_dst, 0xff, 6);
	if (!check_random(6))
		mask->eth_src[5] = (u8)check_random(256);
	if (check_random(2))
		mask->eth_type = 0xffff;
	if (!check_random(3))
		mask->vlan_tci = cpu_to_be16(
			(u16)(VLAN_PRESENT | (VLAN_VID_MASK << check_random(4) & 0xfff)));
	if (check_random(2))
		set_ip(mask->ip_src, prefix4(check_random(33)));
	if (check_random(2))
		set_ip(mask->ip_dst, prefix4(check_random(33)));
	if (check_random(2))
		mask->ip_proto = 0xff;
	if (!check_random(8))
		mask->ip_tos = (u8)check_random(256);
	if (!check_random(8))
		mask->flags = KEY_L4_UNKNOWN;
	if (!check_random(8))
		mask->in_port = 0xffffffff;
	switch (check_random(4)) {
	case 0:
		mask->l4_dst = 0xffff;
		break;
	case 1:
		match->range_dst = true;
		random_range(&match->dst_min, &match->dst_max);
		break;
	case 2:
		match->range_src = true;
		random_range(&match->src_min, &match->src_max);
		break;
	}
	fit(match);
}

static inline void reclaim_all(struct flow_table *table, u64 version)
{
	flow_table_reclaim(table, version, no_readers, NULL, free_entry);
}

static inline int table_priority(const struct flow_table *table, const struct flow_key *key,
				 u64 version)
{
	const struct flow_entry *entry = flow_table_lookup(table, key, version, NULL);

	return entry ? entry->priority : -1;
}

#endif
