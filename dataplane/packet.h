/* One frame on its way through a worker: where its bytes are, its header copy, what is known about
 * it.
 *
 * The bytes of `segments` may be a guest's memory that changes while we look: only the header copy
 * is read for decisions, the payload is read once, by the port that writes it to its destination.
 * Worker threads only.
 */
#ifndef VSWITCH_PACKET_H
#define VSWITCH_PACKET_H

#include "base.h"

#define PACKET_HEADROOM 64  /* bytes before `header` that may be used to push tags */
#define PACKET_HEADER 128  /* bytes copied at first */
#define PACKET_HEADER_MAX 512  /* bytes copied when the headers go on */
#define PACKET_SEGMENTS_MAX 64
#define PACKET_LENGTH_MAX \
	(65535 + 14 + 8) /* a 64 KiB IP packet behind Ethernet and two VLAN tags */
#define PACKET_GSO_SEGMENTS_MAX 256

/* The checksum and segmentation request that travels with a frame: struct virtio_net_hdr
 * (virtio 1.2, 5.1.6) in host order. As received it is a stranger's word; after parse it is our
 * own. */
struct offload {
	u8 flags;    /* OFFLOAD_* */
	u8 gso_type; /* GSO_* */
	u16 hdr_len;
	u16 gso_size;
	u16 csum_start; /* from the first byte of the frame */
	u16 csum_offset;
};
#define OFFLOAD_NEEDS_CSUM 1 /* VIRTIO_NET_HDR_F_NEEDS_CSUM */
#define OFFLOAD_DATA_VALID 2 /* VIRTIO_NET_HDR_F_DATA_VALID */
#define GSO_NONE 0
#define GSO_TCPV4 1
#define GSO_UDP 3
#define GSO_TCPV6 4
#define GSO_UDP_L4 5
#define GSO_ECN 0x80

struct segment {
	const u8 *data;
	u32 length;
};

struct packet {
	u8 *header; /* first byte of the frame's header copy, PACKET_HEADROOM usable bytes before it
		     */
	u16 header_length; /* valid bytes at `header`, after edits */
	u16 header_taken; /* bytes of the source that `header` stands for: payload starts at this
			     offset of the segments */
	u32 length; /* bytes of the source frame (without any virtio_net_hdr) */
	u16 n_segments;
	u8 done; /* the engine is finished with it: its source may have the memory back */
	u8 reason; /* enum drop_reason, set by a port: by rx() for a bad frame, by tx() for one it
		      had to refuse */
	struct offload offload;
	struct segment *segments; /* hold `length` bytes */
	u64 cookie; /* the source port's own (descriptor id, count…) */

	/* From parse.h; offsets from the first byte of `header`, 0 when unknown. */
	u16 l3, l4, payload; /* network header, transport header, behind the transport header */
	u8 tags; /* VLAN tags seen: 0, 1 or 2 */
};

/* Bytes of the frame as it leaves, after edits of the header. */
ALWAYS_INLINE u32 packet_length_out(const struct packet *p)
{
	return p->length - p->header_taken + p->header_length;
}

/* Copies `length` bytes from `offset` of the source segments. Returns false when they are not all
 * there. */
bool packet_copy(const struct packet *packet, u32 offset, void *to, u32 length);

/* Calls for the pieces of the frame as it leaves: fills `out` (room for PACKET_SEGMENTS_MAX + 1)
 * with the header and what is left of the source segments. Returns the number of pieces. */
u32 packet_pieces(const struct packet *packet, struct segment *out);

#endif
