/* What a frame says about connections: its ends, its TCP flags, the packet that an ICMP error quotes, its fragment.
 *
 * Reads a stranger's header copy, which parse.c has been through: offsets are its own. Worker
 * threads, and the control thread for a trace. Never fails: what cannot be read is untracked.
 */
#include "connection.h"

#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86dd
#define IPV4 20
#define IPV6 40
#define TCP 6
#define ICMP 1
#define ICMPV6 58
#define FRAGMENT 44
#define AUTHENTICATION 51
#define EXTENSIONS_MAX 8

/* Where the fields of an IP packet are, as bytes of a header copy; an error's quote is one too. */
struct ends {
	const u8 *source, *destination;
	be16 ports[2]; /* source, destination */
	u8 proto, family;
};

static u16 read16(const u8 *p)
{
	return be16_to_cpu(LOAD_UNALIGNED(be16, p));
}

static bool has_ports(u8 proto)
{
	return proto == TCP || proto == 17 || proto == 132;
}

/* The messages that carry an identifier: echo and timestamp, and their replies. */
static bool has_identifier(u8 proto, u8 type)
{
	if (proto == ICMP)
		return type == 0 || type == 8 || type == 13 || type == 14;
	return type == 128 || type == 129;
}

static bool is_error(u8 proto, u8 type)
{
	if (proto == ICMP)
		return type == 3 || type == 4 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

/* The end of the IP packet, as far as it is in the header copy. */
static u32 end_of_packet(const struct packet *packet, u8 family)
{
	const u8 *ip = packet->header + packet->l3;
	u32 end = packet->l3 + (family == 4 ? read16(ip + 2) : IPV6 + (u32)read16(ip + 4));

	return end < packet->header_length ? end : packet->header_length;
}

/* Puts the smaller end first. Returns the place of the source. */
static u8 set_tuple(struct connection_tuple *tuple, const struct ends *ends)
{
	u32 size = ends->family == 4 ? 4 : 16;
	int order = memcmp(ends->source, ends->destination, size);
	u8 side;

	if (!order)
		order = (int)be16_to_cpu(ends->ports[0]) - (int)be16_to_cpu(ends->ports[1]);
	side = order > 0;
	memcpy(tuple->address[side], ends->source, size);
	memcpy(tuple->address[!side], ends->destination, size);
	tuple->port[side] = ends->ports[0];
	tuple->port[!side] = ends->ports[1];
	tuple->proto = ends->proto;
	tuple->family = ends->family;
	return side;
}

/* The packet that an ICMP error quotes, from `at` on: its header and eight bytes of what follows. */
static bool read_quote(const u8 *header, u32 at, u32 length, struct ends *ends)
{
	u32 size;

	if (at + 1 > length || header[at] >> 4 != ends->family)
		return false;
	size = ends->family == 4 ? (u32)(header[at] & 15) * 4 : IPV6;
	if (size < IPV4 || at + size + 8 > length)
		return false;
	if (ends->family == 4 && read16(header + at + 6) & 0x1fff)
		return false; /* a later fragment: its ports are not here */
	ends->proto = ends->family == 4 ? header[at + 9] : header[at + 6];
	ends->source = header + at + (ends->family == 4 ? 12 : 8);
	ends->destination = header + at + (ends->family == 4 ? 16 : 24);
	at += size;
	ends->ports[0] = ends->ports[1] = 0;
	if (has_ports(ends->proto)) {
		ends->ports[0] = LOAD_UNALIGNED(be16, header + at);
		ends->ports[1] = LOAD_UNALIGNED(be16, header + at + 2);
	} else if (ends->proto == ICMP || ends->proto == ICMPV6) {
		if (!has_identifier(ends->proto, header[at]))
			return false;
		ends->ports[0] = ends->ports[1] = LOAD_UNALIGNED(be16, header + at + 4);
	}
	return true;
}

/* The identification of a fragment. */
static bool read_identification(struct connection_frame *frame, const struct packet *packet)
{
	const u8 *header = packet->header;
	u32 at = packet->l3, next, size;

	if (frame->tuple.family == 4) {
		frame->fragment = read16(header + at + 4);
		return true;
	}
	next = header[at + 6];
	at += IPV6;
	for (u32 i = 0; i < EXTENSIONS_MAX && at + 8 <= packet->header_length; i++) {
		if (next == FRAGMENT) {
			frame->fragment = be32_to_cpu(LOAD_UNALIGNED(be32, header + at + 4));
			return true;
		}
		size = next == AUTHENTICATION ? ((u32)header[at + 1] + 2) * 4 :
						((u32)header[at + 1] + 1) * 8;
		next = header[at];
		at += size;
	}
	return false;
}

/* ICMP: an identifier stands where others have ports; an error belongs to what it quotes. */
static void read_icmp(struct connection_frame *frame, const struct flow_key *key,
		      const struct packet *packet, struct ends *ends)
{
	u8 type = (u8)be16_to_cpu(key->l4_src);
	struct ends quoted = {.family = ends->family};
	u32 length = end_of_packet(packet, ends->family);

	frame->kind = FRAME_UNTRACKED;
	if (!packet->l4 || packet->l4 + 8u > length)
		return;
	if (has_identifier(ends->proto, type)) {
		ends->ports[0] = ends->ports[1] =
			LOAD_UNALIGNED(be16, packet->header + packet->l4 + 4);
		frame->kind = FRAME_PLAIN;
		return;
	}
	if (!is_error(ends->proto, type) ||
	    !read_quote(packet->header, packet->l4 + 8u, length, &quoted))
		return;
	/* It goes to whom it tells of: to the sender of what it quotes. */
	if (memcmp(quoted.source, ends->destination, ends->family == 4 ? 4 : 16) != 0)
		return;
	*ends = quoted;
	frame->kind = FRAME_ERROR;
}

void connection_frame_read(struct connection_frame *frame, const struct flow_key *key,
			   const struct packet *packet, u32 zone)
{
	u16 type = be16_to_cpu(key->eth_type);
	struct ends ends = {.source = key->ip_src,
			    .destination = key->ip_dst,
			    .ports = {key->l4_src, key->l4_dst},
			    .proto = key->ip_proto,
			    .family = type == TYPE_IPV4 ? 4 : 6};
	bool icmp = key->ip_proto == (type == TYPE_IPV4 ? ICMP : ICMPV6);

	memset(frame, 0, sizeof(*frame));
	frame->cacheable = true;
	/* Nobody answers from a group's address. */
	if ((type != TYPE_IPV4 && type != TYPE_IPV6) || key->eth_dst[0] & 1 ||
	    key->flags & KEY_L3_UNKNOWN || !packet->l3)
		return;
	frame->kind = FRAME_PLAIN;
	frame->tuple.zone = zone;
	frame->tuple.vid = be16_to_cpu(key->vlan_tci) & VLAN_VID_MASK;
	frame->is_fragment = key->flags & KEY_FRAGMENT;
	frame->cacheable = !icmp && !frame->is_fragment;
	frame->opening = !(key->flags & (KEY_MIDSTREAM | KEY_L4_UNKNOWN));
	if (key->flags & KEY_FRAGMENT_LATER) {
		frame->kind = FRAME_LATER;
	} else if (key->flags & KEY_L4_UNKNOWN) {
		frame->kind = FRAME_UNTRACKED;
		return;
	} else if (icmp) {
		read_icmp(frame, key, packet, &ends);
		if (frame->kind == FRAME_UNTRACKED)
			return;
	} else if (key->ip_proto == TCP) {
		frame->tcp = packet->header[packet->l4 + 13];
		frame->cacheable &= !frame->opening; /* a SYN may find a connection that is over */
	}
	frame->side = set_tuple(&frame->tuple, &ends);
	if (frame->is_fragment && !read_identification(frame, packet))
		frame->kind = FRAME_UNTRACKED;
}
