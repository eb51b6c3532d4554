/* Building frames for the C tests, byte by byte, with checksums worked out the slow and obvious
 * way. */
#ifndef VSWITCH_TESTS_FRAMES_H
#define VSWITCH_TESTS_FRAMES_H

#include "base.h"

struct frame {
	u32 length;
	u8 bytes[70000];
};

static inline void put8(struct frame *frame, u8 value)
{
	frame->bytes[frame->length++] = value;
}

static inline void put16(struct frame *frame, u16 value)
{
	put8(frame, (u8)(value >> 8));
	put8(frame, (u8)value);
}

static inline void put32(struct frame *frame, u32 value)
{
	put16(frame, (u16)(value >> 16));
	put16(frame, (u16)value);
}

static inline void put_fill(struct frame *frame, u32 n, u8 value)
{
	memset(frame->bytes + frame->length, value, n);
	frame->length += n;
}

/* Destination …:02, source …:01. */
static inline void put_ethernet(struct frame *frame, u16 type)
{
	static const u8 macs[12] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1};

	frame->length = 0;
	memcpy(frame->bytes, macs, sizeof(macs));
	frame->length = sizeof(macs);
	put16(frame, type);
}

/* Behind a type of 0x8100 or 0x88a8. */
static inline void put_tag(struct frame *frame, u16 tci, u16 type)
{
	put16(frame, tci);
	put16(frame, type);
}

static inline u16 reference_sum(const u8 *bytes, u32 length, u32 start)
{
	u32 sum = start;

	for (u32 i = 0; i < length; i++) {
		sum += i % 2 ? bytes[i] : (u32)bytes[i] << 8;
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return (u16)sum;
}

/* 10.0.0.1 → 10.0.0.2, TTL 64, TOS 0, `data` bytes behind the header. */
static inline void put_ipv4(struct frame *frame, u8 protocol, u16 fragment, u16 data)
{
	u8 *start = frame->bytes + frame->length;
	u16 sum;

	put16(frame, 0x4500);
	put16(frame, (u16)(20 + data));
	put16(frame, 0x1234);
	put16(frame, fragment);
	put16(frame, (u16)(64 << 8 | protocol));
	put16(frame, 0);
	put32(frame, 0x0a000001);
	put32(frame, 0x0a000002);
	sum = (u16)~reference_sum(start, 20, 0);
	start[10] = (u8)(sum >> 8);
	start[11] = (u8)sum;
}

/* fd00::1 → fd00::2, hop limit 64, traffic class 0xb8, `data` bytes behind the header. */
static inline void put_ipv6(struct frame *frame, u8 next, u16 data)
{
	put32(frame, 0x6b800000);
	put16(frame, data);
	put16(frame, (u16)(next << 8 | 64));
	for (u32 end = 1; end <= 2; end++) {
		put32(frame, 0xfd000000);
		put32(frame, 0);
		put32(frame, 0);
		put32(frame, end);
	}
}

/* 1000 → 80, sequence 0x10000000, `words` of header. */
static inline void put_tcp(struct frame *frame, u8 words, u8 flags)
{
	put16(frame, 1000);
	put16(frame, 80);
	put32(frame, 0x10000000);
	put32(frame, 0x20000000);
	put16(frame, (u16)(words << 12 | flags));
	put16(frame, 512);
	put32(frame, 0);
	if (words > 5)
		put_fill(frame, (words - 5u) * 4, 1);
}

static inline void put_udp(struct frame *frame, u16 data)
{
	put16(frame, 1000);
	put16(frame, 53);
	put16(frame, (u16)(8 + data));
	put16(frame, 0);
}

/* The sum of the pseudo header of the frame's IP packet at `l3`, for `length` bytes of
 * `protocol`. */
static inline u16 pseudo_sum(const u8 *frame, u32 l3, u8 protocol, u32 length)
{
	const u8 *ip = frame + l3;
	u32 sum = protocol + (length & 0xffff) + (length >> 16);

	if (ip[0] >> 4 == 4)
		return reference_sum(ip + 12, 8, sum);
	return reference_sum(ip + 8, 32, sum);
}

/* True when the transport checksum of the IP packet at `l3` is right. */
static inline bool transport_sum_is_right(const u8 *frame, u32 length, u32 l3, u32 l4, u8 protocol)
{
	return reference_sum(frame + l4, length - l4,
			     pseudo_sum(frame, l3, protocol, length - l4)) == 0xffff;
}

#endif
