/* Checksums and segmentation in software: see offload.h.
 *
 * offload_check() turns a stranger's request into our own; all others work on requests that passed
 * it. Source bytes (possibly a guest's memory) are copied once and only the copy is summed. Worker
 * threads. Never allocates: the caller has the room.
 */
#include "offload.h"

#include "checksum.h"
#include "port.h"

#define TCP 6
#define UDP 17
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define TCP_FLAGS 13
#define TCP_FIN 0x01
#define TCP_PSH 0x08
#define TCP_CWR 0x80
#define UDP_HEADER 8
#define IPV6_HEADER 40
#define IPV4_FRAGMENT 0x3fff /* more fragments, offset */

static u8 ip_version(const struct packet *packet)
{
	return packet->header[packet->l3] >> 4;
}

static u16 read16(const u8 *p)
{
	return be16_to_cpu(LOAD_UNALIGNED(be16, p));
}

static void write16(u8 *p, u16 value)
{
	STORE_UNALIGNED(be16, p, cpu_to_be16(value));
}

/* Of a frame with two tags the key says nothing; extension headers are not followed here: no
 * request fits them then. */
static u8 inner_protocol(const struct packet *packet)
{
	const u8 *ip = packet->header + packet->l3;

	if (ip_version(packet) == 4)
		return ip[9];
	return packet->l4 == packet->l3 + IPV6_HEADER ? ip[6] : 0;
}

/* The IP header says that its packet is all the rest of the frame, and not a fragment. */
static bool is_whole(const struct packet *packet)
{
	const u8 *ip = packet->header + packet->l3;
	u32 length = packet->length - packet->l3;

	if (ip_version(packet) == 4)
		return read16(ip + 2) == length && !(read16(ip + 6) & IPV4_FRAGMENT);
	return (u32)read16(ip + 4) + IPV6_HEADER == length;
}

static bool gso_type_fits(u8 type, u8 ip_proto, u8 version)
{
	switch (type) {
	case GSO_TCPV4:
	case GSO_TCPV4 | GSO_ECN:
		return ip_proto == TCP && version == 4;
	case GSO_TCPV6:
	case GSO_TCPV6 | GSO_ECN:
		return ip_proto == TCP && version == 6;
	case GSO_UDP_L4:
		return ip_proto == UDP;
	default:
		return false; /* GSO_UDP, fragments made by the receiver, is never offered */
	}
}

static bool gso_check(const struct packet *packet, u8 ip_proto)
{
	const struct offload *offload = &packet->offload;
	u32 data;

	if (!packet->payload || packet->payload >= packet->length || !offload->gso_size ||
	    !is_whole(packet))
		return false;
	data = packet->length - packet->payload;
	if ((data + offload->gso_size - 1) / offload->gso_size > PACKET_GSO_SEGMENTS_MAX)
		return false;
	return gso_type_fits(offload->gso_type, ip_proto, ip_version(packet));
}

bool offload_check(struct packet *packet, u8 ip_proto)
{
	struct offload asked = packet->offload;
	struct offload *offload = &packet->offload;
	u16 field;

	if (!(asked.flags & OFFLOAD_NEEDS_CSUM)) {
		*offload = (struct offload){.flags = asked.flags & OFFLOAD_DATA_VALID};
		return asked.gso_type == GSO_NONE;
	}
	if (!packet->l4)
		return false;
	if (packet->tags == 2)
		ip_proto = inner_protocol(packet);
	if (ip_proto != TCP && ip_proto != UDP)
		return false;
	field = ip_proto == TCP ? TCP_CHECKSUM : UDP_CHECKSUM;
	if (asked.csum_start != packet->l4 || asked.csum_offset != field)
		return false;
	if (asked.gso_type != GSO_NONE && !gso_check(packet, ip_proto))
		return false;
	*offload = (struct offload){.flags = OFFLOAD_NEEDS_CSUM,
				    .hdr_len = packet->payload,
				    .csum_start = packet->l4,
				    .csum_offset = field};
	/* What fits one piece is one piece. */
	if (asked.gso_type != GSO_NONE && packet->length - packet->payload > asked.gso_size) {
		offload->gso_type = asked.gso_type;
		offload->gso_size = asked.gso_size;
	}
	return true;
}

void offload_shift(struct packet *packet, int bytes)
{
	struct offload *offload = &packet->offload;

	if (packet->l3)
		packet->l3 = (u16)(packet->l3 + bytes);
	if (packet->l4)
		packet->l4 = (u16)(packet->l4 + bytes);
	if (packet->payload)
		packet->payload = (u16)(packet->payload + bytes);
	if (offload->hdr_len)
		offload->hdr_len = (u16)(offload->hdr_len + bytes);
	if (offload->flags & OFFLOAD_NEEDS_CSUM)
		offload->csum_start = (u16)(offload->csum_start + bytes);
}

bool offload_fits(const struct packet *packet, u32 offloads)
{
	u32 needed = PORT_OFFLOAD_CSUM;

	if (likely(!(packet->offload.flags & OFFLOAD_NEEDS_CSUM)))
		return true;
	switch (packet->offload.gso_type & ~GSO_ECN) {
	case GSO_TCPV4:
		needed |= PORT_OFFLOAD_TSO4;
		break;
	case GSO_TCPV6:
		needed |= PORT_OFFLOAD_TSO6;
		break;
	case GSO_UDP_L4:
		needed |= PORT_OFFLOAD_USO;
		break;
	default:
		break;
	}
	if (packet->offload.gso_type & GSO_ECN)
		needed |= PORT_OFFLOAD_ECN;
	return (offloads & needed) == needed;
}

/* The frame as it leaves, in one piece; false when the source is shorter than it says. */
static bool flatten(const struct packet *packet, u8 *to, u32 length)
{
	struct segment pieces[PACKET_SEGMENTS_MAX + 1];
	u32 n = packet_pieces(packet, pieces), at = 0;

	for (u32 i = 0; i < n; i++) {
		if (pieces[i].length > length - at)
			return false;
		memcpy(to + at, pieces[i].data, pieces[i].length);
		at += pieces[i].length;
	}
	return at == length;
}

/* Fills the checksum in. The field holds the sum of the pseudo header for `was` bytes of
 * transport (virtio 1.2, 5.1.6.2), now they are `is`. */
static void fill_checksum(u8 *frame, u32 length, const struct offload *offload, u32 was)
{
	u32 is = length - offload->csum_start;
	u8 *field = frame + offload->csum_start + offload->csum_offset;
	struct checksum checksum = {0};
	be16 result;

	checksum_add(&checksum, frame + offload->csum_start, is);
	if (is != was) {
		checksum_add16(&checksum, (u16)is);
		checksum_add16(&checksum, (u16)~was);
	}
	result = checksum_result(&checksum);
	/* UDP: zero would mean that there is none (RFC 768). */
	if (!result && offload->csum_offset == UDP_CHECKSUM)
		result = 0xffff;
	STORE_UNALIGNED(be16, field, result);
}

static void fix_ip(u8 *frame, const struct packet *packet, u32 length, u32 number)
{
	u8 *ip = frame + packet->l3;
	u32 header_length = (u32)(ip[0] & 15) * 4;
	struct checksum checksum = {0};

	if (ip[0] >> 4 == 6) {
		write16(ip + 4, (u16)(length - packet->l3 - IPV6_HEADER));
		return;
	}
	write16(ip + 2, (u16)(length - packet->l3));
	write16(ip + 4, (u16)(read16(ip + 4) + number));
	write16(ip + 10, 0);
	checksum_add(&checksum, ip, header_length);
	STORE_UNALIGNED(be16, ip + 10, checksum_result(&checksum));
}

static void fix_transport(u8 *frame, const struct packet *packet, u32 length, u32 offset, bool last)
{
	u8 *l4 = frame + packet->l4;

	if ((packet->offload.gso_type & ~GSO_ECN) == GSO_UDP_L4) {
		write16(l4 + 4, (u16)(length - packet->l4));
		return;
	}
	STORE_UNALIGNED(be32, l4 + 4,
			cpu_to_be32(be32_to_cpu(LOAD_UNALIGNED(be32, l4 + 4)) + offset));
	if (offset)
		l4[TCP_FLAGS] &= (u8)~TCP_CWR;
	if (!last)
		l4[TCP_FLAGS] &= (u8) ~(TCP_FIN | TCP_PSH);
}

static void emit_frame(const struct packet *packet, u8 *frame, u32 length,
		       void (*emit)(struct packet *piece, void *context), void *context)
{
	struct segment segment = {frame, length};
	struct packet piece = {.header = frame,
			       .length = length,
			       .n_segments = 1,
			       .segments = &segment,
			       .l3 = packet->l3,
			       .l4 = packet->l4,
			       .payload = packet->payload,
			       .tags = packet->tags};

	piece.header_length = (u16)(length < PACKET_HEADER ? length : PACKET_HEADER);
	piece.header_taken = piece.header_length;
	emit(&piece, context);
}

u32 offload_finish(const struct packet *packet, u8 *scratch, u32 scratch_size,
		   void (*emit)(struct packet *piece, void *context), void *context)
{
	const struct offload *offload = &packet->offload;
	u32 length = packet_length_out(packet), transport = length - offload->csum_start;
	u32 headers = packet->payload, size = offload->gso_size, n = 0;
	u8 *frame = scratch + length;

	if (length > scratch_size || !flatten(packet, scratch, length))
		return 0;
	if (offload->gso_type == GSO_NONE) {
		if (offload->flags & OFFLOAD_NEEDS_CSUM)
			fill_checksum(scratch, length, offload, transport);
		emit_frame(packet, scratch, length, emit, context);
		return 1;
	}
	if (headers + size > scratch_size - length)
		return 0;
	for (u32 offset = 0; headers + offset < length; offset += size, n++) {
		u32 left = length - headers - offset, data = left < size ? left : size;

		memcpy(frame, scratch, headers);
		memcpy(frame + headers, scratch + headers + offset, data);
		fix_ip(frame, packet, headers + data, n);
		fix_transport(frame, packet, headers + data, offset, left <= size);
		fill_checksum(frame, headers + data, offload, transport);
		emit_frame(packet, frame, headers + data, emit, context);
	}
	return n;
}
