/* What a guest receives: frames go straight from their source into its buffers.
 *
 * Worker thread, with the queue's lock. Reads descriptors (checked) and the source's segments,
 * once; writes the guest's buffers through guest_write_frame() only. A frame is written whole or
 * not at all: without buffers enough for all of it nothing is consumed.
 */
#include "virtqueue_ring.h"

#define BUFFERS_MAX 1024u  /* of one frame, mergeable: a 64 KiB frame in buffers of 64 bytes */
#define SEGMENTS_MAX 1100u /* that these consist of */

enum outcome { TAKEN, FULL, REFUSED, BROKEN };

/* struct virtio_net_hdr (virtio 1.2, 5.1.6) before the frame: the request is our own word, see
 * offload_check(). */
ALWAYS_INLINE u32 make_header(const struct vring *ring, const struct packet *packet, u16 buffers,
			      u8 *header)
{
	struct offload offload = packet->offload;

	offload.flags &= ring->offload_flags;
	memcpy(header, &offload, sizeof(offload));
	memcpy(header + sizeof(offload), &buffers, sizeof(buffers));
	return ring->header_length;
}

/* The usual case: one descriptor takes it all. `to` has room. */
ALWAYS_INLINE void write_simple(struct vring *ring, const struct packet *packet, u8 *to)
{
	u32 header = ring->header_length, skip = packet->header_taken, left = packet->length - skip;
	struct offload offload = packet->offload;
	u64 first;

	offload.flags &= ring->offload_flags;
	memcpy(&first, &offload, sizeof(first));
	STORE_UNALIGNED(u64, to, first);
	STORE_UNALIGNED(u16, to + 8, offload.csum_offset);
	if (likely(header == 12))
		STORE_UNALIGNED(u16, to + 10, 1); /* num_buffers */
	to += header;
	guest_write_frame(to, packet->header, packet->header_length, &ring->written);
	to += packet->header_length;
	for (u32 i = 0; left; i++) {
		const struct segment *segment = &packet->segments[i];
		u32 length;

		if (skip >= segment->length) {
			skip -= segment->length;
			continue;
		}
		length = segment->length - skip < left ? segment->length - skip : left;
		guest_write_frame(to, segment->data + skip, length, &ring->written);
		to += length;
		left -= length;
		skip = 0;
	}
}

/* Where a frame may be written to: buffers, collected until there is room for all of it. */
struct collection {
	u32 n_buffers, room;
	struct chain chain; /* the segments of all buffers, one behind the other */
	struct {
		struct taken taken;
		u32 room;
	} buffers[BUFFERS_MAX];
	struct segment segments[SEGMENTS_MAX];
};

/* Adds the buffer at the cursor. Returns FULL when the driver has given no more. */
static enum outcome collect_buffer(struct vring *ring, struct collection *collection, u16 *next,
				   u8 *wrap)
{
	struct chain *chain = &collection->chain;
	enum port_fault fault;
	u64 before = chain->length;

	if (ring->kind == RING_PACKED) {
		if (!packed_is_available(LOAD_ACQUIRE(&ring->desc[*next].word), *wrap))
			return FULL;
		fault = walk_packed(ring, *next, *wrap, DESC_WRITE, chain);
	} else {
		u16 entry;

		if (*next == ring->avail_seen && !look_for_more(ring))
			return BROKEN;
		if (*next == ring->avail_seen)
			return FULL;
		entry = READ_ONCE(ring->avail->ring[*next & ring->mask]);
		fault = entry < ring->size ?
				walk_split(ring, entry & (u16)guest_index_mask(entry, ring->size),
					   DESC_WRITE, chain) :
				FAULT_DESCRIPTOR;
	}
	if (fault) {
		vring_fault(ring, fault);
		return BROKEN;
	}
	collection->buffers[collection->n_buffers].taken =
		(struct taken){.id = chain->id, .count = chain->count};
	collection->buffers[collection->n_buffers++].room = (u32)(chain->length - before);
	if (ring->kind == RING_PACKED)
		advance_packed(ring, next, wrap, chain->count);
	else
		(*next)++;
	return TAKEN;
}

/* Writes into the collected segments, one after the other. */
struct writer {
	const struct segment *segment;
	u32 offset;
};

static void write_on(struct writer *writer, const u8 *from, u32 length, u64 *written)
{
	while (length) {
		u32 room = writer->segment->length - writer->offset;
		u32 piece = length < room ? length : room;

		guest_write_frame((u8 *)(uintptr_t)writer->segment->data + writer->offset, from,
				  piece, written);
		from += piece;
		length -= piece;
		writer->offset += piece;
		if (writer->offset == writer->segment->length) {
			writer->segment++;
			writer->offset = 0;
		}
	}
}

static void write_collected(struct vring *ring, const struct packet *packet,
			    const struct collection *collection)
{
	struct writer writer = {.segment = collection->segments};
	u8 header[VNET_HEADER_MAX];
	u32 skip = packet->header_taken, left = packet->length - skip;
	u64 not_counted = 0; /* the header is not the frame's */

	write_on(&writer, header, make_header(ring, packet, (u16)collection->n_buffers, header),
		 &not_counted);
	write_on(&writer, packet->header, packet->header_length, &ring->written);
	for (u32 i = 0; left; i++) {
		const struct segment *segment = &packet->segments[i];
		u32 skipped = skip < segment->length ? skip : segment->length;
		u32 length = segment->length - skipped < left ? segment->length - skipped : left;

		write_on(&writer, segment->data + skipped, length, &ring->written);
		skip -= skipped;
		left -= length;
	}
}

/* The slow way: several buffers, or one of several pieces. */
static NOINLINE enum outcome write_slowly(struct vring *ring, struct packet *packet)
{
	struct collection collection;
	u32 need = ring->header_length + packet_length_out(packet);
	u16 next = ring->next;
	u8 wrap = ring->next_wrap;

	collection.n_buffers = 0;
	collection.chain = (struct chain){.segments = collection.segments, .room = SEGMENTS_MAX};
	do {
		enum outcome outcome;

		/* All that the guest can give would not be enough. */
		if (collection.n_buffers == BUFFERS_MAX || collection.n_buffers == ring->size ||
		    (collection.n_buffers && !ring->mergeable)) {
			packet->reason = DROP_RX_TOO_SMALL;
			return REFUSED;
		}
		outcome = collect_buffer(ring, &collection, &next, &wrap);
		if (outcome != TAKEN)
			return outcome;
		if (collection.chain.cut) {
			packet->reason =
				DROP_RX_TOO_SMALL; /* in pieces that are too small, at least */
			return REFUSED;
		}
	} while (collection.chain.length < need);
	write_collected(ring, packet, &collection);
	for (u32 i = 0; i < collection.n_buffers; i++) {
		u32 length = need < collection.buffers[i].room ? need : collection.buffers[i].room;

		put_used(ring, ring->kind, collection.buffers[i].taken, length);
		need -= length;
	}
	ring->next = next;
	ring->next_wrap = wrap;
	return TAKEN;
}

ALWAYS_INLINE void advance_next(struct vring *ring, const enum ring_kind kind)
{
	if (kind == RING_PACKED)
		advance_packed(ring, &ring->next, &ring->next_wrap, 1);
	else
		ring->next++;
}

ALWAYS_INLINE u32 peek(struct vring *ring, const enum ring_kind kind, u32 max, struct head *heads)
{
	u32 n = kind == RING_PACKED ? peek_packed(ring, max, heads, DESC_WRITE) :
				      peek_split(ring, max, heads, DESC_WRITE);

	prefetch_heads(heads, n, DESC_WRITE);
	if (kind == RING_SPLIT)
		for (u32 i = 0; i < n + 7; i += 8)
			__builtin_prefetch(
				&ring->used->ring[(ring->pending_index + i) & ring->mask], 1);
	return n;
}

ALWAYS_INLINE u32 tx(struct vring *ring, struct packet **packets, u32 n, const enum ring_kind kind)
{
	struct head heads[BATCH];
	u32 done = 0, want = n < BATCH ? n : BATCH;
	enum outcome outcome = TAKEN;

	while (done < n && outcome != FULL && outcome != BROKEN) {
		u32 peeked = peek(ring, kind, want, heads);

		if (!peeked)
			break;
		want = n - done < BATCH ? n - done : BATCH;
		for (u32 i = 0; i < peeked && done < n; i++) {
			u32 need = ring->header_length + packet_length_out(packets[done]);

			if (unlikely(!heads[i].data || need > heads[i].length)) {
				outcome = write_slowly(ring, packets[done]);
				done += outcome == TAKEN || outcome == REFUSED;
				/* The next frame is probably no smaller. */
				want = 1;
				break;
			}
			write_simple(ring, packets[done++], heads[i].data);
			put_used(ring, kind, (struct taken){.id = heads[i].id, .count = 1}, need);
			advance_next(ring, kind);
		}
	}
	publish_used(ring, kind);
	return done;
}

static NOINLINE u32 tx_split(struct vring *ring, struct packet **packets, u32 n)
{
	return tx(ring, packets, n, RING_SPLIT);
}

static NOINLINE u32 tx_packed(struct vring *ring, struct packet **packets, u32 n)
{
	return tx(ring, packets, n, RING_PACKED);
}

u32 vring_tx(struct vring *ring, struct packet **packets, u32 n)
{
	u32 done = 0;

	if (likely(!ring->broken))
		done = ring->kind == RING_PACKED ? tx_packed(ring, packets, n) :
						   tx_split(ring, packets, n);
	guest_bytes_written += ring->written;
	ring->written = 0;
	if (unlikely(ring->broken))
		for (; done < n; done++)
			packets[done]->reason = DROP_RING_BROKEN;
	return done;
}
