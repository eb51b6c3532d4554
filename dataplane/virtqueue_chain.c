/* The slow way to a buffer: chains of descriptors, tables of indirect ones, pieces in several
 * memory regions.
 *
 * Worker thread. All that is read is a guest's: each descriptor once, in place; a chain that does
 * not end, a table that is none, an address outside the guest's memory are faults. Work is bounded
 * by CHAIN_MAX descriptors.
 */
#include "virtqueue_ring.h"

#define CHAIN_MAX 1024u /* descriptors of one buffer */

/* Adds `length` bytes, as several segments where they lie in several regions. */
static enum port_fault add_segment(struct vring *ring, struct chain *chain, u64 address, u32 length)
{
	chain->length += length;
	if (!length)
		return FAULT_DESCRIPTOR; /* no driver sends empty ones; QEMU refuses them as well */
	while (length) {
		u32 got = length;
		u8 *data = guest_memory_at(ring->memory, &ring->region, address, length);

		if (unlikely(!data))
			data = guest_memory_part(ring->memory, address, length, &got);
		if (!data)
			return FAULT_DESCRIPTOR;
		if (chain->n == chain->room) {
			chain->cut = true;
			return FAULT_NONE;
		}
		chain->segments[chain->n++] = (struct segment){.data = data, .length = got};
		address += got;
		length -= got;
	}
	return FAULT_NONE;
}

static struct descriptor read_table(const u8 *table, u32 entry)
{
	u64 word = READ_UNALIGNED(64, table + 16 * entry + 8);

	/* Split layout. In a packed table the flags come last, and there is no next (2.8.7). */
	return (struct descriptor){.address = READ_UNALIGNED(64, table + 16 * entry),
				   .length = (u32)word,
				   .flags = (u16)(word >> 32),
				   .number = (u16)(word >> 48)};
}

/* virtio 1.2, 2.7.5.3 and 2.8.7 */
static enum port_fault walk_table(struct vring *ring, const struct descriptor *indirect, u16 write,
				  struct chain *chain)
{
	u32 n = indirect->length / 16, entry = 0, seen;
	const u8 *table;

	if (!ring->indirect || (indirect->flags & DESC_NEXT) || !n || indirect->length % 16 ||
	    n > CHAIN_MAX)
		return FAULT_DESCRIPTOR;
	table = guest_memory_at(ring->memory, &ring->region, indirect->address, indirect->length);
	if (!table)
		return FAULT_DESCRIPTOR;
	for (seen = 0; seen < n; seen++) {
		struct descriptor descriptor =
			read_table(table, entry & (u32)guest_index_mask(entry, n));
		u16 flags = ring->kind == RING_PACKED ? descriptor.number : descriptor.flags;
		enum port_fault fault;

		chain->descriptors++;
		if ((flags & DESC_INDIRECT) || (flags & DESC_WRITE) != write)
			return FAULT_DESCRIPTOR;
		fault = add_segment(ring, chain, descriptor.address, descriptor.length);
		if (fault)
			return fault;
		if (ring->kind == RING_PACKED) {
			entry++;
			continue;
		}
		if (!(flags & DESC_NEXT))
			return FAULT_NONE;
		entry = descriptor.number;
		if (entry >= n)
			return FAULT_DESCRIPTOR;
	}
	return ring->kind == RING_PACKED ? FAULT_NONE : FAULT_DESCRIPTOR_LOOP;
}

enum port_fault walk_split(struct vring *ring, u16 entry, u16 write, struct chain *chain)
{
	u32 most = ring->size < CHAIN_MAX ? ring->size : CHAIN_MAX;

	chain->id = entry;
	chain->count = 1;
	for (u32 seen = 0; seen < most; seen++) {
		struct descriptor descriptor = read_split(&ring->desc[entry]);
		enum port_fault fault;

		chain->descriptors++;
		if (descriptor.flags & DESC_INDIRECT)
			return walk_table(ring, &descriptor, write, chain);
		if ((descriptor.flags & DESC_WRITE) != write)
			return FAULT_DESCRIPTOR;
		fault = add_segment(ring, chain, descriptor.address, descriptor.length);
		if (fault)
			return fault;
		if (!(descriptor.flags & DESC_NEXT))
			return FAULT_NONE;
		entry = descriptor.number;
		if (entry >= ring->size)
			return FAULT_DESCRIPTOR;
		entry &= (u16)guest_index_mask(entry, ring->size);
	}
	return FAULT_DESCRIPTOR_LOOP;
}

enum port_fault walk_packed(struct vring *ring, u32 position, u8 wrap, u16 write,
			    struct chain *chain)
{
	u32 most = ring->size < CHAIN_MAX ? ring->size : CHAIN_MAX;
	u16 at = (u16)position;

	for (u32 seen = 0; seen < most; seen++) {
		struct descriptor descriptor;
		enum port_fault fault;

		/* The driver makes a chain's first descriptor available last: all of it must be
		 * there by now (2.8.6). */
		if (!read_packed(ring, at, wrap, &descriptor))
			return FAULT_DESCRIPTOR;
		chain->descriptors++;
		chain->id = descriptor.number;
		chain->count = (u16)(seen + 1);
		if (descriptor.flags & DESC_INDIRECT)
			return walk_table(ring, &descriptor, write, chain);
		if ((descriptor.flags & DESC_WRITE) != write)
			return FAULT_DESCRIPTOR;
		fault = add_segment(ring, chain, descriptor.address, descriptor.length);
		if (fault)
			return fault;
		if (!(descriptor.flags & DESC_NEXT))
			return FAULT_NONE;
		advance_packed(ring, &at, &wrap, 1);
	}
	return FAULT_DESCRIPTOR_LOOP;
}
