/* struct virtio_net_hdr (virtio 1.2, 5.1.6) as bytes: little endian, 10 bytes, or 12 with
 * num_buffers behind.
 *
 * Copied from a stranger before it comes here; says nothing about what it claims: see
 * offload_check(). Any thread.
 */
#ifndef VSWITCH_VNET_HEADER_H
#define VSWITCH_VNET_HEADER_H

#include "packet.h"

#define VNET_HEADER 10
#define VNET_HEADER_BUFFERS 12 /* with num_buffers */

static inline void vnet_header_read(const u8 *bytes, struct offload *offload)
{
	offload->flags = bytes[0];
	offload->gso_type = bytes[1];
	offload->hdr_len = LOAD_UNALIGNED(le16, bytes + 2);
	offload->gso_size = LOAD_UNALIGNED(le16, bytes + 4);
	offload->csum_start = LOAD_UNALIGNED(le16, bytes + 6);
	offload->csum_offset = LOAD_UNALIGNED(le16, bytes + 8);
}

static inline void vnet_header_write(u8 *bytes, const struct offload *offload)
{
	bytes[0] = offload->flags;
	bytes[1] = offload->gso_type;
	STORE_UNALIGNED(le16, bytes + 2, offload->hdr_len);
	STORE_UNALIGNED(le16, bytes + 4, offload->gso_size);
	STORE_UNALIGNED(le16, bytes + 6, offload->csum_start);
	STORE_UNALIGNED(le16, bytes + 8, offload->csum_offset);
}

#endif
