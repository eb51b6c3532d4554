/* Messages between two processes through shared memory: one writer, one reader, a ring of bytes.
 * See api.h.
 *
 * The area: two words, each in a cache line pair of its own (the writer's count of bytes ever
 * written, the reader's of bytes ever read), then at RING_HEADER the data. A message is its length
 * in 8 bytes, then its bytes, filled up to a multiple of 8; it may wrap.
 *
 * The other side may write anything into all of it at any time: the size is kept here, not there;
 * every position is masked by it, every length is read once and checked. Nonsense gives -EBADMSG,
 * never a look outside. Any one thread for each end. Never blocks.
 */
#include <stdlib.h>

#include "api.h"

#define ALIGNMENT 8
#define WRITTEN 0
#define READ 128

struct ring {
	u64 *written; /* the writer's */
	u64 *read; /* the reader's */
	u8 *data;
	u64 size;
};

static u64 room_for(u32 length)
{
	return ALIGNMENT + (((u64)length + ALIGNMENT - 1) & ~(u64)(ALIGNMENT - 1));
}

struct ring *ring_at(void *memory, uint64_t size)
{
	struct ring *ring;
	u64 data = size - RING_HEADER;

	if (size < RING_HEADER + 64 || (data & (data - 1)) || (uintptr_t)memory % ALIGNMENT)
		return NULL;
	ring = malloc(sizeof(*ring));
	if (!ring)
		return NULL;
	ring->written = (u64 *)((u8 *)memory + WRITTEN);
	ring->read = (u64 *)((u8 *)memory + READ);
	ring->data = (u8 *)memory + RING_HEADER;
	ring->size = data;
	return ring;
}

void ring_free(struct ring *ring)
{
	free(ring);
}

void ring_init(struct ring *ring, uint64_t size)
{
	assert(size == ring->size + RING_HEADER);
	(void)size;
	STORE_RELEASE(ring->written, 0);
	STORE_RELEASE(ring->read, 0);
}

static void copy_in(struct ring *ring, u64 position, const void *from, u64 length)
{
	u64 at = position & (ring->size - 1), first = ring->size - at;

	if (first > length)
		first = length;
	memcpy(ring->data + at, from, first);
	memcpy(ring->data, (const u8 *)from + first, length - first);
}

static void copy_out(const struct ring *ring, u64 position, void *to, u64 length)
{
	u64 at = position & (ring->size - 1), first = ring->size - at;

	if (first > length)
		first = length;
	memcpy(to, ring->data + at, first);
	memcpy((u8 *)to + first, ring->data, length - first);
}

int ring_write(struct ring *ring, const void *message, uint32_t length)
{
	u64 needed = room_for(length), written = READ_ONCE(*ring->written), prefix = length;
	u64 used = written -
		   LOAD_ACQUIRE(ring->read); /* partner: ring_read() is done with the bytes */

	if (!length || needed > ring->size)
		return -E2BIG;
	if (used > ring->size || used % ALIGNMENT || written % ALIGNMENT)
		return -EAGAIN; /* nonsense: there is no room in it */
	if (needed > ring->size - used)
		return -EAGAIN;
	copy_in(ring, written, &prefix, sizeof(prefix));
	copy_in(ring, written + sizeof(prefix), message, length);
	STORE_RELEASE(ring->written, written + needed); /* partner: ring_read() */
	return 0;
}

int64_t ring_read(struct ring *ring, void *message, uint32_t size)
{
	u64 position = READ_ONCE(*ring->read);
	u64 used = LOAD_ACQUIRE(ring->written) - position; /* partner: ring_write() */
	u64 length;

	if (!used)
		return 0;
	if (used > ring->size || used % ALIGNMENT || position % ALIGNMENT)
		return -EBADMSG;
	copy_out(ring, position, &length, sizeof(length));
	if (!length || length > ring->size || room_for((u32)length) > used)
		return -EBADMSG;
	if (length > size)
		return -E2BIG;
	copy_out(ring, position + sizeof(length), message, length);
	STORE_RELEASE(ring->read, position + room_for((u32)length)); /* partner: ring_write() */
	return (int64_t)length;
}
