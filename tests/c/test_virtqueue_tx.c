/* Rings that a guest receives with, and the notifications of both kinds. */
#define _GNU_SOURCE
#include "rings.h"

#define HEADER 12u
#define SPLIT 0ull
#define PACKED FEATURE(VIRTIO_F_RING_PACKED)
#define INDIRECT FEATURE(VIRTIO_RING_F_INDIRECT_DESC)
#define MERGEABLE FEATURE(VIRTIO_NET_F_MRG_RXBUF)
#define EVENT_IDX FEATURE(VIRTIO_RING_F_EVENT_IDX)

static struct one_packet one;
static u8 frame_bytes[70000];

static struct packet *frame_to_give(u32 length)
{
	for (u32 i = 0; i < length; i++)
		frame_bytes[i] = (u8)(i * 7 + i / 251);
	return packet_of(&one, frame_bytes, length);
}

static u32 give(struct packet *packet)
{
	return vring_tx(&ring, &packet, 1);
}

/* ---- what a guest receives ---- */

static bool holds_frame(const u8 *at, u32 offset, u32 length)
{
	return !memcmp(at, frame_bytes + offset, length);
}

static void received_frame_is_written_once_behind_its_header(u64 features)
{
	u64 before = guest_bytes_written;
	struct packet *packet = frame_to_give(1500);

	ring_begin(features, 4, false);
	add_simple(0, BUFFER_SIZE, DESC_WRITE);
	packet->offload =
		(struct offload){.csum_start = 5}; /* nobody asked: it is passed on as it is */
	memset(buffer(0), 0xee, BUFFER_SIZE);
	CHECK_EQ(give(packet), 1);
	CHECK_EQ(packet->reason, 0);
	CHECK_EQ(buffer(0)[10], 1); /* num_buffers */
	CHECK_EQ(buffer(0)[11], 0);
	CHECK_EQ(buffer(0)[6], 5);
	CHECK(holds_frame(buffer(0) + HEADER, 0, 1500));
	CHECK_EQ(buffer(0)[HEADER + 1500], 0xee);
	CHECK_EQ(guest_bytes_written - before, 1500);
	if (is_packed())
		CHECK_EQ(desc_word(0),
			 (u64)(HEADER + 1500) | (u64)(DESC_AVAIL | DESC_USED | DESC_WRITE) << 48);
	else
		CHECK_EQ(used_element(0), (u64)(HEADER + 1500) << 32);
	/* No buffer, no frame. */
	CHECK_EQ(give(packet), 0);
	CHECK_EQ(fault_of(), FAULT_NONE);
	guest_end();
}

static void split_frame_is_written_once_behind_its_header(void)
{
	received_frame_is_written_once_behind_its_header(SPLIT | MERGEABLE);
}

static void packed_frame_is_written_once_behind_its_header(void)
{
	received_frame_is_written_once_behind_its_header(PACKED | MERGEABLE);
}

/* Lengths around all the copy's steps, with every split between header copy and payload. */
static void every_length_arrives_whole(void)
{
	ring_begin(SPLIT, 4, false);
	for (u32 length = 14; length < 600; length++) {
		struct packet *packet = frame_to_give(length);
		u16 id = (u16)(length % 4);

		memset(buffer(id), 0xee, BUFFER_SIZE);
		add_simple(id, BUFFER_SIZE, DESC_WRITE);
		packet->header_length = (u16)(length < 128 ? length : 1 + length % 128);
		packet->header_taken = packet->header_length;
		CHECK_EQ(give(packet), 1);
		CHECK(holds_frame(buffer(id) + HEADER, 0, length));
		CHECK_EQ(buffer(id)[HEADER + length], 0xee);
	}
	guest_end();
}

static void large_frame_is_spread_over_mergeable_buffers(void)
{
	for (u32 packed = 0; packed < 2; packed++) {
		struct packet *packet = frame_to_give(1000);

		ring_begin((packed ? PACKED : SPLIT) | MERGEABLE, 8, false);
		add_simple(0, 400, DESC_WRITE);
		add_simple(1, 400, DESC_WRITE);
		/* All or nothing: two are too few, and none is used. */
		CHECK_EQ(give(packet), 0);
		CHECK_EQ(vring_base(&ring), packed ? 0x80008000u : 0);
		add_simple(2, 400, DESC_WRITE);
		CHECK_EQ(give(packet), 1);
		CHECK_EQ(buffer(0)[10], 3);
		CHECK(holds_frame(buffer(0) + HEADER, 0, 388));
		CHECK(holds_frame(buffer(1), 388, 400));
		CHECK(holds_frame(buffer(2), 788, 212));
		if (packed) {
			CHECK_EQ((u32)desc_word(1), 400);
			CHECK_EQ((u32)desc_word(2), 212);
		} else {
			CHECK_EQ(used_index(), 3);
			CHECK_EQ(used_element(1), 1 | 400ull << 32);
			CHECK_EQ(used_element(2), 2 | 212ull << 32);
		}
		guest_end();
	}
}

static void frame_too_large_for_its_buffer_is_refused_and_the_buffer_stays(void)
{
	for (u32 packed = 0; packed < 2; packed++) {
		struct packet *packets[2] = {frame_to_give(1000), NULL};

		ring_begin(packed ? PACKED : SPLIT, 8, false);
		add_simple(0, 400, DESC_WRITE);
		CHECK_EQ(vring_tx(&ring, packets, 1), 1);
		CHECK_EQ(packets[0]->reason, DROP_RX_TOO_SMALL);
		packets[0] = frame_to_give(100);
		CHECK_EQ(vring_tx(&ring, packets, 1), 1);
		CHECK_EQ(packets[0]->reason, 0);
		CHECK(holds_frame(buffer(0) + HEADER, 0, 100));
		guest_end();
	}
}

static void receive_buffer_may_be_a_chain(void)
{
	static const u32 lengths[] = {12, 300, 1, 400};

	for (u32 kind = 0; kind < 4; kind++) {
		struct packet *packet = frame_to_give(700);

		ring_begin((kind & 1 ? PACKED : SPLIT) | INDIRECT, 8, false);
		add_chain(lengths, 4, DESC_WRITE, kind / 2);
		CHECK_EQ(give(packet), 1);
		CHECK_EQ(packet->reason, 0);
		CHECK(holds_frame(buffer(0) + HEADER, 0, 700));
		guest_end();
	}
}

static void broken_receive_ring_refuses_frames_with_its_reason(void)
{
	struct packet *packet = frame_to_give(100);

	ring_begin(SPLIT, 8, false);
	add_simple(0, BUFFER_SIZE, 0); /* not for writing */
	CHECK_EQ(give(packet), 1);
	CHECK_EQ(packet->reason, DROP_RING_BROKEN);
	CHECK_EQ(fault_of(), FAULT_DESCRIPTOR);
	CHECK_EQ(used_index(), 0);
	guest_end();

	packet = frame_to_give(100);
	ring_begin(SPLIT, 4, false);
	avail_index = 9;
	offer(0);
	CHECK_EQ(give(packet), 1);
	CHECK_EQ(packet->reason, DROP_RING_BROKEN);
	CHECK_EQ(fault_of(), FAULT_RING_INDEX);
	guest_end();
}

/* ---- notifications ---- */

static void split_driver_is_called_when_it_asks(void)
{
	struct split_avail *avail;

	ring_begin(SPLIT, 8, true);
	avail = (struct split_avail *)(guest + DRIVER_AT);
	CHECK(!vring_wants_call(&ring)); /* nothing was used */
	add_simple(0, HEADER + 60, 0);
	vring_rx(&ring, queue, 32);
	vring_complete(&ring, 1);
	CHECK(vring_wants_call(&ring));
	CHECK(!vring_wants_call(&ring));
	avail->flags = 1;
	add_simple(1, HEADER + 60, 0);
	vring_rx(&ring, queue, 32);
	vring_complete(&ring, 1);
	CHECK(!vring_wants_call(&ring));
	guest_end();
}

/* The driver asks to be called for the third used buffer, in one lap and in the next. */
static void driver_is_called_at_its_event_index(void)
{
	for (u32 packed = 0; packed < 2; packed++) {
		ring_begin((packed ? PACKED : SPLIT) | EVENT_IDX, 4, true);
		for (u32 i = 0; i < 8; i++) {
			u32 event = i < 4 ? 2 : 6;

			if (packed) {
				struct packed_event *driver =
					(struct packed_event *)(guest + DRIVER_AT);

				driver->off_wrap = (u16)((event % 4) | (event < 4 ? 0x8000u : 0));
				driver->flags = EVENT_DESC;
			} else {
				((struct split_avail *)(guest + DRIVER_AT))->ring[4] = (u16)event;
			}
			add_simple((u16)(i % 4), HEADER + 60, 0);
			CHECK_EQ(vring_rx(&ring, queue, 32), 1);
			vring_complete(&ring, 1);
			CHECK_EQ(vring_wants_call(&ring), i == event);
		}
		guest_end();
	}
}

static void device_asks_for_kicks_only_when_armed(void)
{
	for (u32 kind = 0; kind < 4; kind++) {
		struct split_used *used;
		struct packed_event *device;

		ring_begin((kind & 1 ? PACKED : SPLIT) | (kind & 2 ? EVENT_IDX : 0), 4, true);
		used = (struct split_used *)(guest + DEVICE_AT);
		device = (struct packed_event *)(guest + DEVICE_AT);
		if (is_packed())
			CHECK_EQ(device->flags, EVENT_DISABLE);
		else if (!ring.event_idx)
			CHECK_EQ(used->flags, 1);
		add_simple(0, HEADER + 60, 0);
		CHECK_EQ(vring_rx(&ring, queue, 32), 1);
		CHECK(!vring_arm(&ring, true));
		if (is_packed() && ring.event_idx)
			CHECK_EQ(device->off_wrap, 0x8001);
		else if (ring.event_idx)
			CHECK_EQ(*(u16 *)(guest + DEVICE_AT + 4 + 8 * 4), 1);
		else if (!is_packed())
			CHECK_EQ(used->flags, 0);
		if (is_packed())
			CHECK_EQ(device->flags, ring.event_idx ? EVENT_DESC : EVENT_ENABLE);
		add_simple(1, HEADER + 60, 0);
		CHECK(vring_arm(&ring, true)); /* it came before we asked */
		vring_arm(&ring, false);
		if (is_packed())
			CHECK_EQ(device->flags, EVENT_DISABLE);
		else if (!ring.event_idx)
			CHECK_EQ(used->flags, 1);
		guest_end();
	}
}

static void sizes_and_addresses_are_checked_at_the_start(void)
{
	static const struct {
		u64 features, desc, driver, device;
		u32 size;
	} cases[] = {{SPLIT, DESC_AT, DRIVER_AT, DEVICE_AT, 0},
		     {SPLIT, DESC_AT, DRIVER_AT, DEVICE_AT, 6},
		     {SPLIT, DESC_AT, DRIVER_AT, DEVICE_AT, 65536},
		     {SPLIT, DESC_AT + 8, DRIVER_AT, DEVICE_AT, 8},
		     {SPLIT, DESC_AT, DRIVER_AT + 1, DEVICE_AT, 8},
		     {SPLIT, DESC_AT, DRIVER_AT, DEVICE_AT + 2, 8},
		     {SPLIT, GUEST_SIZE - 64, DRIVER_AT, DEVICE_AT, 8},
		     {SPLIT, DESC_AT, DRIVER_AT, GUEST_SIZE - 64, 8},
		     {SPLIT, DESC_AT, GUEST_SIZE, DEVICE_AT, 8},
		     {PACKED, DESC_AT, DRIVER_AT, DEVICE_AT + 2, 8},
		     {PACKED, DESC_AT, DRIVER_AT, DEVICE_AT, 32769},
		     {PACKED, DESC_AT, GUEST_SIZE - 2, DEVICE_AT, 8}};

	guest_begin();
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vring_config config = {.port = vm_port,
					      .memory = &memory,
					      .features = cases[i].features,
					      .desc = USER_START + cases[i].desc,
					      .driver = USER_START + cases[i].driver,
					      .device = USER_START + cases[i].device,
					      .size = cases[i].size,
					      .call_fd = -1};

		CHECK_EQ(vring_start(&ring, &config), -EINVAL);
	}
	guest_end();
}

int main(void)
{
	RUN(split_frame_is_written_once_behind_its_header);
	RUN(packed_frame_is_written_once_behind_its_header);
	RUN(every_length_arrives_whole);
	RUN(large_frame_is_spread_over_mergeable_buffers);
	RUN(frame_too_large_for_its_buffer_is_refused_and_the_buffer_stays);
	RUN(receive_buffer_may_be_a_chain);
	RUN(broken_receive_ring_refuses_frames_with_its_reason);
	RUN(split_driver_is_called_when_it_asks);
	RUN(driver_is_called_at_its_event_index);
	RUN(device_asks_for_kicks_only_when_armed);
	RUN(sizes_and_addresses_are_checked_at_the_start);
	return check_done();
}
