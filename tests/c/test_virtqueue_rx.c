/* Rings that a guest sends with, split and packed: what a well-behaved driver may rely on, and
 * what one that breaks the rules gets. */
#define _GNU_SOURCE
#include "rings.h"

#define HEADER 12u
#define SPLIT 0ull
#define PACKED FEATURE(VIRTIO_F_RING_PACKED)
#define INDIRECT FEATURE(VIRTIO_RING_F_INDIRECT_DESC)
#define IN_ORDER FEATURE(VIRTIO_F_IN_ORDER)

/* ---- what a guest sends ---- */

static void sent_frames_are_taken_and_given_back(u64 features)
{
	ring_begin(features, 8, true);
	for (u16 i = 0; i < 3; i++) {
		buffer(i)[HEADER] = (u8)(0xa0 + i);
		add_simple(i, HEADER + 60 + i, 0);
	}
	CHECK_EQ(vring_rx(&ring, queue, 32), 3);
	for (u16 i = 0; i < 3; i++) {
		CHECK_EQ(taken_frame(i)->length, 60 + i);
		CHECK_EQ(taken_frame(i)->n_segments, 1);
		CHECK_EQ(taken_frame(i)->reason, 0);
		CHECK_EQ(taken_frame(i)->segments[0].data[0], 0xa0 + i);
	}
	CHECK_EQ(vring_rx(&ring, queue, 32), 0);
	vring_complete(&ring, 2);
	CHECK_EQ(vring_base(&ring), is_packed() ? 0x80028002u : 2);
	vring_complete(&ring, 1);
	if (is_packed()) {
		for (u16 i = 0; i < 3; i++)
			CHECK_EQ(desc_word(i) >> 32, (u64)i | (u64)(DESC_AVAIL | DESC_USED) << 16);
	} else {
		CHECK_EQ(used_index(), 3);
		CHECK_EQ(used_element(2), 2);
	}
	CHECK_EQ(fault_of(), FAULT_NONE);
	guest_end();
}

static void split_frames_are_taken_and_given_back(void)
{
	sent_frames_are_taken_and_given_back(SPLIT);
}

static void packed_frames_are_taken_and_given_back(void)
{
	sent_frames_are_taken_and_given_back(PACKED);
}

/* Several laps of a ring whose size is no power of two. */
static void packed_ring_goes_round(void)
{
	ring_begin(PACKED, 5, true);
	for (u32 i = 0; i < 23; i++) {
		add_simple((u16)(i % 5), HEADER + 64, 0);
		CHECK_EQ(vring_rx(&ring, queue, 32), 1);
		vring_complete(&ring, 1);
	}
	/* 23 = four laps and three: the fifth lap's wrap bit is set. */
	CHECK_EQ(vring_base(&ring), 0x80038003u);
	CHECK_EQ(fault_of(), FAULT_NONE);
	guest_end();
}

static void split_ring_goes_on_at_its_used_index(void)
{
	guest_begin();
	((struct split_used *)(guest + DEVICE_AT))->index = 65534;
	((struct split_avail *)(guest + DRIVER_AT))->index = 65534;
	guest_end();
	ring_begin(SPLIT, 4, true);
	CHECK_EQ(vring_base(&ring), 0);
	((struct split_used *)(guest + DEVICE_AT))->index = 65534;
	{
		struct vring_config config = {.port = vm_port,
					      .memory = &memory,
					      .desc = USER_START + DESC_AT,
					      .driver = USER_START + DRIVER_AT,
					      .device = USER_START + DEVICE_AT,
					      .size = 4,
					      .base = 7, /* stale */
					      .is_rx = true,
					      .call_fd = -1};

		CHECK_EQ(vring_start(&ring, &config), 0);
	}
	avail_index = 65534;
	for (u16 i = 0; i < 4; i++)
		add_simple(i, 10 + 60, 0);
	CHECK_EQ(vring_rx(&ring, queue, 32), 4);
	CHECK_EQ(taken_frame(0)->length, 60); /* a legacy driver's header has 10 bytes */
	vring_complete(&ring, 4);
	CHECK_EQ(used_index(), 2);
	guest_end();
}

static void in_order_batch_is_one_used_entry(u64 features)
{
	ring_begin(features | IN_ORDER, 8, true);
	for (u16 i = 0; i < 4; i++)
		add_simple(i, HEADER + 60, 0);
	CHECK_EQ(vring_rx(&ring, queue, 32), 4);
	vring_complete(&ring, 3);
	vring_complete(&ring, 1);
	if (is_packed()) {
		CHECK_EQ((u16)(desc_word(0) >> 32), 2);
		CHECK_EQ(desc_word(0) >> 48, DESC_AVAIL | DESC_USED);
		CHECK_EQ(desc_word(1) >> 48, DESC_AVAIL);
		CHECK_EQ((u16)(desc_word(3) >> 32), 3);
		CHECK_EQ(desc_word(3) >> 48, DESC_AVAIL | DESC_USED);
	} else {
		CHECK_EQ(used_index(), 4);
		CHECK_EQ(used_element(0), 2);
		CHECK_EQ(used_element(3), 3);
	}
	guest_end();
}

static void split_in_order_batch_is_one_used_entry(void)
{
	in_order_batch_is_one_used_entry(SPLIT);
}

static void packed_in_order_batch_is_one_used_entry(void)
{
	in_order_batch_is_one_used_entry(PACKED);
}

/* The header may end in the middle of a piece, and begin in another. */
static void header_and_frame_may_be_cut_anywhere(void)
{
	static const u32 cuts[][5] = {
		{12, 14, 46, 0}, {5, 4, 20, 43, 0}, {11, 61, 0}, {13, 59, 0}, {1, 1, 10, 60, 0}};
	static const u64 kinds[] = {SPLIT, PACKED};

	for (u32 kind = 0; kind < 4; kind++) {
		for (u32 i = 0; i < ARRAY_SIZE(cuts); i++) {
			u16 n = 0;
			u32 total = 0;

			while (n < 5 && cuts[i][n])
				n++;
			ring_begin(kinds[kind / 2] | INDIRECT, 8, true);
			for (u32 j = 0; j < 72; j++)
				buffer(0)[j] = (u8)j;
			memset(buffer(0), 0, HEADER);
			buffer(0)[6] = 0x34; /* csum_start */
			add_chain(cuts[i], n, 0, kind % 2);
			CHECK_EQ(vring_rx(&ring, queue, 32), 1);
			CHECK_EQ(taken_frame(0)->length, 60);
			CHECK_EQ(taken_frame(0)->reason, 0);
			CHECK_EQ(taken_frame(0)->offload.csum_start, 0x34);
			for (u32 j = 0; j < taken_frame(0)->n_segments; j++) {
				CHECK_EQ(taken_frame(0)->segments[j].data[0], HEADER + total);
				total += taken_frame(0)->segments[j].length;
			}
			CHECK_EQ(total, 60);
			vring_complete(&ring, 1);
			CHECK_EQ(fault_of(), FAULT_NONE);
			guest_end();
		}
	}
}

/* One bad frame has its reason, takes nobody along, and its buffer comes back. */
static void bad_frames_have_reasons_and_buffers_come_back(void)
{
	static const struct {
		u32 length;
		u8 reason;
	} cases[] = {{5, DROP_RUNT},
		     {HEADER, DROP_RUNT},
		     {HEADER + 13, DROP_RUNT},
		     {HEADER + 14, 0},
		     {HEADER + PACKET_LENGTH_MAX, 0},
		     {HEADER + PACKET_LENGTH_MAX + 1, DROP_OVERSIZE}};

	for (u32 packed = 0; packed < 2; packed++) {
		ring_begin(packed ? PACKED : SPLIT, 16, true);
		for (u16 i = 0; i < ARRAY_SIZE(cases); i++)
			add_simple(i, cases[i].length, 0);
		CHECK_EQ(vring_rx(&ring, queue, 32), ARRAY_SIZE(cases));
		for (u16 i = 0; i < ARRAY_SIZE(cases); i++)
			CHECK_EQ(taken_frame(i)->reason, cases[i].reason);
		vring_complete(&ring, ARRAY_SIZE(cases));
		CHECK_EQ(fault_of(), FAULT_NONE);
		guest_end();
	}
}

static void a_frame_in_too_many_pieces_has_its_reason(void)
{
	u32 lengths[80];

	for (u32 i = 0; i < ARRAY_SIZE(lengths); i++)
		lengths[i] = 12;
	for (u32 kind = 0; kind < 4; kind++) {
		ring_begin((kind & 1 ? PACKED : SPLIT) | INDIRECT, 128, true);
		add_chain(lengths, PACKET_SEGMENTS_MAX + 1, 0, kind / 2);
		CHECK_EQ(vring_rx(&ring, queue, 1), 1);
		CHECK_EQ(taken_frame(0)->reason, 0);
		CHECK_EQ(taken_frame(0)->n_segments, PACKET_SEGMENTS_MAX);
		vring_complete(&ring, 1);
		guest_end();
		ring_begin((kind & 1 ? PACKED : SPLIT) | INDIRECT, 128, true);
		add_chain(lengths, ARRAY_SIZE(lengths), 0, kind / 2);
		CHECK_EQ(vring_rx(&ring, queue, 1), 1);
		CHECK_EQ(taken_frame(0)->reason, DROP_TOO_MANY_SEGMENTS);
		vring_complete(&ring, 1);
		CHECK_EQ(fault_of(), FAULT_NONE);
		guest_end();
	}
}

/* ---- what breaks a ring ---- */

static void expect_fault(u32 fault)
{
	CHECK_EQ(vring_rx(&ring, queue, 32), 0);
	CHECK_EQ(fault_of(), fault);
	CHECK(!READ_ONCE(vm_port->link));
	/* Hands off from now on. */
	add_simple(1, HEADER + 60, 0);
	CHECK_EQ(vring_rx(&ring, queue, 32), 0);
	guest_end();
}

static void available_index_that_jumps_is_a_fault(void)
{
	ring_begin(SPLIT, 4, true);
	avail_index = 4;
	offer(0);
	expect_fault(FAULT_RING_INDEX);
}

static void head_outside_the_ring_is_a_fault(void)
{
	ring_begin(SPLIT, 4, true);
	offer(4);
	expect_fault(FAULT_DESCRIPTOR);
}

static void good_frames_before_a_bad_head_are_taken(void)
{
	ring_begin(SPLIT, 4, true);
	add_simple(0, HEADER + 60, 0);
	offer(65535);
	CHECK_EQ(vring_rx(&ring, queue, 32), 1);
	CHECK_EQ(fault_of(), FAULT_NONE);
	expect_fault(FAULT_DESCRIPTOR);
}

static void bad_descriptors_are_faults(void)
{
	static const struct {
		u64 address;
		u32 length;
		u16 flags;
	} cases[] = {{0, 100, 0}, /* before memory */
		     {GUEST_START + GUEST_SIZE, 100, 0}, /* behind */
		     {GUEST_START + GUEST_SIZE - 50, 100, 0}, /* across its end */
		     {UINT64_MAX - 10, 100, 0}, /* across the end of all */
		     {GUEST_START - 1, 100, 0}, /* across its beginning */
		     {GUEST_START + BUFFERS_AT, UINT32_MAX, 0}, /* too long for it */
		     {GUEST_START + BUFFERS_AT, 0, 0}, /* empty */
		     {GUEST_START + BUFFERS_AT, 100, DESC_WRITE}, /* the wrong way */
		     {GUEST_START + TABLES_AT, 16, DESC_INDIRECT}}; /* not agreed on */

	for (u32 i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		u32 at = i / 2;

		ring_begin(i % 2 ? PACKED : SPLIT, 4, true);
		if (is_packed()) {
			add_packed(cases[at].address, cases[at].length, cases[at].flags, 0);
		} else {
			put_desc(0, cases[at].address, cases[at].length, cases[at].flags, 0);
			offer(0);
		}
		expect_fault(FAULT_DESCRIPTOR);
	}
}

static void chains_that_do_not_end_are_faults(void)
{
	ring_begin(SPLIT, 8, true);
	put_desc(0, guest_address(BUFFERS_AT), 100, DESC_NEXT, 1);
	put_desc(1, guest_address(BUFFERS_AT), 100, DESC_NEXT, 0);
	offer(0);
	expect_fault(FAULT_DESCRIPTOR_LOOP);

	ring_begin(SPLIT, 8, true);
	put_desc(0, guest_address(BUFFERS_AT), 100, DESC_NEXT, 8);
	offer(0);
	expect_fault(FAULT_DESCRIPTOR);

	ring_begin(PACKED, 4, true);
	for (u32 i = 0; i < 4; i++)
		add_packed(guest_address(BUFFERS_AT), 100, DESC_NEXT, 0);
	/* All four go on; the fifth would be the first of the next lap, which is not available. */
	expect_fault(FAULT_DESCRIPTOR_LOOP);

	ring_begin(PACKED, 8, true);
	add_packed(guest_address(BUFFERS_AT), 100, DESC_NEXT, 0);
	expect_fault(FAULT_DESCRIPTOR);
}

static void bad_tables_are_faults(void)
{
	static const struct {
		u64 address;
		u32 length;
		u16 flags, next;
		u32 fault;
	} cases[] = {{GUEST_START + TABLES_AT, 0, 0, 0, FAULT_DESCRIPTOR},
		     {GUEST_START + TABLES_AT, 24, 0, 0, FAULT_DESCRIPTOR},
		     {GUEST_START + TABLES_AT, 16 * 1025, 0, 0, FAULT_DESCRIPTOR},
		     {GUEST_START + TABLES_AT, UINT32_MAX - 15, 0, 0, FAULT_DESCRIPTOR},
		     {GUEST_START + GUEST_SIZE - 16, 32, 0, 0, FAULT_DESCRIPTOR},
		     {GUEST_START + TABLES_AT, 16, DESC_INDIRECT, 0, FAULT_DESCRIPTOR},
		     {GUEST_START + TABLES_AT, 16, DESC_WRITE, 0, FAULT_DESCRIPTOR},
		     {GUEST_START + TABLES_AT, 32, DESC_NEXT, 2, FAULT_DESCRIPTOR},
		     {GUEST_START + TABLES_AT, 32, DESC_NEXT, 0, FAULT_DESCRIPTOR_LOOP}};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		ring_begin(SPLIT | INDIRECT, 8, true);
		put_table(0, 0, guest_address(BUFFERS_AT), 100, cases[i].flags, cases[i].next);
		put_desc(0, cases[i].address, cases[i].length, DESC_INDIRECT, 0);
		offer(0);
		expect_fault(cases[i].fault);
	}
	ring_begin(SPLIT | INDIRECT, 8, true);
	put_desc(0, guest_address(TABLES_AT), 16, DESC_INDIRECT | DESC_NEXT, 1);
	offer(0);
	expect_fault(FAULT_DESCRIPTOR);
}

int main(void)
{
	RUN(split_frames_are_taken_and_given_back);
	RUN(packed_frames_are_taken_and_given_back);
	RUN(packed_ring_goes_round);
	RUN(split_ring_goes_on_at_its_used_index);
	RUN(split_in_order_batch_is_one_used_entry);
	RUN(packed_in_order_batch_is_one_used_entry);
	RUN(header_and_frame_may_be_cut_anywhere);
	RUN(bad_frames_have_reasons_and_buffers_come_back);
	RUN(a_frame_in_too_many_pieces_has_its_reason);
	RUN(available_index_that_jumps_is_a_fault);
	RUN(head_outside_the_ring_is_a_fault);
	RUN(good_frames_before_a_bad_head_are_taken);
	RUN(bad_descriptors_are_faults);
	RUN(chains_that_do_not_end_are_faults);
	RUN(bad_tables_are_faults);
	return check_done();
}
