/* A ring's life and its signals: start, what is told to the front end when it stops, kicks and
 * calls. See virtqueue.h.
 *
 * Reads the guest's words in the event suppression fields, once each. vring_start() and
 * vring_base(): control thread; all others: workers.
 */
#include "virtqueue_ring.h"

#define EVENT_OFF 0x7fff
#define EVENT_WRAP 0x8000

/* used_event and avail_event lie behind the rings that the other side does not write. */
static le16 *used_event(const struct vring *ring)
{
	return &ring->avail->ring[ring->size];
}

static le16 *avail_event(const struct vring *ring)
{
	return (le16 *)((u8 *)ring->used + offsetof(struct split_used, ring) + 8 * (u32)ring->size);
}

static bool has(u64 features, u32 number)
{
	return features & FEATURE(number);
}

static void asks_no_kicks(struct vring *ring)
{
	if (ring->kind == RING_PACKED)
		WRITE_ONCE(ring->device_event->flags, EVENT_DISABLE);
	else
		WRITE_ONCE(ring->used->flags, ring->event_idx ? 0 : 1 /* VIRTQ_USED_F_NO_NOTIFY */);
}

static int start_split(struct vring *ring, const struct vring_config *config)
{
	u64 size = config->size;

	if (size & (size - 1))
		return -EINVAL;
	ring->mask = (u16)(size - 1);
	ring->avail = guest_memory_user(config->memory, config->driver, 6 + 2 * size, 2);
	ring->used = guest_memory_user(config->memory, config->device, 6 + 8 * size, 4);
	if (!ring->avail || !ring->used)
		return -EINVAL;
	/* Not the front end's base: after a broken connection it knows only where the ring was
	 * before. We complete in order, so all that comes behind the used index is open. */
	ring->next = READ_ONCE(ring->used->index);
	ring->avail_seen = ring->next;
	ring->used_next = ring->pending_index = ring->next;
	return 0;
}

static int start_packed(struct vring *ring, const struct vring_config *config)
{
	ring->driver_event =
		guest_memory_user(config->memory, config->driver, sizeof(struct packed_event), 4);
	ring->device_event =
		guest_memory_user(config->memory, config->device, sizeof(struct packed_event), 4);
	if (!ring->driver_event || !ring->device_event ||
	    (config->base & EVENT_OFF) >= config->size)
		return -EINVAL;
	ring->next = ring->used_next = config->base & EVENT_OFF;
	ring->next_wrap = ring->used_wrap = !!(config->base & EVENT_WRAP);
	return 0;
}

int vring_start(struct vring *ring, const struct vring_config *config)
{
	u64 features = config->features;
	int error;

	memset(ring, 0, sizeof(*ring));
	if (!config->size || config->size > RING_SIZE_MAX)
		return -EINVAL;
	ring->port = config->port;
	ring->memory = config->memory;
	ring->region = &config->memory->regions[0];
	ring->size = (u16)config->size;
	ring->kind = has(features, VIRTIO_F_RING_PACKED) ? RING_PACKED : RING_SPLIT;
	ring->event_idx = has(features, VIRTIO_RING_F_EVENT_IDX);
	ring->indirect = has(features, VIRTIO_RING_F_INDIRECT_DESC);
	ring->mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
	/* A batch of sent buffers goes back with one entry; received ones have lengths, which need
	 * an entry each. */
	ring->in_order = config->is_rx && has(features, VIRTIO_F_IN_ORDER);
	ring->header_length = has(features, VIRTIO_F_VERSION_1) || ring->mergeable ? 12 : 10;
	ring->offload_flags = has(features, VIRTIO_NET_F_GUEST_CSUM) ?
				      OFFLOAD_NEEDS_CSUM | OFFLOAD_DATA_VALID :
				      0;
	ring->call_fd = config->call_fd;
	ring->polled = config->polled;
	ring->desc = guest_memory_user(config->memory, config->desc, 16ull * config->size, 16);
	if (!ring->desc)
		return -EINVAL;
	error = ring->kind == RING_PACKED ? start_packed(ring, config) : start_split(ring, config);
	if (error)
		return error;
	asks_no_kicks(ring);
	return 0;
}

u32 vring_base(const struct vring *ring)
{
	u32 position;

	if (ring->kind == RING_SPLIT)
		return ring->used_next;
	/* Both halves: what is available next, and what is used next; they are the same when
	 * nothing is under way. */
	position = ring->used_next | (ring->used_wrap ? EVENT_WRAP : 0u);
	return position | position << 16;
}

static bool is_available(const struct vring *ring)
{
	if (ring->kind == RING_SPLIT)
		return READ_ONCE(ring->avail->index) != ring->next;
	return packed_is_available(READ_ONCE(ring->desc[ring->next].word), ring->next_wrap);
}

bool vring_arm(struct vring *ring, bool on)
{
	if (!on) {
		asks_no_kicks(ring);
		return false;
	}
	if (ring->kind == RING_PACKED) {
		u16 position = ring->next | (ring->next_wrap ? EVENT_WRAP : 0);

		if (ring->event_idx) {
			WRITE_ONCE(ring->device_event->off_wrap, position);
			STORE_RELEASE(&ring->device_event->flags, EVENT_DESC);
		} else {
			WRITE_ONCE(ring->device_event->flags, EVENT_ENABLE);
		}
	} else if (ring->event_idx) {
		WRITE_ONCE(*avail_event(ring), ring->next);
	} else {
		WRITE_ONCE(ring->used->flags, 0);
	}
	/* The wish before the last look (partner: the driver's full barrier between making buffers
	 * available and reading the wish; 2.7.13.4.1). */
	FULL_BARRIER();
	return ring->polled || is_available(ring);
}

/* virtio 1.2, 2.7.10: has `event` been passed between `before` and `now`? */
static bool event_passed(u16 event, u16 now, u16 before)
{
	return (u16)(now - event - 1) < (u16)(now - before);
}

static bool wants_call_packed(struct vring *ring, u16 used)
{
	u32 event = __atomic_load_n((const u32 *)ring->driver_event, __ATOMIC_RELAXED);
	u16 flags = (u16)(event >> 16) & 3, off = event & EVENT_OFF;

	if (flags != EVENT_DESC || !ring->event_idx)
		return flags != EVENT_DISABLE;
	if (used >= ring->size)
		return true;
	/* Positions count on through the laps: one of the lap before lies a ring's size behind. */
	if (!!(event & EVENT_WRAP) != ring->used_wrap)
		off -= ring->size;
	return event_passed(off, ring->used_next, (u16)(ring->used_next - used));
}

bool vring_wants_call(struct vring *ring)
{
	u32 used = ring->unsignalled;

	ring->unsignalled = 0;
	if (!used || ring->broken)
		return false;
	if (ring->kind == RING_PACKED)
		return wants_call_packed(ring, used < RING_SIZE_MAX ? (u16)used : RING_SIZE_MAX);
	if (!ring->event_idx)
		return !(READ_ONCE(ring->avail->flags) & 1); /* VIRTQ_AVAIL_F_NO_INTERRUPT */
	return used >= ring->size || event_passed(READ_ONCE(*used_event(ring)), ring->used_next,
						  (u16)(ring->used_next - used));
}

static void prepare_buffer(const struct vring *ring, u64 address)
{
	u8 *data = guest_region_at(&ring->memory->regions[0], address, 1);

	if (data) {
		__builtin_prefetch(data, 1);
		__builtin_prefetch(data + CACHE_LINE, 1);
	}
}

/* Without the queue's lock: cursors may be old, nothing is written, and what is read decides
 * nothing. */
void vring_prepare(const struct vring *ring, u32 n)
{
	u16 next = READ_ONCE(ring->next);

	if (ring->kind == RING_PACKED) {
		for (u32 i = 0; i < n && next + i < ring->size; i++)
			prepare_buffer(ring, READ_ONCE(ring->desc[next + i].address));
		return;
	}
	for (u32 i = 0; i < n; i++) {
		u16 entry = READ_ONCE(ring->avail->ring[(next + i) & ring->mask]);

		if (entry < ring->size)
			prepare_buffer(
				ring,
				READ_ONCE(ring->desc[entry & guest_index_mask(entry, ring->size)]
						  .address));
	}
	__builtin_prefetch(&ring->used->ring[next & ring->mask], 1);
}
