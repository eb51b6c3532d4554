/* Virtio rings, split and packed, seen from the device's side (virtio 1.2, 2.7 and 2.8).
 *
 * Every word in a ring is a guest's: it is read once into a local, checked, then used, and
 * whatever is wrong faults the port. A ring is started and stopped by the control thread while no
 * worker reaches it. Between, one worker at a time works on it: the queue's owner on a ring that
 * the guest sends with, who holds the queue's lock on one that it receives with. Nothing here
 * blocks, allocates or makes system calls.
 */
#ifndef VSWITCH_VIRTQUEUE_H
#define VSWITCH_VIRTQUEUE_H

#include "guest_memory.h"
#include "port.h"

#define VIRTIO_NET_F_CSUM 0
#define VIRTIO_NET_F_GUEST_CSUM 1
#define VIRTIO_NET_F_MTU 3
#define VIRTIO_NET_F_GUEST_TSO4 7
#define VIRTIO_NET_F_GUEST_TSO6 8
#define VIRTIO_NET_F_GUEST_ECN 9
#define VIRTIO_NET_F_HOST_TSO4 11
#define VIRTIO_NET_F_HOST_TSO6 12
#define VIRTIO_NET_F_HOST_ECN 13
#define VIRTIO_NET_F_MRG_RXBUF 15
#define VIRTIO_NET_F_MQ 22
#define VIRTIO_RING_F_INDIRECT_DESC 28
#define VIRTIO_RING_F_EVENT_IDX 29
#define VIRTIO_F_VERSION_1 32
#define VIRTIO_F_RING_PACKED 34
#define VIRTIO_F_IN_ORDER 35
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#define FEATURE(number) (1ull << (number))

#define RING_SIZE_MAX 32768u
/* struct virtio_net_hdr with num_buffers; legacy drivers without mergeable buffers: 10 bytes */
#define VNET_HEADER_MAX 12u

/* virtio 1.2, 2.7.5: flags are common to both layouts */
#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4
#define DESC_AVAIL 0x80 /* packed, 2.8.1 */
#define DESC_USED 0x8000 /* packed */

/* virtio 1.2, 2.7.5 and 2.8.13. The second word is read and written whole. */
struct ring_desc {
	le64 address;
	le64 word; /* split: length, flags, next; packed: length, id, flags; from the low end */
};

/* virtio 1.2, 2.7.6: followed by used_event */
struct split_avail {
	le16 flags;
	le16 index;
	le16 ring[];
};

/* virtio 1.2, 2.7.8: elements are id, length; followed by avail_event */
struct split_used {
	le16 flags;
	le16 index;
	le64 ring[] __attribute__((packed, aligned(4)));
};

/* virtio 1.2, 2.8.14 */
struct packed_event {
	le16 off_wrap;
	le16 flags;
};
#define EVENT_ENABLE 0
#define EVENT_DISABLE 1
#define EVENT_DESC 2

/* A descriptor, as it was read. */
struct descriptor {
	u64 address;
	u32 length;
	u16 flags;
	u16 number; /* split: next; packed: id */
};

/* A buffer that was taken and is to be given back. */
struct taken {
	u16 id;
	u16 count; /* packed: descriptors in the ring that it covers; split: 1 */
};

enum ring_kind { RING_SPLIT, RING_PACKED };

struct vring {
	/* Fixed while the ring runs. */
	struct port *port;
	const struct guest_memory *memory;
	struct ring_desc *desc;
	union {
		struct {
			struct split_avail *avail;
			struct split_used *used;
		};
		struct {
			struct packed_event *driver_event, *device_event;
		};
	};
	u16 size, mask; /* mask: split only, whose sizes are powers of two */
	u8 kind; /* enum ring_kind */
	u8 in_order, event_idx, indirect, mergeable;
	u8 header_length; /* of struct virtio_net_hdr as this driver uses it */
	u8 offload_flags; /* OFFLOAD_* that the driver understands */
	u8 polled; /* the driver never kicks */
	int call_fd; /* -1: the driver polls. Replaced by the control thread */

	/* Of who works on it. `next` and `used_next` count on for split rings; packed: position in
	 * the ring, and the lap's wrap bit. */
	const struct guest_region *region CACHE_ALIGNED; /* where the last address was */
	u16 next, avail_seen;
	u16 used_next;
	u8 next_wrap, used_wrap;
	u8 broken; /* a fault was reported: hands off until the ring is started anew */
	u32 unsignalled; /* descriptors used since the last look at the driver's wish for a call */
	le64 *pending_at; /* packed: the first used descriptor that is not published yet */
	le64 pending_word;
	u16 pending_index; /* split: the used index to be published */
	u64 written; /* bytes of frames, for guest_bytes_written */
	u32 returned; /* of under_way */
	u32 taken;
	/* What the guest sends: [returned, taken), parallel to the slots of the queue. */
	struct taken under_way[RX_SLOTS];
};

/* What a ring is started with. Addresses are the front end's. */
struct vring_config {
	struct port *port;
	const struct guest_memory *memory;
	u64 features;
	u64 desc, driver, device; /* split: descriptors, available, used */
	u32 size;
	u32 base; /* as in SET_VRING_BASE: split: index; packed: position | wrap << 15 */
	bool is_rx; /* the guest sends with it */
	bool polled; /* the driver never kicks */
	int call_fd;
};

/* Starts a ring: translates its addresses, sets the cursors. Split rings go on at their used
 * index: what was taken and not completed comes again. Returns 0, -EINVAL for a size or an address
 * that cannot be. */
int vring_start(struct vring *ring, const struct vring_config *config);

/* The number for GET_VRING_BASE. Nothing may be under way. */
u32 vring_base(const struct vring *ring);

/* Takes up to `max` frames into the queue's slots from `head` on, and advances it. */
u32 vring_rx(struct vring *ring, struct rx_queue *queue, u32 max);

/* Gives the oldest `n` taken buffers back. */
void vring_complete(struct vring *ring, u32 n);

/* Writes frames into the guest's buffers, in order: see port_ops.tx. */
u32 vring_tx(struct vring *ring, struct packet **packets, u32 n);

/* Reads ahead: about `n` frames will be written soon. */
void vring_prepare(const struct vring *ring, u32 n);

/* on: asks the driver for kicks, and returns true when there are frames already (or it never
 * kicks). off: asks for none. */
bool vring_arm(struct vring *ring, bool on);

/* True when the driver wants to be called for what was used since this was last asked. After a
 * full barrier. */
bool vring_wants_call(struct vring *ring);

#endif
