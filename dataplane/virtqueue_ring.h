/* Reading and writing the entries of a ring: what virtqueue*.c share, inlined into their loops.
 *
 * See virtqueue.h for whose bytes these are and who runs it. Every function reads a word once;
 * none blocks or loops beyond the ring's size.
 */
#ifndef VSWITCH_VIRTQUEUE_RING_H
#define VSWITCH_VIRTQUEUE_RING_H

#include "virtqueue.h"

typedef u64 unaligned_u64 __attribute__((aligned(1), may_alias));
typedef u32 unaligned_u32 __attribute__((aligned(1), may_alias));
typedef u16 unaligned_u16 __attribute__((aligned(1), may_alias));
#define READ_UNALIGNED(bits, at) (*(const volatile unaligned_u##bits *)(at))

/* Stops using the ring because of what its guest wrote. */
static inline void vring_fault(struct vring *ring, enum port_fault why)
{
	ring->broken = 1;
	port_fault(ring->port, why);
}

ALWAYS_INLINE struct descriptor read_split(const struct ring_desc *at)
{
	u64 word = READ_ONCE(at->word);

	return (struct descriptor){.address = READ_ONCE(at->address),
				   .length = (u32)word,
				   .flags = (u16)(word >> 32),
				   .number = (u16)(word >> 48)};
}

ALWAYS_INLINE bool packed_is_available(u64 word, u8 wrap)
{
	return ((word >> 55) & 1) == wrap && ((word >> 63) & 1) != wrap;
}

/* Reads the packed descriptor at `position` when the driver has made it available in this lap.
 * Acquire: its other words, and the buffer, are read after the flags (partner: the driver's write
 * barrier before it stores the flags; virtio 1.2, 2.8.21.1). */
ALWAYS_INLINE bool read_packed(const struct vring *ring, u32 position, u8 wrap,
			       struct descriptor *descriptor)
{
	u64 word = LOAD_ACQUIRE(&ring->desc[position].word);

	if (!packed_is_available(word, wrap))
		return false;
	*descriptor = (struct descriptor){.address = READ_ONCE(ring->desc[position].address),
					  .length = (u32)word,
					  .flags = (u16)(word >> 48),
					  .number = (u16)(word >> 32)};
	return true;
}

/* A head that the driver has made available, when its buffer is one simple descriptor. */
struct head {
	u8 *data; /* NULL: not simple, walk_chain() it */
	u32 length;
	u16 id;
	u16 count; /* descriptors: 1 */
};

ALWAYS_INLINE void advance_packed(const struct vring *ring, u16 *position, u8 *wrap, u32 count)
{
	u32 to = *position + count;

	if (to >= ring->size) {
		to -= ring->size;
		*wrap ^= 1;
	}
	*position = (u16)to;
}

/* Split: reads the driver's index again. Acquire: entries and descriptors are read after it
 * (partner: the driver's write barrier, 2.7.13.3). False: it is nonsense, and the fault is
 * reported. */
ALWAYS_INLINE bool look_for_more(struct vring *ring)
{
	ring->avail_seen = LOAD_ACQUIRE(&ring->avail->index);
	if (likely((u16)(ring->avail_seen - ring->next) <= ring->size))
		return true;
	ring->avail_seen = ring->next;
	vring_fault(ring, FAULT_RING_INDEX);
	return false;
}

/* Split: reads ahead up to `max` heads from ring->next on, without taking them. */
ALWAYS_INLINE u32 peek_split(struct vring *ring, u32 max, struct head *heads, const u16 write)
{
	u16 available = (u16)(ring->avail_seen - ring->next);
	u32 n;

	if (available < max) {
		if (unlikely(!look_for_more(ring)))
			return 0;
		available = (u16)(ring->avail_seen - ring->next);
	}
	n = available < max ? available : max;
	for (u32 i = 0; i < n; i++) {
		u16 entry = READ_ONCE(ring->avail->ring[(ring->next + i) & ring->mask]);

		if (unlikely(entry >= ring->size)) {
			/* What came before is still good; the fault comes when this one is at the
			 * front. */
			if (!i)
				vring_fault(ring, FAULT_DESCRIPTOR);
			n = i;
			break;
		}
		heads[i].id = entry & (u16)guest_index_mask(entry, ring->size);
		__builtin_prefetch(&ring->desc[heads[i].id]);
	}
	for (u32 i = 0; i < n; i++) {
		struct descriptor descriptor = read_split(&ring->desc[heads[i].id]);

		heads[i].count = 1;
		heads[i].length = descriptor.length;
		heads[i].data = NULL;
		if (likely((descriptor.flags & (DESC_NEXT | DESC_WRITE | DESC_INDIRECT)) == write &&
			   descriptor.length))
			heads[i].data = guest_memory_at(ring->memory, &ring->region,
							descriptor.address, descriptor.length);
	}
	return n;
}

/* Packed: the same; it ends with the first head that is not simple, because where the next one
 * begins is not known then. */
ALWAYS_INLINE u32 peek_packed(struct vring *ring, u32 max, struct head *heads, const u16 write)
{
	u16 position = ring->next;
	u8 wrap = ring->next_wrap;
	u32 n = 0;

	while (n < max) {
		struct descriptor descriptor;

		if (!read_packed(ring, position, wrap, &descriptor))
			break;
		heads[n].id = descriptor.number;
		heads[n].count = 1;
		heads[n].length = descriptor.length;
		heads[n].data = NULL;
		if (likely((descriptor.flags & (DESC_NEXT | DESC_WRITE | DESC_INDIRECT)) == write &&
			   descriptor.length))
			heads[n].data = guest_memory_at(ring->memory, &ring->region,
							descriptor.address, descriptor.length);
		if (unlikely(!heads[n++].data))
			break;
		advance_packed(ring, &position, &wrap, 1);
	}
	return n;
}

/* The first two lines of each buffer: where a frame's headers are. `write`: they are going to be
 * written. A buffer that is not simple has no address yet; prefetching around zero does no harm. */
ALWAYS_INLINE void prefetch_heads(const struct head *heads, u32 n, const u16 write)
{
	for (u32 i = 0; i < n; i++) {
		const void *second = (const void *)((uintptr_t)heads[i].data + CACHE_LINE);

		if (write) {
			__builtin_prefetch(heads[i].data, 1);
			__builtin_prefetch(second, 1);
		} else {
			__builtin_prefetch(heads[i].data);
			__builtin_prefetch(second);
		}
	}
}

/* A whole buffer of several descriptors, direct or indirect. */
struct chain {
	struct segment *segments; /* room for `room` of them: the caller's */
	u32 room;
	u32 n;
	u32 descriptors; /* read: for the caller's patience */
	u16 id, count;
	u64 length;  /* of all, also of those for which there was no room */
	bool cut;  /* there was no room for all */
};

/* Walks the buffer that begins with split descriptor `entry`, or at packed `position` in lap
 * `wrap`. Returns FAULT_NONE or what is wrong with it (not yet reported). */
enum port_fault walk_split(struct vring *ring, u16 entry, u16 write, struct chain *chain);
enum port_fault walk_packed(struct vring *ring, u32 position, u8 wrap, u16 write,
			    struct chain *chain);

/* Puts one used buffer where the driver will find it; seen by it after publish_used(). */
ALWAYS_INLINE void put_used(struct vring *ring, const enum ring_kind kind, struct taken taken,
			    u32 length)
{
	if (kind == RING_SPLIT) {
		ring->used->ring[ring->pending_index & ring->mask] = taken.id | (u64)length << 32;
		ring->pending_index++;
		ring->unsignalled++;
	} else {
		le64 *at = &ring->desc[ring->used_next].word;
		u64 flags = (ring->used_wrap ? DESC_AVAIL | DESC_USED : 0) |
			    (length ? DESC_WRITE : 0);
		u64 word = length | (u64)taken.id << 32 | flags << 48;

		/* The first of a batch is written last: the driver, who polls it, meets all of
		 * them at once. */
		if (ring->pending_at) {
			WRITE_ONCE(*at, word);
		} else {
			ring->pending_at = at;
			ring->pending_word = word;
		}
		ring->unsignalled += taken.count;
		advance_packed(ring, &ring->used_next, &ring->used_wrap, taken.count);
	}
}

/* Release: the driver that sees it also sees what was written to the buffers (partner: its read
 * barrier after the used index or flags). */
ALWAYS_INLINE void publish_used(struct vring *ring, const enum ring_kind kind)
{
	if (kind == RING_SPLIT) {
		ring->used_next = ring->pending_index;
		STORE_RELEASE(&ring->used->index, ring->pending_index);
	} else if (ring->pending_at) {
		STORE_RELEASE(ring->pending_at, ring->pending_word);
		ring->pending_at = NULL;
	}
}

#endif
