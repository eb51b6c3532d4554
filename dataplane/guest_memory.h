/* A guest's memory, as one vhost-user session shares it with us: its regions, translation of its
 * addresses, writes into it.
 *
 * The bytes are a stranger's and change while we look; so may the file behind them: a page that is
 * gone raises SIGBUS, which lays zero pages over the region and faults the port. Made and freed by
 * the control thread, with no worker inside; translated and written by workers. Nothing here is
 * ever dumped into a core file.
 */
#ifndef VSWITCH_GUEST_MEMORY_H
#define VSWITCH_GUEST_MEMORY_H

#include <immintrin.h>

#include "base.h"

#define GUEST_REGIONS_MAX 8 /* the most a SET_MEM_TABLE message carries */

struct port;

struct guest_region {
	u64 guest_start; /* guest physical address of its first byte */
	u64 user_start; /* the same byte for the front end, who gives ring addresses so */
	u64 size;
	u8 *data;
	void *map; /* what munmap() wants */
	u64 map_size;
	u32 range; /* its slot in the list for SIGBUS */
};

struct guest_memory {
	u32 n;
	u8 gone; /* a region's file was truncated, zero pages lie there now: by on_sigbus() */
	struct guest_region regions[GUEST_REGIONS_MAX];
};

/* What the front end says of a region. */
struct guest_region_spec {
	u64 guest_start, size, user_start, offset; /* offset into the file */
	int fd;
};

/* Maps `n` regions; the descriptors stay the caller's. Refuses files that are not tmpfs or
 * hugetlbfs, regions beyond their file's end, and overlapping ones. Returns 0 or -errno, with
 * nothing mapped. `port` is the one that is faulted when a page is gone. */
int guest_memory_map(struct guest_memory *memory, struct port *port,
		     const struct guest_region_spec *specs, u32 n);
void guest_memory_unmap(struct guest_memory *memory);

/* The address of `length` bytes at the front end's address `user`, aligned to `align`, or NULL
 * when they are not all in one region. */
void *guest_memory_user(const struct guest_memory *memory, u64 user, u64 length, u32 align);

/* Installs the SIGBUS handler, once per process. A SIGBUS that is not in a guest's memory goes to
 * who had it before. 0 or -errno. */
int guest_memory_guard(void);

/* All ones when index < size, else zero, without a branch: under speculation too, and for any two
 * numbers. */
ALWAYS_INLINE u64 guest_index_mask(u64 index, u64 size)
{
	u64 mask;

	__asm__ volatile("cmp %1, %2\n\tsbb %0, %0" : "=r"(mask) : "rm"(size), "r"(index) : "cc");
	return mask;
}

/* The first byte of guest address `address` in this region, when all `length` bytes are in it;
 * else NULL. */
ALWAYS_INLINE u8 *guest_region_at(const struct guest_region *region, u64 address, u32 length)
{
	u64 offset = address - region->guest_start;

	if (unlikely(offset >= region->size || length > region->size - offset))
		return NULL;
	return region->data + (offset & guest_index_mask(offset, region->size));
}

/* The first byte of guest address `address` and, in *got, how many of the `length` bytes from
 * there lie in the same region. NULL: none. */
u8 *guest_memory_part(const struct guest_memory *memory, u64 address, u32 length, u32 *got);

/* Finds the region, and remembers it in *last. */
u8 *guest_memory_find(const struct guest_memory *memory, const struct guest_region **last,
		      u64 address, u32 length);

/* Translates a guest physical address whose `length` bytes lie in one region. NULL: they don't. */
ALWAYS_INLINE u8 *guest_memory_at(const struct guest_memory *memory,
				  const struct guest_region **last, u64 address, u32 length)
{
	u8 *data = guest_region_at(*last, address, length);

	return likely(data) ? data : guest_memory_find(memory, last, address, length);
}

/* Bytes of frames this thread has written to guests' memory. Whoever writes adds up and stores
 * once a batch. */
extern __thread u64 guest_bytes_written;

/* Copies without calls when short; longer copies are libc's, which picks the widest instructions
 * of this processor at start. */
ALWAYS_INLINE void guest_copy(u8 *to, const u8 *from, u32 length)
{
	u32 i;

	if (unlikely(length > 192)) {
		memcpy(to, from, length);
	} else if (likely(length >= 32)) {
		for (i = 0; i + 32 < length; i += 32)
			_mm256_storeu_si256((__m256i_u *)(to + i),
					    _mm256_loadu_si256((const __m256i_u *)(from + i)));
		/* The last 32 bytes, overlapping what is there. The source may change meanwhile:
		 * any of its values will do. */
		i = length - 32;
		_mm256_storeu_si256((__m256i_u *)(to + i),
				    _mm256_loadu_si256((const __m256i_u *)(from + i)));
	} else if (length >= 16) {
		_mm_storeu_si128((__m128i_u *)to, _mm_loadu_si128((const __m128i_u *)from));
		i = length - 16;
		_mm_storeu_si128((__m128i_u *)(to + i),
				 _mm_loadu_si128((const __m128i_u *)(from + i)));
	} else {
		for (i = 0; i < length; i++)
			to[i] = from[i];
	}
}

/* The one way of a frame's bytes into a guest's memory. `to` was translated and `length` checked;
 * `*written` counts. */
ALWAYS_INLINE void guest_write_frame(u8 *to, const u8 *from, u32 length, u64 *written)
{
	guest_copy(to, from, length);
	*written += length;
}

#endif
