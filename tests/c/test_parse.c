/* The parser's promises: what is there is read, what is cut short is said to be unknown, nothing
 * beyond the end is looked at. */
#include <stdlib.h>

#include "check.h"
#include "frames.h"
#include "parse.h"

#define IN_PORT 7

static struct frame frame;
static struct packet packet;
static struct flow_key key;

/* Parses the first `length` bytes, in memory of exactly that size, so that a sanitizer sees a
 * look beyond. */
static bool parse_part(u32 copied, u32 length, bool final)
{
	u8 *copy = malloc(copied ? copied : 1);
	bool result;

	memcpy(copy, frame.bytes, copied);
	packet = (struct packet){.header = copy, .header_length = (u16)copied, .length = length};
	result = parse_packet(&packet, IN_PORT, &key, final);
	free(copy);
	return result;
}

static void parse_all(void)
{
	u32 copied = frame.length < PACKET_HEADER_MAX ? frame.length : PACKET_HEADER_MAX;

	CHECK(parse_part(copied, frame.length, true));
}

static u16 type_of_key(void)
{
	return be16_to_cpu(key.eth_type);
}

static u16 l4_src(void)
{
	return be16_to_cpu(key.l4_src);
}

static u16 l4_dst(void)
{
	return be16_to_cpu(key.l4_dst);
}

static void tcp_over_ipv4_is_read(void)
{
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 6, 0x4000, 30);
	put_tcp(&frame, 5, 2);
	put_fill(&frame, 10, 0xaa);
	parse_all();
	CHECK_EQ(key.in_port, IN_PORT);
	CHECK(!memcmp(key.eth_dst, frame.bytes, 6) && !memcmp(key.eth_src, frame.bytes + 6, 6));
	CHECK_EQ(type_of_key(), 0x0800);
	CHECK_EQ(key.vlan_tci, 0);
	CHECK_EQ(key.ip_proto, 6);
	CHECK_EQ(key.ip_ttl, 64);
	CHECK_EQ(key.flags, 0);
	CHECK(!memcmp(key.ip_src, "\x0a\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0", 16));
	CHECK(!memcmp(key.ip_dst, "\x0a\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0", 16));
	CHECK_EQ(l4_src(), 1000);
	CHECK_EQ(l4_dst(), 80);
	CHECK_EQ(packet.l3, 14);
	CHECK_EQ(packet.l4, 34);
	CHECK_EQ(packet.payload, 54);
	CHECK_EQ(packet.tags, 0);
}

static void options_and_padding_are_stepped_over(void)
{
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 17, 0, 0);
	frame.bytes[14] = 0x47;
	frame.bytes[17] = 28 + 8;
	put_fill(&frame, 8, 1);
	put_udp(&frame, 0);
	put_fill(&frame, 20, 0);
	parse_all();
	CHECK_EQ(key.flags, 0);
	CHECK_EQ(l4_dst(), 53);
	CHECK_EQ(packet.l4, 42);
	CHECK_EQ(packet.payload, 50);
}

static void outermost_tag_is_in_the_key(void)
{
	put_ethernet(&frame, 0x8100);
	put_tag(&frame, 0x6064, 0x0800);
	put_ipv4(&frame, 1, 0, 8);
	put_fill(&frame, 8, 0);
	frame.bytes[38] = 8;
	parse_all();
	CHECK_EQ(be16_to_cpu(key.vlan_tci), 0x6000 | VLAN_PRESENT | 100);
	CHECK_EQ(type_of_key(), 0x0800);
	CHECK_EQ(packet.tags, 1);
	CHECK_EQ(l4_src(), 8);
	CHECK_EQ(l4_dst(), 0);
	CHECK_EQ(packet.l3, 18);
}

/* The CFI/DEI bit lies where VLAN_PRESENT does: it must not hide the tag, nor is it part of the
 * VID. */
static void drop_eligible_bit_is_not_a_vid(void)
{
	put_ethernet(&frame, 0x88a8);
	put_tag(&frame, 0x1000, 0x88b5);
	put_fill(&frame, 46, 0);
	parse_all();
	CHECK_EQ(be16_to_cpu(key.vlan_tci), VLAN_PRESENT);
	CHECK_EQ(packet.tags, 1);
}

static void second_tag_hides_the_packet_but_not_its_offsets(void)
{
	put_ethernet(&frame, 0x88a8);
	put_tag(&frame, 5, 0x8100);
	put_tag(&frame, 6, 0x0800);
	put_ipv4(&frame, 6, 0, 20);
	put_tcp(&frame, 5, 0);
	parse_all();
	CHECK_EQ(be16_to_cpu(key.vlan_tci), VLAN_PRESENT | 5);
	CHECK_EQ(type_of_key(), 0x8100);
	CHECK_EQ(key.ip_proto, 0);
	CHECK_EQ(key.l4_dst, 0);
	CHECK_EQ(packet.tags, 2);
	CHECK_EQ(packet.l3, 22);
	CHECK_EQ(packet.payload, 62);
}

static void lengths_of_802_3_are_one_type(void)
{
	put_ethernet(&frame, 40);
	put16(&frame, 0x4242);
	put_fill(&frame, 40, 3);
	parse_all();
	CHECK_EQ(type_of_key(), 0x05ff);
	CHECK_EQ(key.flags, 0);
	put_ethernet(&frame, 40);
	put32(&frame, 0xaaaa0300);
	put16(&frame, 0);
	put16(&frame, 0x0800);
	put_ipv4(&frame, 17, 0, 8);
	put_udp(&frame, 0);
	parse_all();
	CHECK_EQ(type_of_key(), 0x0800);
	CHECK_EQ(l4_dst(), 53);
	CHECK_EQ(packet.l3, 22);
}

static void later_fragments_have_no_ports(void)
{
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 6, 0x2000, 20);
	put_tcp(&frame, 5, 2);
	parse_all();
	CHECK_EQ(key.flags, KEY_FRAGMENT);
	CHECK_EQ(l4_dst(), 80);
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 6, 1, 20);
	put_tcp(&frame, 5, 0);
	parse_all();
	CHECK_EQ(key.flags, KEY_FRAGMENT | KEY_FRAGMENT_LATER | KEY_L4_UNKNOWN);
	CHECK_EQ(key.ip_proto, 6);
	CHECK_EQ(key.l4_dst, 0);
	CHECK_EQ(packet.l4, 0);
}

static void tcp_over_ipv6_is_read(void)
{
	put_ethernet(&frame, 0x86dd);
	put_ipv6(&frame, 6, 20);
	put_tcp(&frame, 5, 2);
	parse_all();
	CHECK_EQ(key.flags, 0);
	CHECK_EQ(key.ip_proto, 6);
	CHECK_EQ(key.ip_tos, 0xb8);
	CHECK_EQ(key.ip_ttl, 64);
	CHECK_EQ(key.ip_src[15], 1);
	CHECK_EQ(key.ip_dst[15], 2);
	CHECK_EQ(l4_dst(), 80);
	CHECK_EQ(packet.l4, 54);
	CHECK_EQ(packet.payload, 74);
}

static void put_extensions(void)
{
	put_ethernet(&frame, 0x86dd);
	put_ipv6(&frame, 0, 8 + 16 + 8 + 12 + 8 + 8);
	put32(&frame, 60u << 24); /* hop-by-hop, then destination options of 16 bytes */
	put32(&frame, 0);
	put32(&frame, 43u << 24 | 1u << 16);
	put_fill(&frame, 12, 0);
	put32(&frame, 51u << 24); /* routing, then authentication of 12 bytes */
	put32(&frame, 0);
	put32(&frame, 44u << 24 | 1u << 16);
	put_fill(&frame, 8, 0);
	put32(&frame, 17u << 24); /* an atomic fragment: none */
	put32(&frame, 0);
	put_udp(&frame, 0);
}

static void extension_headers_are_stepped_over(void)
{
	put_extensions();
	parse_all();
	CHECK_EQ(key.flags, 0);
	CHECK_EQ(key.ip_proto, 17);
	CHECK_EQ(l4_dst(), 53);
	CHECK_EQ(packet.payload, frame.length);
}

static void ipv6_fragments_are_marked(void)
{
	put_ethernet(&frame, 0x86dd);
	put_ipv6(&frame, 44, 16);
	put32(&frame, 17u << 24 | 1);
	put32(&frame, 0);
	put_udp(&frame, 0);
	parse_all();
	CHECK_EQ(key.flags, KEY_FRAGMENT);
	CHECK_EQ(l4_dst(), 53);
	frame.bytes[57] = 8;
	parse_all();
	CHECK_EQ(key.flags, KEY_FRAGMENT | KEY_FRAGMENT_LATER | KEY_L4_UNKNOWN);
	CHECK_EQ(key.ip_proto, 17);
}

static void endless_extension_headers_end_as_unknown(void)
{
	put_ethernet(&frame, 0x86dd);
	put_ipv6(&frame, 60, 8 * 30);
	for (u32 i = 0; i < 30; i++) {
		put32(&frame, 60u << 24);
		put32(&frame, 0);
	}
	parse_all();
	CHECK_EQ(key.flags, KEY_L4_UNKNOWN);
	CHECK_EQ(key.ip_proto, 60);
}

static void jumbograms_count_as_cut_short(void)
{
	put_ethernet(&frame, 0x86dd);
	put_ipv6(&frame, 0, 0);
	put32(&frame, 6u << 24 | 0xc204);
	put32(&frame, 70000);
	put_tcp(&frame, 5, 0);
	parse_all();
	CHECK_EQ(key.flags, KEY_L4_UNKNOWN);
	CHECK_EQ(key.l4_dst, 0);
}

static void arp_is_read(void)
{
	put_ethernet(&frame, 0x0806);
	put16(&frame, 1);
	put16(&frame, 0x0800);
	put16(&frame, 0x0604);
	put16(&frame, 2);
	put_fill(&frame, 6, 0x11);
	put32(&frame, 0x0a000001);
	put_fill(&frame, 6, 0x22);
	put32(&frame, 0x0a000002);
	parse_all();
	CHECK_EQ(key.flags, 0);
	CHECK_EQ(key.ip_proto, 2);
	CHECK_EQ(key.ip_src[3], 1);
	CHECK_EQ(key.ip_dst[3], 2);
	frame.bytes[18] = 8; /* hardware addresses of 8 bytes */
	parse_all();
	CHECK_EQ(key.flags, KEY_L3_UNKNOWN | KEY_L4_UNKNOWN);
}

static void malformed_ipv4_has_no_fields(void)
{
	static const struct {
		u32 at;
		u8 value;
	} broken[] = {{14, 0x55}, {14, 0x44}, {17, 19}, {14, 0x4f}};

	for (u32 i = 0; i < ARRAY_SIZE(broken); i++) {
		put_ethernet(&frame, 0x0800);
		put_ipv4(&frame, 17, 0, 8);
		put_udp(&frame, 0);
		frame.bytes[broken[i].at] = broken[i].value;
		parse_all();
		CHECK_EQ(key.flags, KEY_L3_UNKNOWN | KEY_L4_UNKNOWN);
		CHECK_EQ(key.ip_src[0], 0);
		CHECK_EQ(key.ip_proto, 0);
		CHECK_EQ(packet.l3, 0);
	}
}

/* Ports in the padding behind the IP packet are not its ports. */
static void transport_header_outside_the_ip_packet_is_unknown(void)
{
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 6, 0, 19);
	put_tcp(&frame, 5, 0);
	put_fill(&frame, 40, 0);
	parse_all();
	CHECK_EQ(key.flags, KEY_L4_UNKNOWN);
	CHECK_EQ(key.l4_dst, 0);
	put_ethernet(&frame, 0x86dd);
	put_ipv6(&frame, 17, 7);
	put_udp(&frame, 0);
	put_fill(&frame, 40, 0);
	parse_all();
	CHECK_EQ(key.flags, KEY_L4_UNKNOWN);
	CHECK_EQ(key.l4_dst, 0);
}

static void ip_length_beyond_the_frame_leaves_ports_readable(void)
{
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 17, 0, 1400);
	put_udp(&frame, 1392);
	parse_all();
	CHECK_EQ(key.flags, 0);
	CHECK_EQ(l4_dst(), 53);
}

static void tcp_header_length_outside_the_packet_hides_the_payload_only(void)
{
	for (u8 words = 0; words < 16; words++) {
		put_ethernet(&frame, 0x0800);
		put_ipv4(&frame, 6, 0, 24);
		put_tcp(&frame, 5, 2);
		put32(&frame, 0);
		frame.bytes[46] = (u8)(words << 4);
		parse_all();
		CHECK_EQ(key.flags, 0);
		CHECK_EQ(l4_dst(), 80);
		CHECK_EQ(packet.payload, words == 5 ? 54 : words == 6 ? 58 : 0);
	}
}

/* Every kind of frame, cut at every byte: the ports are either all there, or said to be unknown,
 * or the frame is no IP frame any more. */
static void cut_headers_never_have_ports(void)
{
	static const u32 minimum[] = {34 + 20, 34 + 8, 14 + 40 + 20, 34 + 12, 34 + 4, 18 + 40 + 4};

	for (u32 kind = 0; kind < ARRAY_SIZE(minimum); kind++) {
		u32 whole;

		put_ethernet(&frame, kind == 5 ? 0x8100 : kind == 2 ? 0x86dd : 0x0800);
		if (kind == 5)
			put_tag(&frame, 9, 0x86dd);
		if (kind == 2 || kind == 5)
			put_ipv6(&frame, kind == 2 ? 6 : 58, 40);
		else
			put_ipv4(&frame,
				 kind == 0 ? 6 :
				 kind == 1 ? 17 :
				 kind == 3 ? 132 :
					     1,
				 0, 40);
		put_tcp(&frame, 10, 0);
		whole = frame.length;
		for (u32 length = 0; length <= whole; length++) {
			CHECK(parse_part(length, length, true));
			if (length >= minimum[kind]) {
				CHECK_EQ(key.flags & ~KEY_MIDSTREAM, 0);
				CHECK(key.l4_src || key.l4_dst);
				continue;
			}
			CHECK_EQ(key.l4_src, 0);
			CHECK_EQ(key.l4_dst, 0);
			CHECK_EQ(packet.l4, 0);
			CHECK(key.flags & KEY_L4_UNKNOWN);
		}
	}
}

/* A cut made by our own copy is not the sender's: more is asked for, and only then. */
static void own_cut_asks_for_more(void)
{
	put_extensions();
	for (u32 copied = 14; copied < frame.length; copied++)
		CHECK(!parse_part(copied, frame.length, false));
	CHECK(parse_part(frame.length, frame.length, false));
	for (u32 length = 14; length < frame.length; length++)
		CHECK(parse_part(length, length, false));
	/* What a long frame's first 128 bytes say is enough, as a rule. */
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 6, 0, 1460);
	put_tcp(&frame, 15, 0);
	put_fill(&frame, 1400, 0);
	CHECK(parse_part(PACKET_HEADER, frame.length, false));
	CHECK_EQ(packet.payload, 94);
}

static void nothing_more_is_asked_for_than_can_be_had(void)
{
	put_ethernet(&frame, 0x86dd);
	put_ipv6(&frame, 60, 4000);
	put32(&frame, 6u << 24 | 100u << 16); /* 808 bytes of options */
	put_fill(&frame, 4000, 0);
	CHECK(!parse_part(PACKET_HEADER, frame.length, false));
	CHECK(parse_part(PACKET_HEADER_MAX, frame.length, false));
	CHECK_EQ(key.flags, KEY_L4_UNKNOWN);
	CHECK_EQ(key.ip_proto, 60);
}

static void half_a_tag_is_no_tag(void)
{
	put_ethernet(&frame, 0x8100);
	put16(&frame, 100);
	parse_all();
	CHECK_EQ(key.vlan_tci, 0);
	CHECK_EQ(packet.tags, 0);
	CHECK_EQ(type_of_key(), 0x8100);
	CHECK_EQ(key.flags, KEY_L3_UNKNOWN | KEY_L4_UNKNOWN);
}

/* The short cut and the slow way read the same: a frame and its tagged twin differ in the tag
 * only. */
static void short_cut_reads_what_the_slow_way_reads(void)
{
	struct flow_key fast;

	for (u32 round = 0; round < 20000; round++) {
		u16 l3, l4, payload;
		u32 length;

		put_ethernet(&frame, 0x0800);
		put_ipv4(&frame, check_random(2) ? 6 : 17, 0, (u16)(check_random(8) + 16));
		put_tcp(&frame, 5, 0);
		for (u32 i = check_random(3); i; i--)
			frame.bytes[14 + check_random(40)] = (u8)check_random(256);
		length = 14 + check_random(41);
		CHECK(parse_part(length, length, true));
		fast = key;
		l3 = packet.l3;
		l4 = packet.l4;
		payload = packet.payload;
		memmove(frame.bytes + 16, frame.bytes + 12, 50);
		memcpy(frame.bytes + 12, "\x81\x00\x00\x00", 4);
		CHECK(parse_part(length + 4, length + 4, true));
		CHECK_EQ(be16_to_cpu(key.vlan_tci), VLAN_PRESENT);
		key.vlan_tci = 0;
		CHECK(flow_key_equal(&fast, &key));
		CHECK_EQ(packet.l3, l3 ? l3 + 4 : 0);
		CHECK_EQ(packet.l4, l4 ? l4 + 4 : 0);
		CHECK_EQ(packet.payload, payload ? payload + 4 : 0);
	}
}

static u8 flags_of_ipv4(u8 protocol, u8 first, u8 tcp)
{
	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, protocol, 0, 20);
	put_tcp(&frame, 5, tcp);
	if (protocol != 6)
		frame.bytes[34] = first;
	parse_all();
	return key.flags;
}

static void only_a_bare_syn_and_requests_can_begin_a_connection(void)
{
	for (u32 tcp = 0; tcp < 256; tcp++)
		CHECK_EQ(flags_of_ipv4(6, 0, (u8)tcp), (tcp & 0x17) == 2 ? 0 : KEY_MIDSTREAM);
	for (u32 type = 0; type < 256; type++)
		CHECK_EQ(flags_of_ipv4(1, (u8)type, 0),
			 type == 8 || type == 13 ? 0 : KEY_MIDSTREAM);
	CHECK_EQ(flags_of_ipv4(17, 0, 0), 0);
	CHECK_EQ(flags_of_ipv4(47, 0, 0), 0);
}

int main(void)
{
	RUN(only_a_bare_syn_and_requests_can_begin_a_connection);
	RUN(tcp_over_ipv4_is_read);
	RUN(options_and_padding_are_stepped_over);
	RUN(outermost_tag_is_in_the_key);
	RUN(drop_eligible_bit_is_not_a_vid);
	RUN(second_tag_hides_the_packet_but_not_its_offsets);
	RUN(lengths_of_802_3_are_one_type);
	RUN(later_fragments_have_no_ports);
	RUN(tcp_over_ipv6_is_read);
	RUN(extension_headers_are_stepped_over);
	RUN(ipv6_fragments_are_marked);
	RUN(endless_extension_headers_end_as_unknown);
	RUN(jumbograms_count_as_cut_short);
	RUN(arp_is_read);
	RUN(malformed_ipv4_has_no_fields);
	RUN(transport_header_outside_the_ip_packet_is_unknown);
	RUN(ip_length_beyond_the_frame_leaves_ports_readable);
	RUN(tcp_header_length_outside_the_packet_hides_the_payload_only);
	RUN(cut_headers_never_have_ports);
	RUN(own_cut_asks_for_more);
	RUN(nothing_more_is_asked_for_than_can_be_had);
	RUN(half_a_tag_is_no_tag);
	RUN(short_cut_reads_what_the_slow_way_reads);
	return check_done();
}
