/* A guest's side of one ring, written by hand: memory in a memfd, descriptors put where a test
 * wants them, wrong ones too. */
#ifndef VSWITCH_TESTS_RINGS_H
#define VSWITCH_TESTS_RINGS_H

#include <sys/mman.h>
#include <unistd.h>

#include "orders.h"
#include "virtqueue.h"

#define GUEST_START 0x100000ull /* guest physical */
#define USER_START 0x7f0000000000ull
#define GUEST_SIZE 0x100000u
#define DESC_AT 0x0u
#define DRIVER_AT 0x10000u
#define DEVICE_AT 0x20000u
#define TABLES_AT 0x30000u
#define BUFFERS_AT 0x40000u
#define BUFFER_SIZE 0x800u

static int guest_fd;
static u8 *guest; /* the same memory, as the guest sees it */
static struct port *vm_port; /* of an engine, only to be faulted */
static struct guest_memory memory;
static struct vring ring;
static struct rx_queue *queue;
static u16 avail_index; /* split: next; packed: position */
static u8 avail_wrap;

static inline u64 guest_address(u32 offset)
{
	return GUEST_START + offset;
}

static inline void guest_begin(void)
{
	struct guest_region_spec spec = {
		.guest_start = GUEST_START, .user_start = USER_START, .size = GUEST_SIZE};

	engine_begin();
	CHECK_EQ(add_port(1, PORT_MEM, 0, NULL, 0), 0);
	vm_port = dataplane_port(engine, 1);
	CHECK_EQ(guest_memory_guard(), 0);
	guest_fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	CHECK_EQ(ftruncate(guest_fd, GUEST_SIZE), 0);
	guest = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, guest_fd, 0);
	spec.fd = guest_fd;
	CHECK_EQ(guest_memory_map(&memory, vm_port, &spec, 1), 0);
	queue = rx_queue_new(vm_port, 0);
	avail_index = 0;
	avail_wrap = 1;
}

static inline void guest_end(void)
{
	rx_queue_free(queue);
	guest_memory_unmap(&memory);
	munmap(guest, GUEST_SIZE);
	close(guest_fd);
	engine_end();
}

/* Starts the one ring; a packed one at position 0 of its first lap. */
static inline void ring_begin(u64 features, u32 size, bool is_rx)
{
	struct vring_config config = {.memory = &memory,
				      .features = features | FEATURE(VIRTIO_F_VERSION_1),
				      .desc = USER_START + DESC_AT,
				      .driver = USER_START + DRIVER_AT,
				      .device = USER_START + DEVICE_AT,
				      .size = size,
				      .base = 0x8000,
				      .is_rx = is_rx,
				      .call_fd = -1};

	guest_begin();
	config.port = vm_port;
	CHECK_EQ(vring_start(&ring, &config), 0);
}

static inline bool is_packed(void)
{
	return ring.kind == RING_PACKED;
}

static inline void put_desc(u32 slot, u64 address, u32 length, u16 flags, u16 number)
{
	struct ring_desc *desc = (struct ring_desc *)(guest + DESC_AT) + slot;
	u64 high = is_packed() ? number | (u32)flags << 16 : flags | (u32)number << 16;

	desc->address = address;
	desc->word = length | high << 32;
}

static inline void put_table(u32 table, u32 entry, u64 address, u32 length, u16 flags, u16 next)
{
	struct ring_desc *desc = (struct ring_desc *)(guest + TABLES_AT + table * 0x1000) + entry;
	u64 high = is_packed() ? (u32)flags << 16 : flags | (u32)next << 16;

	desc->address = address;
	desc->word = length | high << 32;
}

/* Split: makes the chain that begins with `head` available. */
static inline void offer(u16 head)
{
	struct split_avail *avail = (struct split_avail *)(guest + DRIVER_AT);

	avail->ring[avail_index & (ring.size - 1)] = head;
	avail->index = ++avail_index;
}

/* Packed: puts one descriptor at the driver's position. Split: at descriptor `slot`, without
 * offering it. */
static inline void add_packed(u64 address, u32 length, u16 flags, u16 id)
{
	put_desc(avail_index, address, length, flags | (avail_wrap ? DESC_AVAIL : DESC_USED), id);
	if (++avail_index == ring.size) {
		avail_index = 0;
		avail_wrap ^= 1;
	}
}

/* Offers one simple buffer, of either kind: number `id`, at its own place. */
static inline void add_simple(u16 id, u32 length, u16 flags)
{
	u64 address = guest_address(BUFFERS_AT + id * BUFFER_SIZE);

	if (is_packed()) {
		add_packed(address, length, flags, id);
	} else {
		put_desc(id, address, length, flags, 0);
		offer(id);
	}
}

/* Adds a chain of pieces of these lengths as buffer 0, in the ring or in a table. */
static inline void add_chain(const u32 *lengths, u16 n, u16 flags, bool in_table)
{
	u64 address = guest_address(BUFFERS_AT);

	for (u16 i = 0; i < n; i++) {
		u16 next = i + 1 < n ? DESC_NEXT : 0;

		if (in_table)
			put_table(0, i, address, lengths[i], flags | next, (u16)(i + 1));
		else if (is_packed())
			add_packed(address, lengths[i], flags | next, 9);
		else
			put_desc(i, address, lengths[i], flags | next, (u16)(i + 1));
		address += lengths[i];
	}
	if (in_table && is_packed())
		add_packed(guest_address(TABLES_AT), 16u * n, DESC_INDIRECT, 9);
	else if (in_table)
		put_desc(0, guest_address(TABLES_AT), 16u * n, DESC_INDIRECT, 0);
	if (!is_packed())
		offer(0);
}

static inline u8 *buffer(u16 id)
{
	return guest + BUFFERS_AT + id * BUFFER_SIZE;
}

static inline u16 used_index(void)
{
	return ((struct split_used *)(guest + DEVICE_AT))->index;
}

static inline u64 used_element(u32 i)
{
	return ((struct split_used *)(guest + DEVICE_AT))->ring[i];
}

static inline u64 desc_word(u32 slot)
{
	return ((struct ring_desc *)(guest + DESC_AT))[slot].word;
}

static inline u32 fault_of(void)
{
	return LOAD_ACQUIRE(&vm_port->fault);
}

static inline struct packet *taken_frame(u32 i)
{
	return &queue->slots[i & (RX_SLOTS - 1)];
}

#endif
