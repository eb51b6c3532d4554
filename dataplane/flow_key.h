/* The flow key: everything of a frame that a decision may depend on, in 64 bytes.
 *
 * Filled by parse.h from a frame that is already copied (see packet.h); matched by flow_table.c;
 * masked, hashed and compared by flow_cache.c. A mask is a flow_key whose set bits are the bits
 * that matter.
 */
#ifndef VSWITCH_FLOW_KEY_H
#define VSWITCH_FLOW_KEY_H

#include "base.h"

/* vlan_tci: PCP << 13 | VLAN_PRESENT | VID as on a trunk; 0 when there is no tag
 * (OpenFlow 1.3.5, 7.2.3.7: OFPVID_PRESENT is the same bit). A priority tag is VLAN_PRESENT with
 * VID 0. */
#define VLAN_PRESENT 0x1000
#define VLAN_VID_MASK 0x0fff
#define VLAN_PCP_SHIFT 13
#define VLAN_PCP_MASK 0xe000

/* flags */
#define KEY_FRAGMENT 0x01 /* an IP fragment, first or later */
#define KEY_FRAGMENT_LATER 0x02 /* a fragment with offset > 0 */
/* EtherType says IPv4, IPv6 or ARP, but the header is cut or malformed: no IP field is valid */
#define KEY_L3_UNKNOWN 0x04
/* The L4 fields cannot be known: later fragment, cut short, extension headers too long, or L3
 * unknown */
#define KEY_L4_UNKNOWN 0x08
/* no first packet of a connection: TCP but not a bare SYN, ICMP but no echo or timestamp request */
#define KEY_MIDSTREAM 0x10

struct flow_key {
	u8 eth_dst[6];
	u8 eth_src[6];
	be16 eth_type; /* behind the outermost VLAN tag; for a frame with two tags the inner
			  tag's TPID. 802.3 length: 0x05ff */
	be16 vlan_tci; /* of the outermost tag, see above */
	u8 ip_src[16]; /* IPv6; IPv4 in the first four bytes, the rest zero; ARP: sender protocol
			  address */
	u8 ip_dst[16]; /* the same; ARP: target protocol address */
	be16 l4_src; /* TCP, UDP, SCTP source port; ICMP and ICMPv6: type */
	be16 l4_dst; /* destination port; ICMP and ICMPv6: code */
	u8 ip_proto; /* IPv4 protocol; IPv6: behind the extension headers; ARP: low byte of the
			operation */
	u8 ip_tos; /* DSCP and ECN */
	u8 flags; /* KEY_* */
	u8 ip_ttl; /* never part of the cache's key unless a table asks for it */
	u32 in_port; /* port id, host order */
	u32 stage; /* flow_cache: 0, or the output port whose rules need more fields than stage 0
		      kept (+ 1) */
} __attribute__((aligned(8)));

_Static_assert(sizeof(struct flow_key) == 64, "a flow key is one cache line");
#define FLOW_KEY_WORDS 8

/* A key, seen as words: the compiler must know that they are the same memory. */
typedef u64 __attribute__((may_alias)) flow_word;

ALWAYS_INLINE const flow_word *flow_key_words(const struct flow_key *k)
{
	return (const flow_word *)(const void *)k;
}

ALWAYS_INLINE flow_word *flow_key_words_mut(struct flow_key *k)
{
	return (flow_word *)(void *)k;
}

/* out = key & mask */
ALWAYS_INLINE void flow_key_apply(struct flow_key *out, const struct flow_key *key,
				  const struct flow_key *mask)
{
	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		flow_key_words_mut(out)[i] = flow_key_words(key)[i] & flow_key_words(mask)[i];
}

/* into |= more */
ALWAYS_INLINE void flow_key_merge(struct flow_key *into, const struct flow_key *more)
{
	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		flow_key_words_mut(into)[i] |= flow_key_words(more)[i];
}

ALWAYS_INLINE bool flow_key_equal(const struct flow_key *a, const struct flow_key *b)
{
	u64 different = 0;

	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		different |= flow_key_words(a)[i] ^ flow_key_words(b)[i];
	return !different;
}

/* True when every bit of `part` is in `whole`. */
ALWAYS_INLINE bool flow_key_covers(const struct flow_key *whole, const struct flow_key *part)
{
	u64 outside = 0;

	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		outside |= flow_key_words(part)[i] & ~flow_key_words(whole)[i];
	return !outside;
}

/* Two CRC chains folded by a multiplication: 32 bits, not secret (a stranger who collides buckets
 * fills two buckets of eight, not a list). */
ALWAYS_INLINE u32 flow_key_hash(const struct flow_key *key)
{
	const flow_word *w = flow_key_words(key);
	u64 a = __builtin_ia32_crc32di(0x1234567, w[0]),
	    b = __builtin_ia32_crc32di(0x89abcdef, w[1]);

	a = __builtin_ia32_crc32di(a, w[2]);
	b = __builtin_ia32_crc32di(b, w[3]);
	a = __builtin_ia32_crc32di(a, w[4]);
	b = __builtin_ia32_crc32di(b, w[5]);
	a = __builtin_ia32_crc32di(a, w[6]);
	b = __builtin_ia32_crc32di(b, w[7]);
	return (u32)__builtin_ia32_crc32di(a, b * 0x9e3779b97f4a7c15ull);
}

#endif
