/* From a frame's header copy to its flow key: see parse.h.
 *
 * Reads a stranger's bytes, already copied. Worker threads, and the control thread for a trace.
 * Never fails, never allocates, never reads outside header[0 … header_length).
 *
 * What a cut or hostile header becomes, so that no rule on ports can be walked around:
 * - The transport header must lie wholly inside the bytes there *and* inside what IP says is its
 *   packet (padding is no header): 20 bytes for TCP, 12 for SCTP, 8 for UDP, 4 for ICMP; else
 *   KEY_L4_UNKNOWN. An IP length beyond the end of the frame alone does not make the fields
 *   unknown: receivers drop such a packet, and its ports are matched as they stand.
 * - IPv6: when the chain of extension headers cannot be followed to its end, ip_proto is the number
 *   of the header where the walk stopped (0, 43, 44, 51 or 60) and KEY_L4_UNKNOWN is set: the
 *   protocol itself is unknown then. A later fragment has the next header that its fragment header
 *   names, which can be one of these too. A jumbogram (payload length 0) counts as cut short.
 * - Protocols without ports or types (GRE, ESP, no next header, …) have no L4 fields: zero, and not
 *   "unknown".
 */
#include "parse.h"

#define ETHERNET 14
#define ETHERNET_TYPE 12
#define TAG 4
#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_VLAN 0x8100
#define TYPE_IPV6 0x86dd
#define TYPE_SERVICE_VLAN 0x88a8
#define TYPE_MIN 0x0600 /* smaller: an 802.3 length */
#define TYPE_LENGTH 0x05ff /* what stands for one in the key (OpenFlow 1.3.5, 7.2.3.8) */

#define IPV4 20
#define IPV4_MORE 0x2000
#define IPV4_OFFSET 0x1fff
#define IPV6 40
#define ARP 28 /* of Ethernet and IPv4 */
#define EXTENSIONS_MAX 8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum protocol {
	HOP_BY_HOP = 0,
	ICMP = 1,
	TCP = 6,
	UDP = 17,
	ROUTING = 43,
	FRAGMENT = 44,
	AUTHENTICATION = 51,
	ICMPV6 = 58,
	DESTINATION = 60,
	SCTP = 132,
};

/* The one place that knows where the bytes end. */
struct cursor {
	const u8 *base;
	u32 at;
	u32 have;  /* bytes copied */
	u32 limit; /* bytes that belong to what is being read: the frame's, then the IP packet's */
	bool more; /* something was asked for that the frame has and the copy has not */
};

/* The next `n` bytes, or NULL. Does not move. */
ALWAYS_INLINE const u8 *peek(struct cursor *cursor, u32 n)
{
	if (likely(cursor->at + n <= cursor->have && cursor->at + n <= cursor->limit))
		return cursor->base + cursor->at;
	if (cursor->at + n <= cursor->limit)
		cursor->more = true;
	return NULL;
}

ALWAYS_INLINE be16 load16(const u8 *p)
{
	return LOAD_UNALIGNED(be16, p);
}

ALWAYS_INLINE u16 read16(const u8 *p)
{
	return be16_to_cpu(LOAD_UNALIGNED(be16, p));
}

/* Nothing behind the IP (or ARP) header goes beyond `length` bytes from its start. */
ALWAYS_INLINE void set_limit(struct cursor *cursor, u32 from, u32 length)
{
	if (from + length < cursor->limit)
		cursor->limit = from + length;
}

static void parse_tcp(struct cursor *cursor, struct packet *packet, const u8 *header)
{
	u32 length = (u32)(header[12] >> 4) * 4;

	if (length >= 20 && cursor->at + length <= cursor->limit)
		packet->payload = (u16)(cursor->at + length);
}

/* KEY_MIDSTREAM, or 0. */
ALWAYS_INLINE u8 tcp_midstream(u8 flags)
{
	return (flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN ? 0 : KEY_MIDSTREAM;
}

static u8 icmp_midstream(u8 protocol, u8 type)
{
	bool request = protocol == ICMP ? type == 8 || type == 13 : type == 128;

	return request ? 0 : KEY_MIDSTREAM;
}

static void parse_l4(struct cursor *cursor, struct packet *packet, struct flow_key *key)
{
	u32 needed;
	const u8 *header;

	switch (key->ip_proto) {
	case TCP:
		needed = 20;
		break;
	case SCTP:
		needed = 12;
		break;
	case UDP:
		needed = 8;
		break;
	case ICMP:
	case ICMPV6:
		needed = 4;
		break;
	default:
		return;
	}
	header = peek(cursor, needed);
	if (!header) {
		key->flags |= KEY_L4_UNKNOWN;
		return;
	}
	packet->l4 = (u16)cursor->at;
	if (needed == 4) {
		key->l4_src = cpu_to_be16(header[0]);
		key->l4_dst = cpu_to_be16(header[1]);
		key->flags |= icmp_midstream(key->ip_proto, header[0]);
		/* What an error quotes shall be in the copy, too: IPv6's header, or IPv4's with all
		 * its options, and eight bytes. */
		(void)peek(cursor, 8 + (key->ip_proto == ICMP ? 60 : IPV6) + 8);
		return;
	}
	key->l4_src = load16(header);
	key->l4_dst = load16(header + 2);
	if (key->ip_proto == TCP) {
		parse_tcp(cursor, packet, header);
		key->flags |= tcp_midstream(header[13]);
	} else {
		packet->payload = (u16)(cursor->at + needed);
	}
}

static void l3_unknown(struct flow_key *key)
{
	key->flags |= KEY_L3_UNKNOWN | KEY_L4_UNKNOWN;
}

static void parse_ipv4(struct cursor *cursor, struct packet *packet, struct flow_key *key)
{
	const u8 *header = peek(cursor, IPV4);
	u32 length, total;
	u16 fragment;

	if (!header || header[0] >> 4 != 4) {
		l3_unknown(key);
		return;
	}
	length = (u32)(header[0] & 15) * 4;
	total = read16(header + 2);
	if (length < IPV4 || total < length || !peek(cursor, length)) {
		l3_unknown(key);
		return;
	}
	packet->l3 = (u16)cursor->at;
	memcpy(key->ip_src, header + 12, 4);
	memcpy(key->ip_dst, header + 16, 4);
	key->ip_proto = header[9];
	key->ip_tos = header[1];
	key->ip_ttl = header[8];
	fragment = read16(header + 6);
	if (fragment & (IPV4_MORE | IPV4_OFFSET))
		key->flags |= KEY_FRAGMENT;
	if (fragment & IPV4_OFFSET) {
		key->flags |= KEY_FRAGMENT_LATER | KEY_L4_UNKNOWN;
		return;
	}
	set_limit(cursor, cursor->at, total);
	cursor->at += length;
	parse_l4(cursor, packet, key);
}

static bool is_extension(u8 protocol)
{
	return protocol == HOP_BY_HOP || protocol == ROUTING || protocol == FRAGMENT ||
	       protocol == AUTHENTICATION || protocol == DESTINATION;
}

/* Steps over one extension header. Returns false where the walk ends: the header is cut, or what
 * follows is another packet's. */
static bool skip_extension(struct cursor *cursor, struct flow_key *key)
{
	const u8 *header = peek(cursor, 8);
	u32 length;

	if (!header)
		return false;
	switch (key->ip_proto) {
	case FRAGMENT:
		length = 8;
		if (read16(header + 2) & ~6u) /* not an atomic fragment (RFC 6946) */
			key->flags |= KEY_FRAGMENT;
		if (read16(header + 2) & 0xfff8) {
			key->flags |= KEY_FRAGMENT_LATER;
			key->ip_proto = header[0];
			return false;
		}
		break;
	case AUTHENTICATION:
		length = ((u32)header[1] + 2) * 4;
		break;
	default:
		length = ((u32)header[1] + 1) * 8;
	}
	if (!peek(cursor, length))
		return false;
	key->ip_proto = header[0];
	cursor->at += length;
	return true;
}

static void parse_ipv6(struct cursor *cursor, struct packet *packet, struct flow_key *key)
{
	const u8 *header = peek(cursor, IPV6);

	if (!header || header[0] >> 4 != 6) {
		l3_unknown(key);
		return;
	}
	packet->l3 = (u16)cursor->at;
	memcpy(key->ip_src, header + 8, 16);
	memcpy(key->ip_dst, header + 24, 16);
	key->ip_proto = header[6];
	key->ip_tos = (u8)(read16(header) >> 4);
	key->ip_ttl = header[7];
	set_limit(cursor, cursor->at, IPV6 + (u32)read16(header + 4));
	cursor->at += IPV6;
	for (int i = 0; is_extension(key->ip_proto); i++)
		if (i == EXTENSIONS_MAX || !skip_extension(cursor, key)) {
			key->flags |= KEY_L4_UNKNOWN;
			return;
		}
	parse_l4(cursor, packet, key);
}

static void parse_arp(struct cursor *cursor, struct packet *packet, struct flow_key *key)
{
	static const u8 ethernet_ipv4[6] = {0, 1, 8, 0, 6, 4};
	const u8 *header = peek(cursor, ARP);

	if (!header || memcmp(header, ethernet_ipv4, sizeof(ethernet_ipv4)) != 0) {
		l3_unknown(key);
		return;
	}
	packet->l3 = (u16)cursor->at;
	key->ip_proto =
		header[6] ? 0 : header[7]; /* operations beyond 255 are none that anybody answers */
	memcpy(key->ip_src, header + 14, 4);
	memcpy(key->ip_dst, header + 24, 4);
}

static void parse_l3(struct cursor *cursor, struct packet *packet, struct flow_key *key, u16 type)
{
	switch (type) {
	case TYPE_IPV4:
		parse_ipv4(cursor, packet, key);
		break;
	case TYPE_IPV6:
		parse_ipv6(cursor, packet, key);
		break;
	case TYPE_ARP:
		parse_arp(cursor, packet, key);
		break;
	default:
		break;
	}
}

/* The type behind an 802.3 length: SNAP's when its organisation is Ethernet's (OpenFlow 1.3.5,
 * 7.2.3.8). */
static u16 parse_snap(struct cursor *cursor)
{
	static const u8 snap[6] = {0xaa, 0xaa, 3, 0, 0, 0};
	const u8 *header = peek(cursor, 8);

	if (!header || memcmp(header, snap, sizeof(snap)) != 0 || read16(header + 6) < TYPE_MIN)
		return TYPE_LENGTH;
	cursor->at += 8;
	return read16(header + 6);
}

static bool is_tag(u16 type)
{
	return type == TYPE_VLAN || type == TYPE_SERVICE_VLAN;
}

/* Behind the MAC addresses, for what the short cut does not take. */
static NOINLINE void parse_slow(struct cursor *cursor, struct packet *packet, struct flow_key *key)
{
	struct flow_key inner;
	const u8 *header;
	u16 type = read16(cursor->base + ETHERNET_TYPE);

	cursor->at = ETHERNET;
	if (is_tag(type)) {
		header = peek(cursor, TAG);
		if (!header) {
			/* Half a tag is no tag; what follows is nothing. */
			key->eth_type = cpu_to_be16(type);
			l3_unknown(key);
			return;
		}
		key->vlan_tci = (be16)(load16(header) | cpu_to_be16(VLAN_PRESENT));
		type = read16(header + 2);
		packet->tags = 1;
		cursor->at += TAG;
	}
	if (packet->tags && is_tag(type)) {
		key->eth_type = cpu_to_be16(type);
		header = peek(cursor, TAG);
		if (!header)
			return;
		packet->tags = 2;
		cursor->at += TAG;
		/* Nothing of the inner packet is in the key, but its checksum and segmentation
		 * requests are checked. */
		memset(&inner, 0, sizeof(inner));
		parse_l3(cursor, packet, &inner, read16(header + 2));
		return;
	}
	if (type < TYPE_MIN)
		type = parse_snap(cursor);
	key->eth_type = cpu_to_be16(type);
	parse_l3(cursor, packet, key, type);
}

/* The bulk of all frames: untagged IPv4 without options, whole, TCP or UDP. Returns false for
 * anything else, with nothing written that the slow way does not write again. */
ALWAYS_INLINE bool parse_fast(struct packet *packet, const u8 *header, struct flow_key *key)
{
	const u8 *ip = header + ETHERNET, *l4 = ip + IPV4;
	u32 total, tcp_length, l4_length;
	u8 midstream = 0;

	if (packet->header_length < ETHERNET + IPV4 + 8 ||
	    load16(header + ETHERNET_TYPE) != cpu_to_be16(TYPE_IPV4) || ip[0] != 0x45 ||
	    (load16(ip + 6) & cpu_to_be16(IPV4_MORE | IPV4_OFFSET)))
		return false;
	total = read16(ip + 2);
	if (ip[9] == TCP) {
		if (packet->header_length < ETHERNET + IPV4 + 20)
			return false;
		tcp_length = (u32)(l4[12] >> 4) * 4;
		if (tcp_length < 20)
			return false;
		l4_length = tcp_length;
		midstream = tcp_midstream(l4[13]);
	} else if (ip[9] == UDP) {
		l4_length = 8;
	} else {
		return false;
	}
	if (total < IPV4 + l4_length || ETHERNET + IPV4 + l4_length > packet->length)
		return false;
	key->eth_type = cpu_to_be16(TYPE_IPV4);
	memcpy(key->ip_src, ip + 12, 4);
	memcpy(key->ip_dst, ip + 16, 4);
	key->l4_src = load16(l4);
	key->l4_dst = load16(l4 + 2);
	key->ip_proto = ip[9];
	key->ip_tos = ip[1];
	key->ip_ttl = ip[8];
	key->flags = midstream;
	packet->l3 = ETHERNET;
	packet->l4 = ETHERNET + IPV4;
	packet->payload = (u16)(ETHERNET + IPV4 + l4_length);
	return true;
}

bool parse_packet(struct packet *packet, u32 in_port, struct flow_key *key, bool final)
{
	const u8 *header = packet->header;
	struct cursor cursor = {
		.base = header, .have = packet->header_length, .limit = packet->length};

	memset(key, 0, sizeof(*key));
	key->in_port = in_port;
	packet->l3 = packet->l4 = packet->payload = 0;
	packet->tags = 0;
	if (unlikely(packet->header_length < ETHERNET)) {
		l3_unknown(key);
		return true;
	}
	memcpy(key->eth_dst, header, 6);
	memcpy(key->eth_src, header + 6, 6);
	if (likely(parse_fast(packet, header, key)))
		return true;
	parse_slow(&cursor, packet, key);
	return final || !cursor.more || packet->header_length >= PACKET_HEADER_MAX;
}
