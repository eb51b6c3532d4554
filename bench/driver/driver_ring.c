/* Split and packed rings, driven as a guest's virtio-net driver does, with every choice that a
 * driver may make.
 *
 * Reads what the device wrote (a stranger's: checked once, in ring_take()); trusts its caller for
 * addresses. One thread per ring at a time. Never blocks and never waits for the device.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <stdlib.h>

#define GUARD_BYTE 0xa5

static bool setup_is_valid(const struct driver_ring_setup *s)
{
	if (s->size < 2 || s->size > 32768 || (!s->packed && s->size & (s->size - 1)))
		return false;
	if (!s->segments_max || s->segments_max > DRIVER_SEGMENTS_MAX)
		return false;
	return !s->packed || (s->start & 0x7fff) < s->size;
}

static void make_free_list(struct driver_ring *ring)
{
	for (uint32_t i = 0; i < ring->setup.size; i++)
		ring->next_free[i] = (uint16_t)(i + 1);
	ring->first_free = 0;
	ring->n_free = ring->setup.size;
}

/* Lays the start values into the ring's memory, which is zero otherwise. */
static void write_start(struct driver_ring *ring)
{
	const struct driver_ring_setup *s = &ring->setup;

	if (!s->packed) {
		ring->avail_index = ring->used_index = (uint16_t)s->start;
		ring->avail->index = (uint16_t)s->start;
		ring->used->index = (uint16_t)s->start;
		return;
	}
	ring->position = ring->used_position = s->start & 0x7fff;
	ring->wrap = ring->used_wrap = s->start >> 15 & 1;
	/* A position behind the start was available and used in the other round: the device must
	 * not take it for new. */
	for (uint32_t i = 0; i < s->size; i++) {
		bool wrap = i < ring->position ? ring->wrap : !ring->wrap;

		ring->desc.packed[i].flags = wrap ? DESC_AVAIL | DESC_USED : 0;
	}
	ring->oldest = ring->position;
}

/* Returns a ring whose memory is ready for the device, or NULL: the setup is not valid, or no
 * memory. */
struct driver_ring *driver_ring_new(struct driver_memory *memory,
				    const struct driver_ring_setup *setup)
{
	struct driver_ring *ring;

	if (!setup_is_valid(setup))
		return NULL;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return NULL;
	ring->setup = *setup;
	ring->desc.split = (void *)driver_memory_at(memory, setup->descriptors);
	ring->avail = (void *)driver_memory_at(memory, setup->avail);
	ring->used = (void *)driver_memory_at(memory, setup->used);
	ring->driver_event = (void *)ring->avail;
	ring->device_event = (void *)ring->used;
	ring->buffers = driver_memory_at(memory, setup->buffers);
	if (setup->tables)
		ring->tables = (void *)driver_memory_at(memory, setup->tables);
	ring->requests = calloc(setup->size, sizeof(*ring->requests));
	ring->cuts = calloc((size_t)setup->size * setup->segments_max, sizeof(*ring->cuts));
	ring->next_free = calloc(setup->size, sizeof(*ring->next_free));
	if (!ring->requests || !ring->cuts || !ring->next_free) {
		driver_ring_free(ring);
		return NULL;
	}
	make_free_list(ring);
	write_start(ring);
	driver_interrupts(ring, 0);
	return ring;
}

void driver_ring_free(struct driver_ring *ring)
{
	if (!ring)
		return;
	free(ring->requests);
	free(ring->cuts);
	free(ring->next_free);
	free(ring);
}

const struct driver_counters *driver_ring_counters(const struct driver_ring *ring)
{
	return &ring->counters;
}

uint32_t driver_in_flight(const struct driver_ring *ring)
{
	return ring->in_flight;
}

uint32_t driver_free_descriptors(const struct driver_ring *ring)
{
	return ring->n_free;
}

/* Making available. */

int ring_next_id(const struct driver_ring *ring, uint32_t n_cuts)
{
	uint32_t wanted = ring->tables ? 1 : n_cuts;

	if (ring->n_free < wanted)
		return -DRIVER_FULL;
	return (int)(ring->setup.in_order ? ring->position : ring->first_free);
}

static uint32_t advance(const struct driver_ring *ring, uint32_t position, uint32_t by)
{
	position += by;
	return position >= ring->setup.size ? position - ring->setup.size : position;
}

/* An indirect table for buffer `id`. Split and packed tables differ in their last four bytes only
 * (virtio 1.2, 2.8.7). */
static void fill_table(struct driver_ring *ring, uint32_t id, uint32_t n_cuts, bool writable)
{
	const uint32_t *cuts = ring->cuts + (size_t)id * ring->setup.segments_max;
	struct split_desc *table = ring->tables + (size_t)id * ring->setup.segments_max;
	uint64_t address = ring->setup.buffers + (uint64_t)id * ring->setup.stride;
	uint16_t write = writable ? DESC_WRITE : 0;

	for (uint32_t i = 0; i < n_cuts; i++) {
		bool more = !ring->setup.packed && i + 1 < n_cuts;

		table[i] = (struct split_desc){
			.address = address,
			.length = cuts[i],
		};
		if (ring->setup.packed) {
			struct packed_desc *packed = (struct packed_desc *)&table[i];

			packed->id = 0;
			packed->flags = write;
		} else {
			table[i].flags = write | (more ? DESC_NEXT : 0);
			table[i].next = more ? (uint16_t)(i + 1) : 0;
		}
		address += cuts[i] + DRIVER_GUARD_SIZE;
	}
}

/* One descriptor of a buffer. */
struct piece {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
};

/* Piece `i` of buffer `id` as the ring shows it: a segment, or the indirect table. `address` goes
 * from segment to segment. */
static struct piece piece_of(struct driver_ring *ring, uint32_t id, uint32_t i, uint64_t *address)
{
	const struct request *request = &ring->requests[id];
	struct piece piece = {.address = *address};

	if (ring->tables) {
		piece.address = ring->setup.tables +
				(uint64_t)id * ring->setup.segments_max * sizeof(struct split_desc);
		piece.length = request->segments * (uint32_t)sizeof(struct split_desc);
		piece.flags = DESC_INDIRECT;
		return piece;
	}
	piece.length = ring->cuts[(size_t)id * ring->setup.segments_max + i];
	piece.flags = i + 1u < request->descriptors ? DESC_NEXT : 0;
	*address += piece.length + DRIVER_GUARD_SIZE;
	return piece;
}

static void add_split(struct driver_ring *ring, uint32_t id, uint16_t write)
{
	uint32_t n = ring->requests[id].descriptors, at = id;
	uint64_t address = ring->setup.buffers + (uint64_t)id * ring->setup.stride;

	for (uint32_t i = 0; i < n; i++) {
		struct piece piece = piece_of(ring, id, i, &address);
		uint32_t next = ring->setup.in_order ? advance(ring, at, 1) : ring->next_free[at];

		ring->desc.split[at] = (struct split_desc){
			.address = piece.address,
			.length = piece.length,
			.flags = piece.flags | (piece.flags & DESC_INDIRECT ? 0 : write),
			.next = piece.flags & DESC_NEXT ? (uint16_t)next : 0,
		};
		at = next;
	}
	ring->first_free = at;
	ring->position = at;
	ring->avail
		->ring[(uint16_t)(ring->avail_index + ring->unpublished) & (ring->setup.size - 1)] =
		(uint16_t)id;
}

static void add_packed(struct driver_ring *ring, uint32_t id, uint16_t write)
{
	uint32_t n = ring->requests[id].descriptors;
	uint64_t address = ring->setup.buffers + (uint64_t)id * ring->setup.stride;

	for (uint32_t i = 0; i < n; i++) {
		struct piece piece = piece_of(ring, id, i, &address);
		struct packed_desc *desc = &ring->desc.packed[ring->position];
		uint16_t flags = piece.flags | (ring->wrap ? DESC_AVAIL : DESC_USED);

		flags |= piece.flags & DESC_INDIRECT ? 0 : write;
		desc->address = piece.address;
		desc->length = piece.length;
		desc->id = (uint16_t)id;
		/* The device looks at the first one first: as long as that one's flags are old, the
		 * rest is not there. */
		if (!ring->unpublished && !i) {
			ring->held_flags = flags;
			ring->held_position = ring->position;
		} else {
			__atomic_store_n(&desc->flags, flags, __ATOMIC_RELAXED);
		}
		ring->position = advance(ring, ring->position, 1);
		if (!ring->position)
			ring->wrap = !ring->wrap;
	}
	ring->unnotified += n;
}

int ring_add(struct driver_ring *ring, const uint32_t *cuts, uint32_t n_cuts, bool writable)
{
	int id = ring_next_id(ring, n_cuts);
	uint32_t *own = ring->cuts;
	struct request *request;

	if (id < 0)
		return id;
	own += (size_t)id * ring->setup.segments_max;
	request = &ring->requests[id];
	request->sequence = ring->sequence++;
	request->descriptors = ring->tables ? 1 : (uint16_t)n_cuts;
	request->segments = (uint16_t)n_cuts;
	request->capacity = 0;
	for (uint32_t i = 0; i < n_cuts; i++) {
		own[i] = cuts[i];
		request->capacity += cuts[i];
	}
	if (ring->tables)
		fill_table(ring, (uint32_t)id, n_cuts, writable);
	if (ring->setup.packed) {
		if (!ring->setup.in_order)
			ring->first_free = ring->next_free[id];
		add_packed(ring, (uint32_t)id, writable ? DESC_WRITE : 0);
	} else {
		add_split(ring, (uint32_t)id, writable ? DESC_WRITE : 0);
		ring->unnotified++;
	}
	ring->n_free -= request->descriptors;
	ring->in_flight++;
	ring->unpublished++;
	ring->counters.added++;
	return id;
}

static bool cuts_are_valid(const struct driver_ring *ring, const uint32_t *cuts, uint32_t n_cuts)
{
	uint64_t sum = 0;

	if (!n_cuts || n_cuts > ring->setup.segments_max)
		return false;
	for (uint32_t i = 0; i < n_cuts; i++)
		sum += (uint64_t)cuts[i] + DRIVER_GUARD_SIZE;
	return sum <= ring->setup.stride;
}

int driver_send(struct driver_ring *ring, const uint8_t *bytes, uint32_t length,
		const uint32_t *cuts, uint32_t n_cuts)
{
	uint32_t sum = 0;
	uint8_t *to;
	int id;

	if (!cuts_are_valid(ring, cuts, n_cuts))
		return -DRIVER_BAD_ARGUMENT;
	for (uint32_t i = 0; i < n_cuts; i++)
		sum += cuts[i];
	if (sum != length)
		return -DRIVER_BAD_ARGUMENT;
	id = ring_next_id(ring, n_cuts);
	if (id < 0)
		return id;
	to = buffer_at(ring, (uint32_t)id);
	for (uint32_t i = 0; i < n_cuts; i++) {
		memcpy(to, bytes, cuts[i]);
		memset(to + cuts[i], GUARD_BYTE, DRIVER_GUARD_SIZE);
		to += cuts[i] + DRIVER_GUARD_SIZE;
		bytes += cuts[i];
	}
	ring_add(ring, cuts, n_cuts, false);
	return 0;
}

int driver_post(struct driver_ring *ring, const uint32_t *cuts, uint32_t n_cuts)
{
	uint8_t *to;
	int id;

	if (!cuts_are_valid(ring, cuts, n_cuts))
		return -DRIVER_BAD_ARGUMENT;
	id = ring_next_id(ring, n_cuts);
	if (id < 0)
		return id;
	to = buffer_at(ring, (uint32_t)id);
	for (uint32_t i = 0; i < n_cuts; i++) {
		memset(to + cuts[i], GUARD_BYTE, DRIVER_GUARD_SIZE);
		to += cuts[i] + DRIVER_GUARD_SIZE;
	}
	ring_add(ring, cuts, n_cuts, true);
	return 0;
}

uint32_t driver_publish(struct driver_ring *ring)
{
	uint32_t n = ring->unpublished;

	if (!n)
		return 0;
	/* Both releases pair with the device's acquire of the same word: what it describes is
	 * written before. */
	if (ring->setup.packed) {
		STORE_RELEASE(&ring->desc.packed[ring->held_position].flags, ring->held_flags);
	} else {
		ring->avail_index = (uint16_t)(ring->avail_index + n);
		STORE_RELEASE(&ring->avail->index, ring->avail_index);
	}
	ring->unpublished = 0;
	return n;
}

/* Taking back. */

int driver_pending(const struct driver_ring *ring)
{
	if (ring->batch)
		return 1;
	if (ring->setup.packed)
		return ring->in_flight &&
		       packed_used_at(ring, ring->used_position, ring->used_wrap);
	return LOAD_ACQUIRE(&ring->used->index) != ring->used_index;
}

/* Reads the next used entry into ring->batch…; 1, 0 (none) or an error. What is read here is the
 * device's word. */
static int read_used(struct driver_ring *ring)
{
	uint32_t id, length, visible, ahead;

	if (ring->setup.packed) {
		const struct packed_desc *desc = &ring->desc.packed[ring->used_position];

		if (!ring->in_flight || !packed_used_at(ring, ring->used_position, ring->used_wrap))
			return 0;
		visible = ring->in_flight;
		id = LOAD_RELAXED(&desc->id);
		length = LOAD_RELAXED(&desc->length);
	} else {
		uint32_t slot = ring->used_index & (ring->setup.size - 1);

		visible = (uint16_t)(LOAD_ACQUIRE(&ring->used->index) - ring->used_index);
		if (!visible)
			return 0;
		if (visible > ring->in_flight - ring->unpublished)
			return -DRIVER_USED_INDEX;
		id = LOAD_RELAXED(&ring->used->ring[slot].id);
		length = LOAD_RELAXED(&ring->used->ring[slot].length);
	}
	if (id >= ring->setup.size)
		return -DRIVER_USED_ID_RANGE;
	if (!ring->requests[id].descriptors)
		return -DRIVER_USED_ID_NOT_OUT;
	ahead = ring->requests[id].sequence - ring->expected;
	if (ring->setup.in_order && ahead >= visible)
		return -DRIVER_USED_INDEX;
	ring->batch = ring->setup.in_order ? ahead + 1 : 1;
	ring->batch_id = id;
	ring->batch_length = length;
	return 1;
}

/* Gives descriptors (split) or the id (packed) back. */
static void free_request(struct driver_ring *ring, uint32_t id)
{
	struct request *request = &ring->requests[id];
	uint32_t n = request->descriptors, last = id;

	if (ring->setup.packed) {
		ring->used_position += n;
		if (ring->used_position >= ring->setup.size) {
			ring->used_position -= ring->setup.size;
			ring->used_wrap = !ring->used_wrap;
		}
	} else {
		ring->used_index++;
	}
	if (ring->setup.in_order) {
		ring->oldest = advance(ring, id, n);
	} else {
		/* A chain keeps its links in next_free; its last one gets a new neighbour. */
		for (uint32_t i = 1; !ring->setup.packed && i < n; i++)
			last = ring->next_free[last];
		ring->next_free[last] = (uint16_t)ring->first_free;
		ring->first_free = id;
	}
	request->descriptors = 0;
	ring->n_free += n;
	ring->in_flight--;
	ring->expected = request->sequence + 1;
	ring->counters.completed++;
}

int ring_take(struct driver_ring *ring, struct completion *completion)
{
	uint32_t id;

	if (!ring->batch) {
		int got = read_used(ring);

		if (got <= 0)
			return got;
	}
	id = ring->setup.in_order ? ring->oldest : ring->batch_id;
	completion->id = id;
	ring->batch--;
	/* A skipped buffer was used to the full (virtio 1.2, 2.7.9). */
	completion->skipped = ring->batch != 0;
	completion->length = ring->batch ? ring->requests[id].capacity : ring->batch_length;
	ring->counters.batched += completion->skipped;
	ring->counters.out_of_order += ring->requests[id].sequence != ring->expected;
	free_request(ring, id);
	return 1;
}

int driver_reclaim(struct driver_ring *ring)
{
	struct completion completion;
	int n = 0, got;

	while ((got = ring_take(ring, &completion)) > 0) {
		ring->counters.tx_lengths += !completion.skipped && completion.length != 0;
		n++;
	}
	return got < 0 ? got : n;
}

/* Receiving. */

/* Where a frame's bytes go. */
struct target {
	uint8_t *to;
	uint32_t size;
	uint32_t length; /* so far */
};

/* Appends the first `length` bytes of a buffer and checks its guards. Returns 0 or a negative
 * driver_error. */
static int copy_buffer(const struct driver_ring *ring, const struct completion *used,
		       struct target *target)
{
	static const uint8_t guard[DRIVER_GUARD_SIZE] = {[0 ... DRIVER_GUARD_SIZE - 1] =
								 GUARD_BYTE};
	const uint32_t *cuts = ring->cuts + (size_t)used->id * ring->setup.segments_max;
	const uint8_t *from = buffer_at(ring, used->id);
	uint32_t left = used->length;

	for (uint32_t i = 0; i < ring->requests[used->id].segments; i++) {
		uint32_t n = left < cuts[i] ? left : cuts[i];

		if (n > target->size - target->length)
			return -DRIVER_FRAME_TOO_LONG;
		memcpy(target->to + target->length, from, n);
		target->length += n;
		left -= n;
		if (memcmp(from + cuts[i], guard, sizeof(guard)) != 0)
			return -DRIVER_OVERRUN;
		from += cuts[i] + DRIVER_GUARD_SIZE;
	}
	return 0;
}

static int receive_buffer(struct driver_ring *ring, struct target *target)
{
	struct completion used;
	int got = ring_take(ring, &used);

	if (got <= 0)
		return got;
	if (used.length > ring->requests[used.id].capacity)
		return -DRIVER_USED_LENGTH;
	got = copy_buffer(ring, &used, target);
	return got < 0 ? got : 1;
}

int driver_receive(struct driver_ring *ring, uint8_t *out, uint32_t size, uint32_t *n_buffers)
{
	struct target target = {.to = out, .size = size};
	uint16_t n = 1;
	int got = receive_buffer(ring, &target);

	*n_buffers = 1;
	if (got <= 0)
		return got;
	if (target.length < DRIVER_HEADER_SIZE)
		return -DRIVER_USED_LENGTH;
	if (ring->setup.mergeable) {
		memcpy(&n, out + 10, sizeof(n));
		*n_buffers = n;
	}
	if (!n)
		return -DRIVER_FRAME_INCOMPLETE;
	for (uint32_t i = 1; i < n; i++) {
		got = receive_buffer(ring, &target);
		if (got < 0)
			return got;
		if (!got)
			return -DRIVER_FRAME_INCOMPLETE;
	}
	return (int)target.length;
}

/* Going on with another back end. */

uint32_t driver_resume_base(const struct driver_ring *ring)
{
	uint32_t position = ring->used_position;
	bool wrap = ring->used_wrap;

	if (!ring->setup.packed)
		return LOAD_ACQUIRE(&ring->used->index);
	/* Walk over what was used and not looked at yet. A batch of used buffers is skipped as a
	 * whole. */
	for (uint32_t i = 0, n = ring->in_flight; i < n && packed_used_at(ring, position, wrap);
	     i++) {
		uint32_t id = LOAD_RELAXED(&ring->desc.packed[position].id);
		uint32_t by;

		if (id >= ring->setup.size || !ring->requests[id].descriptors)
			break;
		by = ring->requests[id].descriptors;
		if (ring->setup.in_order)
			by += (id + ring->setup.size - position) % ring->setup.size;
		position += by;
		if (position >= ring->setup.size) {
			position -= ring->setup.size;
			wrap = !wrap;
		}
	}
	return position | (uint32_t)wrap << 15;
}
