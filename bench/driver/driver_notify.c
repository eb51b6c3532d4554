/* Kicks and interrupts of a ring, with plain flags and with EVENT_IDX.
 *
 * Reads what the device asks for (a stranger's word, but any value of it only costs a kick too many
 * or too few). One thread per ring at a time. Never blocks: an eventfd that is full has a kick
 * pending anyway.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <sys/eventfd.h>

/* True when going from `old` to `new` has passed `event` (virtio 1.2, 2.7.7.2). */
static bool passed_event(uint16_t event, uint16_t new, uint16_t old)
{
	return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static bool kick_wanted_packed(const struct driver_ring *ring)
{
	/* Flags first: the position is valid when they say so. */
	uint16_t flags = LOAD_ACQUIRE(&ring->device_event->flags);
	uint16_t at = LOAD_RELAXED(&ring->device_event->position);
	uint16_t event = at & 0x7fff, new = (uint16_t)ring->position;

	if (!ring->setup.event_idx || (flags & 3) != EVENT_DESC)
		return (flags & 3) != EVENT_DISABLE;
	if ((at >> 15) != ring->wrap)
		event = (uint16_t)(event - ring->setup.size);
	return passed_event(event, new, (uint16_t)(new - ring->unnotified));
}

static bool kick_wanted_split(const struct driver_ring *ring)
{
	const uint16_t *event = (const uint16_t *)&ring->used->ring[ring->setup.size];

	if (!ring->setup.event_idx)
		return !(LOAD_RELAXED(&ring->used->flags) & NO_NOTIFY);
	return passed_event(LOAD_RELAXED(event), ring->avail_index,
			    (uint16_t)(ring->avail_index - ring->unnotified));
}

int driver_notify(struct driver_ring *ring)
{
	bool wanted;

	if (!ring->unnotified || ring->unpublished)
		return 0;
	/* Pairs with the device's barrier between asking for a kick and looking once more. */
	FULL_BARRIER();
	wanted = ring->setup.packed ? kick_wanted_packed(ring) : kick_wanted_split(ring);
	ring->unnotified = 0;
	if (!wanted) {
		ring->counters.kicks_suppressed++;
		return 0;
	}
	ring->counters.kicks++;
	eventfd_write(ring->setup.kick_fd, 1);
	return 1;
}

void driver_interrupts(struct driver_ring *ring, int on)
{
	if (ring->setup.packed) {
		uint16_t flags = on ? EVENT_ENABLE : EVENT_DISABLE;
		uint16_t at = (uint16_t)(ring->used_position | (unsigned int)ring->used_wrap << 15);

		if (on && ring->setup.event_idx) {
			__atomic_store_n(&ring->driver_event->position, at, __ATOMIC_RELAXED);
			flags = EVENT_DESC;
		}
		STORE_RELEASE(&ring->driver_event->flags, flags);
	} else if (ring->setup.event_idx) {
		/* Off: an index that was passed just now, so the farthest one there is. */
		uint16_t event = (uint16_t)(on ? ring->used_index : ring->used_index - 1);

		__atomic_store_n(&ring->avail->ring[ring->setup.size], event, __ATOMIC_RELAXED);
	} else {
		uint16_t flags = on ? 0 : NO_INTERRUPT;

		__atomic_store_n(&ring->avail->flags, flags, __ATOMIC_RELAXED);
	}
	/* Pairs with the device's barrier between writing used entries and looking whether we want
	 * to know. */
	FULL_BARRIER();
}
