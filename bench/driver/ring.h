/* The driver's side of a virtqueue: the state, and the steps that driver_ring.c and driver_pump.c
 * share.
 *
 * Used entries are the device's word: an index or length is read once, checked, then used. One
 * thread per ring at a time. Never blocks.
 */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include "driver.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define LOAD_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define LOAD_RELAXED(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define FULL_BARRIER() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* virtio 1.2, 2.7.5 and 2.8.13 */
#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4
#define DESC_AVAIL (1 << 7)
#define DESC_USED (1 << 15)
#define NO_INTERRUPT 1
#define NO_NOTIFY 1
#define EVENT_ENABLE 0
#define EVENT_DISABLE 1
#define EVENT_DESC 2

struct split_desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

struct packed_desc {
	uint64_t address;
	uint32_t length;
	uint16_t id;
	uint16_t flags;
};

struct split_avail {
	uint16_t flags;
	uint16_t index;
	uint16_t ring[]; /* and used_event behind it */
};

struct split_used {
	uint16_t flags;
	uint16_t index;
	struct {
		uint32_t id;
		uint32_t length;
	} ring[]; /* and avail_event behind it */
};

struct packed_event {
	uint16_t position; /* bit 15: the wrap counter */
	uint16_t flags;
};

/* A buffer, by its id: split: the first descriptor of its chain; packed: the buffer id. Our own
 * memory: the device cannot change it. */
struct request {
	uint32_t sequence; /* counts buffers added */
	uint32_t capacity; /* bytes in all segments */
	uint16_t descriptors; /* of the ring; 0: the device doesn't have this buffer */
	uint16_t segments;
};

struct driver_ring {
	union {
		struct split_desc *split;
		struct packed_desc *packed;
	} desc;
	struct split_avail *avail;
	struct split_used *used;
	struct packed_event *driver_event, *device_event;
	struct driver_ring_setup setup;
	uint8_t *buffers; /* where setup.buffers is */
	struct split_desc *tables; /* where setup.tables is */

	struct request *requests; /* [size] */
	uint32_t *cuts; /* [size][segments_max] */
	uint16_t *next_free; /* [size]: list of free descriptors or (packed) ids; not IN_ORDER */
	uint32_t first_free;
	uint32_t n_free; /* descriptors */
	uint32_t in_flight; /* requests */
	uint32_t sequence; /* of the next request added */
	uint32_t expected; /* of the request that is the oldest, if they complete in order */

	/* Making available. */
	uint32_t position; /* packed: the next descriptor. IN_ORDER: so for split */
	bool wrap;
	uint16_t avail_index; /* split: counts requests */
	uint32_t unpublished; /* requests */
	uint16_t held_flags; /* packed: of the first unpublished descriptor, written last */
	uint32_t held_position;
	uint32_t unnotified; /* split: requests, packed: descriptors, since driver_notify() */

	/* Taking back. */
	uint32_t used_position; /* packed */
	bool used_wrap;
	uint16_t used_index; /* split: counts requests */
	uint32_t oldest; /* IN_ORDER: the id of the oldest request */
	uint32_t batch; /* requests that the last used entry read still covers */
	uint32_t batch_id, batch_length;

	struct driver_counters counters;
};

struct completion {
	uint32_t id;
	uint32_t length; /* bytes written, says the device: not compared with the capacity yet */
	bool skipped; /* had no used entry of its own: the length is the capacity */
};

static inline uint8_t *buffer_at(const struct driver_ring *ring, uint32_t id)
{
	return ring->buffers + (uint64_t)id * ring->setup.stride;
}

/* Where byte `offset` of a buffer's contents is, from the buffer's start: behind as many guards as
 * there are segments before it. `left` is how many bytes of the segment follow from there. The
 * offset is below the sum of the cuts. */
static inline uint32_t place_in_buffer(const uint32_t *cuts, uint32_t offset, uint32_t *left)
{
	uint32_t at = 0;

	while (offset >= *cuts) {
		offset -= *cuts;
		at += *cuts++ + DRIVER_GUARD_SIZE;
	}
	*left = *cuts - offset;
	return at + offset;
}

/* Packed: true when the descriptor at the used position was used (virtio 1.2, 2.8.1). The acquire
 * pairs with the device's release. */
static inline bool packed_used_at(const struct driver_ring *ring, uint32_t position, bool wrap)
{
	uint16_t flags = LOAD_ACQUIRE(&ring->desc.packed[position].flags);

	return !!(flags & DESC_AVAIL) == wrap && !!(flags & DESC_USED) == wrap;
}

/* Adds a buffer laid out as `cuts`, without touching its contents. The caller has checked the cuts.
 * Returns the id, or -DRIVER_FULL. */
int ring_add(struct driver_ring *ring, const uint32_t *cuts, uint32_t n_cuts, bool writable);

/* The id that the next ring_add() of so many segments will take, or -DRIVER_FULL. */
int ring_next_id(const struct driver_ring *ring, uint32_t n_cuts);

/* Takes the next used buffer, and frees its descriptors. Returns 1, 0 when there is none, or a
 * negative driver_error. */
int ring_take(struct driver_ring *ring, struct completion *completion);

#endif
