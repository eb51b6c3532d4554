/* What a guest sends: its descriptors become frames, and go back in the order in which they came.
 *
 * The owning worker. Reads descriptors (checked in virtqueue_ring.h and virtqueue_chain.c) and the
 * struct virtio_net_hdr before each frame, once, as a claim that the parser will check. Never
 * reads a byte of the frame itself.
 */
#include "virtqueue_ring.h"

#define FRAME_MIN 14u
#define PATIENCE \
	2048u /* descriptors read in one call: long chains must not keep the others waiting */

/* Bytes 0..9 of struct virtio_net_hdr are struct offload, in little-endian order (virtio 1.2,
 * 5.1.6). */
ALWAYS_INLINE void read_offload(struct offload *offload, const u8 *header)
{
	u64 first = READ_UNALIGNED(64, header);
	u16 last = READ_UNALIGNED(16, header + 8);

	_Static_assert(sizeof(*offload) == 10 && offsetof(struct offload, csum_offset) == 8,
		       "as on the ring");
	memcpy(offload, &first, sizeof(first));
	offload->csum_offset = last;
}

/* Takes the header off the front of `segments`, which may cut it anywhere. Returns how many
 * segments were used up; one that is used in part is shortened. -1: they are shorter. */
static int split_header(struct segment *segments, u32 n, u8 *header, u32 length)
{
	u32 i = 0;

	while (length && i < n) {
		u32 piece = segments[i].length < length ? segments[i].length : length;

		memcpy(header, segments[i].data, piece);
		header += piece;
		length -= piece;
		segments[i].data += piece;
		segments[i].length -= piece;
		if (!segments[i].length)
			i++;
	}
	return length ? -1 : (int)i;
}

/* Makes a frame of a walked chain, good or with the reason why it is none. */
static void frame_of_chain(const struct vring *ring, struct packet *packet, struct chain *chain)
{
	u8 header[VNET_HEADER_MAX] = {0};
	u64 length = chain->length > ring->header_length ? chain->length - ring->header_length : 0;
	int used = split_header(chain->segments, chain->n, header, ring->header_length);

	packet->n_segments = 0;
	packet->length = length > PACKET_LENGTH_MAX ? PACKET_LENGTH_MAX : (u32)length;
	if (used < 0 || length < FRAME_MIN)
		packet->reason = DROP_RUNT;
	else if (length > PACKET_LENGTH_MAX)
		packet->reason = DROP_OVERSIZE;
	else if (chain->cut || chain->n - (u32)used > PACKET_SEGMENTS_MAX)
		packet->reason = DROP_TOO_MANY_SEGMENTS;
	if (packet->reason)
		return;
	read_offload(&packet->offload, header);
	packet->n_segments = (u16)(chain->n - (u32)used);
	memcpy(packet->segments, chain->segments + used,
	       packet->n_segments * sizeof(struct segment));
}

/* The slow way: takes the buffer at ring->next. Returns the descriptors read, 0 after a fault. */
static NOINLINE u32 take_chain(struct vring *ring, u16 entry, struct packet *packet)
{
	struct segment segments[PACKET_SEGMENTS_MAX + VNET_HEADER_MAX];
	struct chain chain = {.segments = segments, .room = ARRAY_SIZE(segments)};
	enum port_fault fault = ring->kind == RING_PACKED ?
					walk_packed(ring, ring->next, ring->next_wrap, 0, &chain) :
					walk_split(ring, entry, 0, &chain);

	if (fault) {
		vring_fault(ring, fault);
		return 0;
	}
	frame_of_chain(ring, packet, &chain);
	ring->under_way[ring->taken++ & (RX_SLOTS - 1)] =
		(struct taken){.id = chain.id, .count = chain.count};
	if (ring->kind == RING_PACKED)
		advance_packed(ring, &ring->next, &ring->next_wrap, chain.count);
	else
		ring->next++;
	return chain.descriptors;
}

ALWAYS_INLINE void take_simple(struct vring *ring, const enum ring_kind kind,
			       const struct head *head, struct packet *packet)
{
	u32 header = ring->header_length;

	read_offload(&packet->offload, head->data);
	packet->segments[0] =
		(struct segment){.data = head->data + header, .length = head->length - header};
	packet->n_segments = 1;
	packet->length = head->length - header;
	ring->under_way[ring->taken++ & (RX_SLOTS - 1)] =
		(struct taken){.id = head->id, .count = 1};
	if (kind == RING_PACKED)
		advance_packed(ring, &ring->next, &ring->next_wrap, 1);
	else
		ring->next++;
}

ALWAYS_INLINE bool is_simple(const struct vring *ring, const struct head *head)
{
	u32 least = ring->header_length + FRAME_MIN;

	return head->data && head->length - least <= PACKET_LENGTH_MAX - FRAME_MIN;
}

/* The used entries that will be written when these frames are through. */
ALWAYS_INLINE void prefetch_used(const struct vring *ring, const enum ring_kind kind, u32 n)
{
	if (kind == RING_PACKED)
		return; /* they are the descriptors that were just read */
	for (u32 i = 0; i < n + 7; i += 8)
		__builtin_prefetch(&ring->used->ring[(ring->used_next + i) & ring->mask], 1);
}

ALWAYS_INLINE u32 rx(struct vring *ring, struct rx_queue *queue, u32 max, const enum ring_kind kind)
{
	struct head heads[BATCH];
	u32 total = 0, patience = PATIENCE;

	if (max > BATCH)
		max = BATCH;
	while (total < max && patience) {
		u32 n = kind == RING_PACKED ? peek_packed(ring, max - total, heads, 0) :
					      peek_split(ring, max - total, heads, 0);

		if (!n)
			break;
		prefetch_heads(heads, n, 0);
		prefetch_used(ring, kind, n);
		for (u32 i = 0; i < n && patience; i++) {
			struct packet *packet = &queue->slots[queue->head & (RX_SLOTS - 1)];
			u32 read = 1;

			packet->reason = 0;
			packet->done = 0;
			if (likely(is_simple(ring, &heads[i])))
				take_simple(ring, kind, &heads[i], packet);
			else
				read = take_chain(ring, heads[i].id, packet);
			if (unlikely(!read))
				return total;
			patience -= read < patience ? read : patience;
			queue->head++;
			total++;
		}
		/* A packed ring's reading stopped at a chain: there may be more behind it. */
		if (kind == RING_SPLIT)
			break;
	}
	return total;
}

static NOINLINE u32 rx_split(struct vring *ring, struct rx_queue *queue, u32 max)
{
	return rx(ring, queue, max, RING_SPLIT);
}

static NOINLINE u32 rx_packed(struct vring *ring, struct rx_queue *queue, u32 max)
{
	return rx(ring, queue, max, RING_PACKED);
}

u32 vring_rx(struct vring *ring, struct rx_queue *queue, u32 max)
{
	if (unlikely(ring->broken))
		return 0;
	return ring->kind == RING_PACKED ? rx_packed(ring, queue, max) : rx_split(ring, queue, max);
}

/* virtio 1.2, 2.7.9 and 2.8.9: one entry with the last one's id, at the place of the first, stands
 * for the whole batch. */
ALWAYS_INLINE void complete_in_order(struct vring *ring, const enum ring_kind kind, u32 n)
{
	struct taken last = ring->under_way[(ring->returned + n - 1) & (RX_SLOTS - 1)];

	if (kind == RING_SPLIT) {
		put_used(ring, kind, last, 0);
		ring->pending_index = (u16)(ring->pending_index + n - 1);
		ring->unsignalled += n - 1;
	} else {
		last.count = 0;
		for (u32 i = 0; i < n; i++)
			last.count =
				(u16)(last.count +
				      ring->under_way[(ring->returned + i) & (RX_SLOTS - 1)].count);
		put_used(ring, kind, last, 0);
	}
}

ALWAYS_INLINE void complete(struct vring *ring, u32 n, const enum ring_kind kind)
{
	if (ring->in_order) {
		complete_in_order(ring, kind, n);
	} else {
		for (u32 i = 0; i < n; i++)
			put_used(ring, kind, ring->under_way[(ring->returned + i) & (RX_SLOTS - 1)],
				 0);
	}
	ring->returned += n;
	publish_used(ring, kind);
}

void vring_complete(struct vring *ring, u32 n)
{
	assert(n <= ring->taken - ring->returned);
	if (!n || unlikely(ring->broken))
		return;
	if (ring->kind == RING_PACKED)
		complete(ring, n, RING_PACKED);
	else
		complete(ring, n, RING_SPLIT);
}
