/* Checksums and segmentation in software, for receivers that cannot take what the sender left
 * undone.
 *
 * Worker threads; reads source segments (possibly a guest's memory) once.
 */
#ifndef VSWITCH_OFFLOAD_H
#define VSWITCH_OFFLOAD_H

#include "packet.h"

/* Checks the frame's checksum and segmentation request (p->offload, a stranger's word) against what
 * was parsed (p->l3, l4, payload, header bytes) and replaces it by our own: csum_start is the
 * transport header, csum_offset fits TCP, UDP (or nothing is asked), hdr_len is ours, gso type fits
 * the protocol and IP version, gso_size > 0, at most PACKET_GSO_SEGMENTS_MAX segments, GSO needs
 * NEEDS_CSUM; DATA_VALID is kept as a hint only with no NEEDS_CSUM. Returns false when it does not
 * fit (DROP_BAD_OFFLOAD). */
bool offload_check(struct packet *packet, u8 ip_proto);

/* Adds `bytes` (may be negative) to the offsets after a tag was pushed or popped. */
void offload_shift(struct packet *packet, int bytes);

/* True when a receiver with `offloads` (PORT_OFFLOAD_*) can take the frame as it is. */
bool offload_fits(const struct packet *packet, u32 offloads);

/* Makes complete frames of one: checksum filled in, or cut into gso_size pieces with right IP
 * lengths, ids, TCP sequence numbers and flags, UDP lengths, checksums. `scratch` has room for
 * `scratch_size` bytes (a frame and its copies: PACKET_LENGTH_MAX + 256 * 256 suffices). Calls
 * `emit` for each; a frame given to it is one segment, valid during the call. Returns how many were
 * made; 0 when there was no room or the source was short. */
u32 offload_finish(const struct packet *packet, u8 *scratch, u32 scratch_size,
		   void (*emit)(struct packet *piece, void *context), void *context);

#endif
