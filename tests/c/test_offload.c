/* Offloads in software: requests that do not fit are refused, those that do become frames that any
 * receiver takes.
 *
 * Expectations are worked out by the slow sums of frames.h, not by the code under test.
 */
#include <stdlib.h>

#include "check.h"
#include "frames.h"
#include "offload.h"
#include "parse.h"
#include "port.h"

#define SCRATCH (2 * PACKET_LENGTH_MAX + PACKET_GSO_SEGMENTS_MAX * 256)
#define MSS 1000
#define ALL                                                                             \
	(PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6 | PORT_OFFLOAD_ECN | \
	 PORT_OFFLOAD_USO)

static struct frame frame;
static struct packet packet;
static struct flow_key key;
static struct segment segments[PACKET_SEGMENTS_MAX];
static u8 header[PACKET_HEADROOM + PACKET_HEADER_MAX];
static u8 scratch[SCRATCH];

/* What came out. */
static struct {
	u32 length;
	u8 bytes[PACKET_LENGTH_MAX];
} out[PACKET_GSO_SEGMENTS_MAX];
static u32 n_out;

static void keep(struct packet *piece, void *context)
{
	struct segment pieces[PACKET_SEGMENTS_MAX + 1];
	u32 n = packet_pieces(piece, pieces);

	(void)context;
	CHECK_EQ(piece->offload.flags, 0);
	CHECK_EQ(piece->offload.gso_type, GSO_NONE);
	CHECK_EQ(piece->n_segments, 1);
	out[n_out].length = 0;
	for (u32 i = 0; i < n; i++) {
		memcpy(out[n_out].bytes + out[n_out].length, pieces[i].data, pieces[i].length);
		out[n_out].length += pieces[i].length;
	}
	CHECK_EQ(out[n_out].length, piece->length);
	n_out++;
}

/* The packet over the frame, its header copied, in pieces of `piece` bytes. */
static void make_packet(u32 piece)
{
	u32 taken = frame.length < PACKET_HEADER ? frame.length : PACKET_HEADER;

	packet = (struct packet){.header = header + PACKET_HEADROOM,
				 .header_length = (u16)taken,
				 .header_taken = (u16)taken,
				 .length = frame.length,
				 .segments = segments};
	memcpy(packet.header, frame.bytes, taken);
	for (u32 at = 0; at < frame.length; at += piece)
		segments[packet.n_segments++] = (struct segment){
			frame.bytes + at, frame.length - at < piece ? frame.length - at : piece};
	CHECK(parse_packet(&packet, 1, &key, true));
}

static void store_pseudo(u32 l4, u32 l3, u8 protocol)
{
	u16 sum = pseudo_sum(frame.bytes, l3, protocol, frame.length - l4);
	u32 at = l4 + (protocol == 6 ? 16 : 6);

	frame.bytes[at] = (u8)(sum >> 8);
	frame.bytes[at + 1] = (u8)sum;
}

static void put_payload(u32 n)
{
	for (u32 i = 0; i < n; i++)
		put8(&frame, (u8)(i * 7 + i / 256));
}

/* A frame of `data` bytes over IPv4 or IPv6 with what a driver writes for it. */
static void make_request(u8 version, u8 protocol, u32 data, u8 gso_type, u8 tcp_flags)
{
	u16 l4_length = (u16)((protocol == 6 ? 32 : 8) + data);
	u16 l3 = 14, l4 = version == 4 ? 34 : 54;

	put_ethernet(&frame, version == 4 ? 0x0800 : 0x86dd);
	if (version == 4)
		put_ipv4(&frame, protocol, 0x4000, l4_length);
	else
		put_ipv6(&frame, protocol, l4_length);
	if (protocol == 6)
		put_tcp(&frame, 8, tcp_flags);
	else
		put_udp(&frame, (u16)data);
	put_payload(data);
	store_pseudo(l4, l3, protocol);
	make_packet(1500);
	packet.offload = (struct offload){.flags = OFFLOAD_NEEDS_CSUM,
					  .gso_type = gso_type,
					  .gso_size = gso_type ? MSS : 0,
					  .hdr_len = 3,
					  .csum_start = l4,
					  .csum_offset = protocol == 6 ? 16 : 6};
}

static u32 finish(void)
{
	u32 n;

	n_out = 0;
	n = offload_finish(&packet, scratch, sizeof(scratch), keep, NULL);
	CHECK_EQ(n, n_out);
	return n;
}

static void checksums_are_filled_in(void)
{
	for (u8 version = 4; version <= 6; version += 2)
		for (u8 protocol = 6; protocol <= 17; protocol += 11)
			for (u32 data = 0; data < 70; data++) {
				u32 l4 = version == 4 ? 34 : 54;

				make_request(version, protocol, data, 0, 0x18);
				REQUIRE(offload_check(&packet, key.ip_proto));
				CHECK_EQ(packet.offload.hdr_len, packet.payload);
				CHECK_EQ(finish(), 1);
				CHECK_EQ(out[0].length, frame.length);
				CHECK(transport_sum_is_right(out[0].bytes, out[0].length, 14, l4,
							     protocol));
				CHECK(!memcmp(out[0].bytes + l4 + 18, frame.bytes + l4 + 18,
					      frame.length - l4 - 18 < 70000 ?
						      frame.length - l4 - 18 :
						      0));
			}
}

/* RFC 768: a sum of zero is sent as all ones. */
static void udp_sum_is_never_zero(void)
{
	u16 sum;

	make_request(4, 17, 2, 0, 0);
	memset(frame.bytes + 42, 0, 2);
	sum = (u16)~reference_sum(frame.bytes + 34, frame.length - 34, 0);
	frame.bytes[42] = (u8)(sum >> 8);
	frame.bytes[43] = (u8)sum;
	memcpy(packet.header, frame.bytes, frame.length);
	REQUIRE(offload_check(&packet, key.ip_proto));
	CHECK_EQ(finish(), 1);
	CHECK_EQ(out[0].bytes[40] << 8 | out[0].bytes[41], 0xffff);
}

static u32 sequence_of(const u8 *tcp)
{
	return (u32)tcp[4] << 24 | (u32)tcp[5] << 16 | (u32)tcp[6] << 8 | tcp[7];
}

static void check_tcp_pieces(u32 l3, u32 l4, u32 data, u8 first, u8 middle, u8 last)
{
	u32 n = (data + MSS - 1) / MSS, headers = l4 + 32;

	CHECK_EQ(finish(), n);
	for (u32 i = 0; i < n; i++) {
		u32 size = i + 1 < n ? MSS : data - i * MSS;
		const u8 *bytes = out[i].bytes;

		CHECK_EQ(out[i].length, headers + size);
		CHECK_EQ(sequence_of(bytes + l4), 0x10000000 + i * MSS);
		CHECK_EQ(bytes[l4 + 13], !i ? first : i + 1 == n ? last : middle);
		CHECK(transport_sum_is_right(bytes, out[i].length, l3, l4, 6));
		CHECK(!memcmp(bytes + headers, frame.bytes + frame.length - data + i * MSS, size));
		if (bytes[l3] >> 4 == 4) {
			CHECK_EQ(bytes[l3 + 2] << 8 | bytes[l3 + 3], out[i].length - l3);
			CHECK_EQ(bytes[l3 + 4] << 8 | bytes[l3 + 5], 0x1234 + i);
			CHECK_EQ(reference_sum(bytes + l3, 20, 0), 0xffff);
		} else {
			CHECK_EQ(bytes[l3 + 4] << 8 | bytes[l3 + 5], out[i].length - l4);
		}
	}
}

static void tcp_is_cut_into_segments(void)
{
	/* CWR ACK PSH FIN: CWR goes with the first, PSH and FIN with the last */
	make_request(4, 6, 2500, GSO_TCPV4, 0x99);
	REQUIRE(offload_check(&packet, key.ip_proto));
	check_tcp_pieces(14, 34, 2500, 0x90, 0x10, 0x19);
	make_request(6, 6, 3000, GSO_TCPV6 | GSO_ECN, 0x99);
	REQUIRE(offload_check(&packet, key.ip_proto));
	CHECK_EQ(packet.offload.gso_type, GSO_TCPV6 | GSO_ECN);
	check_tcp_pieces(14, 54, 3000, 0x90, 0x10, 0x19);
	make_request(4, 6, 64000, GSO_TCPV4, 0x10);
	REQUIRE(offload_check(&packet, key.ip_proto));
	check_tcp_pieces(14, 34, 64000, 0x10, 0x10, 0x10);
}

/* The header copy with its edits goes out, not the source's bytes. */
static void edited_header_is_what_is_cut(void)
{
	make_request(4, 6, 2500, GSO_TCPV4, 0x10);
	REQUIRE(offload_check(&packet, key.ip_proto));
	memmove(packet.header - 4, packet.header, 12);
	packet.header -= 4;
	memcpy(packet.header + 12, "\x81\x00\x00\x64", 4);
	packet.header_length += 4;
	offload_shift(&packet, 4);
	CHECK_EQ(packet.offload.csum_start, 38);
	CHECK_EQ(packet.offload.hdr_len, 70);
	check_tcp_pieces(18, 38, 2500, 0x10, 0x10, 0x10);
	CHECK_EQ(out[2].bytes[15], 100);
	offload_shift(&packet, -4);
	CHECK_EQ(packet.l3, 14);
	CHECK_EQ(packet.offload.csum_start, 34);
}

static void udp_is_cut_into_datagrams(void)
{
	for (u8 version = 4; version <= 6; version += 2) {
		u32 l4 = version == 4 ? 34 : 54;

		make_request(version, 17, 2300, GSO_UDP_L4, 0);
		REQUIRE(offload_check(&packet, key.ip_proto));
		CHECK_EQ(finish(), 3);
		for (u32 i = 0; i < 3; i++) {
			u32 size = i < 2 ? MSS : 300;

			CHECK_EQ(out[i].length, l4 + 8 + size);
			CHECK_EQ(out[i].bytes[l4 + 4] << 8 | out[i].bytes[l4 + 5], 8 + size);
			CHECK(transport_sum_is_right(out[i].bytes, out[i].length, 14, l4, 17));
			CHECK(!memcmp(out[i].bytes + l4 + 8, frame.bytes + l4 + 8 + i * MSS, size));
		}
	}
}

static void what_fits_one_piece_is_not_cut(void)
{
	make_request(4, 6, MSS, GSO_TCPV4, 0x19);
	CHECK(offload_check(&packet, key.ip_proto));
	CHECK_EQ(packet.offload.gso_type, GSO_NONE);
	CHECK_EQ(packet.offload.gso_size, 0);
	CHECK_EQ(finish(), 1);
	CHECK_EQ(out[0].bytes[47], 0x19);
}

/* One thing wrong at a time. */
static void requests_that_do_not_fit_are_refused(void)
{
	for (u32 wrong = 0; wrong < 15; wrong++) {
		struct offload *offload = &packet.offload;

		make_request(4, 6, 3000, GSO_TCPV4, 0x10);
		switch (wrong) {
		case 0:
			offload->gso_type = GSO_TCPV6;
			break;
		case 1:
			offload->gso_type = GSO_UDP_L4;
			break;
		case 2:
			offload->gso_type = GSO_UDP;
			break;
		case 3:
			offload->gso_type = 77;
			break;
		case 4:
			offload->gso_type = GSO_ECN;
			break;
		case 5:
			offload->gso_size = 0;
			break;
		case 6:
			offload->gso_size = 11; /* 273 segments */
			break;
		case 7:
			offload->csum_start = 35;
			break;
		case 8:
			offload->csum_offset = 6;
			break;
		case 9:
			offload->flags = 0;
			break;
		case 10:
			packet.header[17]++; /* IP says more than there is */
			break;
		case 11:
			packet.header[20] = 0x20; /* a fragment */
			break;
		case 12:
			packet.payload = 0; /* a TCP header with a wrong length */
			break;
		case 13:
			packet.l4 = 0; /* no transport header */
			break;
		default:
			key.ip_proto = 132;
		}
		CHECK(!offload_check(&packet, key.ip_proto));
	}
}

static void frames_with_two_tags_are_checked_too(void)
{
	put_ethernet(&frame, 0x88a8);
	put_tag(&frame, 5, 0x8100);
	put_tag(&frame, 6, 0x0800);
	put_ipv4(&frame, 6, 0, 32 + 2500);
	put_tcp(&frame, 8, 0x10);
	put_payload(2500);
	store_pseudo(42, 22, 6);
	make_packet(1000);
	packet.offload = (struct offload){.flags = OFFLOAD_NEEDS_CSUM,
					  .gso_type = GSO_TCPV4,
					  .gso_size = MSS,
					  .csum_start = 42,
					  .csum_offset = 16};
	CHECK_EQ(key.ip_proto, 0);
	REQUIRE(offload_check(&packet, key.ip_proto));
	check_tcp_pieces(22, 42, 2500, 0x10, 0x10, 0x10);
}

static void nothing_asked_leaves_nothing_but_the_hint(void)
{
	make_request(4, 6, 100, 0, 0);
	packet.offload.flags = OFFLOAD_DATA_VALID | 0xf0;
	CHECK(offload_check(&packet, key.ip_proto));
	CHECK_EQ(packet.offload.flags, OFFLOAD_DATA_VALID);
	CHECK_EQ(packet.offload.csum_start, 0);
	CHECK_EQ(packet.offload.hdr_len, 0);
}

static void receivers_get_what_they_can_take(void)
{
	static const struct {
		u8 gso_type;
		u32 needed;
	} cases[] = {{GSO_NONE, PORT_OFFLOAD_CSUM},
		     {GSO_TCPV4, PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4},
		     {GSO_TCPV6, PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO6},
		     {GSO_TCPV4 | GSO_ECN,
		      PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_ECN},
		     {GSO_UDP_L4, PORT_OFFLOAD_CSUM | PORT_OFFLOAD_USO}};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++)
		for (u32 offloads = 0; offloads <= ALL; offloads++) {
			packet.offload = (struct offload){.flags = OFFLOAD_NEEDS_CSUM,
							  .gso_type = cases[i].gso_type};
			CHECK_EQ(offload_fits(&packet, offloads),
				 (offloads & cases[i].needed) == cases[i].needed);
		}
	packet.offload = (struct offload){.flags = OFFLOAD_DATA_VALID};
	CHECK(offload_fits(&packet, 0));
}

static void no_room_and_short_sources_make_no_frames(void)
{
	make_request(4, 6, 3000, GSO_TCPV4, 0x10);
	REQUIRE(offload_check(&packet, key.ip_proto));
	CHECK_EQ(offload_finish(&packet, scratch, frame.length - 1, keep, NULL), 0);
	CHECK_EQ(offload_finish(&packet, scratch, frame.length + 66 + MSS - 1, keep, NULL), 0);
	packet.n_segments--;
	CHECK_EQ(offload_finish(&packet, scratch, sizeof(scratch), keep, NULL), 0);
}

static void copies_cross_segments_and_stop_at_the_end(void)
{
	u8 copy[3000];

	make_request(4, 6, 2000, 0, 0);
	make_packet(41);
	for (u32 offset = 0; offset < frame.length; offset += 13)
		for (u32 length = 0; offset + length <= frame.length; length += 97) {
			CHECK(packet_copy(&packet, offset, copy, length));
			CHECK(!memcmp(copy, frame.bytes + offset, length));
		}
	CHECK(!packet_copy(&packet, frame.length - 3, copy, 4));
	CHECK(!packet_copy(&packet, frame.length + 100, copy, 1));
}

int main(void)
{
	RUN(checksums_are_filled_in);
	RUN(udp_sum_is_never_zero);
	RUN(tcp_is_cut_into_segments);
	RUN(edited_header_is_what_is_cut);
	RUN(udp_is_cut_into_datagrams);
	RUN(what_fits_one_piece_is_not_cut);
	RUN(requests_that_do_not_fit_are_refused);
	RUN(frames_with_two_tags_are_checked_too);
	RUN(nothing_asked_leaves_nothing_but_the_hint);
	RUN(receivers_get_what_they_can_take);
	RUN(no_room_and_short_sources_make_no_frames);
	RUN(copies_cross_segments_and_stop_at_the_end);
	return check_done();
}
