/* The Internet checksum (RFC 1071), over bytes that may come in several pieces. Any thread;
 * reads each byte once. */
#ifndef VSWITCH_CHECKSUM_H
#define VSWITCH_CHECKSUM_H

#include "base.h"

struct checksum {
	u64 sum;
	bool odd; /* an odd number of bytes so far */
};

typedef u32 checksum_words __attribute__((vector_size(16)));
typedef u64 checksum_sums __attribute__((vector_size(32)));

/* Words are added as they lie in memory: the sum is the same in either byte order (RFC 1071, 2 (B)).
 * Words of 32 bits into sums of 64: nothing is carried for 2^32 of them. */
static inline u64 checksum_block(const u8 *data, u32 length)
{
	checksum_sums a = {0}, b = {0};
	u64 sum;

	for (; length >= 32; data += 32, length -= 32) {
		a += __builtin_convertvector(LOAD_UNALIGNED(checksum_words, data), checksum_sums);
		b += __builtin_convertvector(LOAD_UNALIGNED(checksum_words, data + 16),
					     checksum_sums);
	}
	a += b;
	sum = a[0] + a[1] + a[2] + a[3];
	for (; length >= 4; data += 4, length -= 4)
		sum += LOAD_UNALIGNED(u32, data);
	if (length >= 2) {
		sum += LOAD_UNALIGNED(u16, data);
		data += 2;
		length -= 2;
	}
	return length ? sum + *data : sum;
}

static inline u16 checksum_fold(u64 sum)
{
	sum = (sum & UINT32_MAX) + (sum >> 32);
	sum = (sum & UINT32_MAX) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (u16)sum;
}

static inline void checksum_add(struct checksum *checksum, const u8 *data, u32 length)
{
	u64 sum = checksum_block(data, length);

	/* A piece at an odd offset has its bytes in the other halves of the words. */
	if (checksum->odd)
		sum = __builtin_bswap16(checksum_fold(sum));
	checksum->sum += sum;
	checksum->odd ^= length & 1;
}

/* Adds a number of 16 bits, given in host order. */
static inline void checksum_add16(struct checksum *checksum, u16 value)
{
	checksum->sum += cpu_to_be16(value);
}

/* The value for the header's field. */
static inline be16 checksum_result(const struct checksum *checksum)
{
	return (be16)~checksum_fold(checksum->sum);
}

#endif
