/* Reading a packet's bytes across its segments: see packet.h.
 *
 * The segments may be a guest's memory that changes meanwhile: what is copied here is what counts.
 * Worker threads. Never reads beyond the segments it was given, whatever the lengths in the packet
 * say.
 */
#include "packet.h"

bool packet_copy(const struct packet *packet, u32 offset, void *to, u32 length)
{
	u8 *out = to;

	for (u32 i = 0; i < packet->n_segments && length; i++) {
		const struct segment *segment = &packet->segments[i];
		u32 n;

		if (offset >= segment->length) {
			offset -= segment->length;
			continue;
		}
		n = segment->length - offset;
		if (n > length)
			n = length;
		memcpy(out, segment->data + offset, n);
		out += n;
		length -= n;
		offset = 0;
	}
	return !length;
}

u32 packet_pieces(const struct packet *packet, struct segment *out)
{
	u32 skip = packet->header_taken, left = packet->length - packet->header_taken, n = 0;

	if (packet->header_length)
		out[n++] = (struct segment){packet->header, packet->header_length};
	for (u32 i = 0; i < packet->n_segments && left; i++) {
		const struct segment *segment = &packet->segments[i];
		u32 length;

		if (skip >= segment->length) {
			skip -= segment->length;
			continue;
		}
		length = segment->length - skip;
		if (length > left)
			length = left;
		out[n++] = (struct segment){segment->data + skip, length};
		left -= length;
		skip = 0;
	}
	return n;
}
