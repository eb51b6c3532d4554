/* The capture ring's promises: records come whole, also across the end; a slow, dead or hostile
 * reader costs records and nothing else. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "capture.h"
#include "check.h"
#include "frames.h"
#include "parse.h"

#define PAGE 4096
#define DATA 65536

static struct capture *capture;
static struct capture_ring *ring;
static struct frame frame;
static struct packet packet;
static struct segment segments[PACKET_SEGMENTS_MAX];

static int make_memfd(u64 size, bool sealed)
{
	int fd = memfd_create("capture", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	CHECK(fd >= 0 && !ftruncate(fd, (off_t)size));
	if (sealed)
		CHECK(!fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	return fd;
}

static void begin(u32 snaplen)
{
	int fd = make_memfd(PAGE + DATA, true);

	ring = mmap(NULL, PAGE + DATA, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK_EQ(capture_open(fd, DATA, snaplen, &capture), 0);
	CHECK_EQ(ring->size, DATA);
}

static void end(void)
{
	capture_close(capture);
	munmap(ring, PAGE + DATA);
}

/* A TCP segment of `data` bytes in pieces of `piece`, its header copied. */
static void make_packet(u32 data, u32 piece)
{
	static u8 header[PACKET_HEADER];
	struct flow_key key;
	u16 sum;

	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 6, 0, (u16)(20 + data));
	put_tcp(&frame, 5, 0x10);
	for (u32 i = 0; i < data; i++)
		put8(&frame, (u8)(i * 3));
	sum = pseudo_sum(frame.bytes, 14, 6, 20 + data);
	frame.bytes[50] = (u8)(sum >> 8);
	frame.bytes[51] = (u8)sum;
	packet = (struct packet){.header = header,
				 .header_length = 54,
				 .header_taken = 54,
				 .length = frame.length,
				 .segments = segments};
	memcpy(header, frame.bytes, 54);
	for (u32 at = 0; at < frame.length; at += piece)
		segments[packet.n_segments++] = (struct segment){
			frame.bytes + at, frame.length - at < piece ? frame.length - at : piece};
	CHECK(parse_packet(&packet, 1, &key, true));
}

/* What vswitchd does: the next record, NULL when there is none. */
static const struct capture_record *next_record(void)
{
	const struct capture_record *record;

	for (;;) {
		u64 at = ring->tail & (DATA - 1);

		if (LOAD_ACQUIRE(&ring->head) == ring->tail)
			return NULL;
		record = (const void *)((u8 *)ring + PAGE + at);
		if (record->length)
			return record;
		ring->tail += DATA - at;
	}
}

static void release(const struct capture_record *record)
{
	STORE_RELEASE(&ring->tail, ring->tail + ((record->length + 7u) & ~7u));
}

static void record_tells_all_of_a_frame(void)
{
	const struct capture_record *record;
	struct timespec now;

	begin(0);
	make_packet(1000, 333);
	capture_frame(capture, &packet, true, 7);
	clock_gettime(CLOCK_REALTIME, &now);
	record = next_record();
	REQUIRE(record);
	CHECK_EQ(record->frame_length, frame.length);
	CHECK_EQ(record->captured, frame.length);
	CHECK_EQ(record->length, sizeof(*record) + frame.length);
	CHECK_EQ(record->from_port, 1);
	CHECK_EQ(record->drop, 7);
	CHECK((u64)now.tv_sec - record->time_ns / 1000000000u <= 1);
	CHECK(!memcmp(record + 1, frame.bytes, frame.length));
	release(record);
	CHECK(!next_record());
	CHECK_EQ(ring->lost, 0);
	end();
}

static void header_edits_are_seen(void)
{
	const struct capture_record *record;

	begin(0);
	make_packet(100, 1500);
	packet.header[0] = 0x42;
	packet.header_length -= 20; /* as if something were popped */
	capture_frame(capture, &packet, false, 0);
	record = next_record();
	REQUIRE(record);
	CHECK_EQ(record->from_port, 0);
	CHECK_EQ(record->frame_length, frame.length - 20);
	CHECK_EQ(((const u8 *)(record + 1))[0], 0x42);
	CHECK(!memcmp((const u8 *)(record + 1) + 34, frame.bytes + 54, 100));
	end();
}

static void open_checksums_are_filled_in(void)
{
	for (u32 piece = 1; piece < 200; piece += 7) {
		const struct capture_record *record;

		begin(0);
		make_packet(251, piece < 10 ? 1500 : piece);
		packet.offload = (struct offload){
			.flags = OFFLOAD_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
		capture_frame(capture, &packet, true, 0);
		record = next_record();
		REQUIRE(record);
		CHECK(transport_sum_is_right((const u8 *)(record + 1), record->captured, 14, 34,
					     6));
		end();
	}
}

/* The sum is over the whole frame, although only its start is kept. */
static void snaplen_cuts_the_copy_only(void)
{
	const struct capture_record *record;

	begin(60);
	make_packet(1001, 100);
	packet.offload =
		(struct offload){.flags = OFFLOAD_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
	capture_frame(capture, &packet, true, 0);
	record = next_record();
	REQUIRE(record);
	CHECK_EQ(record->captured, 60);
	CHECK_EQ(record->frame_length, frame.length);
	memcpy(frame.bytes, record + 1, 60);
	CHECK(transport_sum_is_right(frame.bytes, frame.length, 14, 34, 6));
	end();
}

static void records_never_wrap_and_keep_their_order(void)
{
	begin(0);
	for (u32 round = 0; round < 3000; round++) {
		u32 data = check_random(9000);
		const struct capture_record *record;

		make_packet(data, 1500);
		capture_frame(capture, &packet, round & 1, 0);
		record = next_record();
		REQUIRE(record);
		CHECK_EQ(record->from_port, round & 1);
		CHECK_EQ(record->captured, frame.length);
		CHECK((const u8 *)record + record->length <= (const u8 *)ring + PAGE + DATA);
		CHECK(!memcmp(record + 1, frame.bytes, frame.length));
		release(record);
	}
	CHECK_EQ(ring->lost, 0);
	end();
}

static void reader_that_sleeps_loses_the_new_ones(void)
{
	u32 n = 0;

	begin(0);
	make_packet(946, 1500);
	for (u32 i = 0; i < 100; i++)
		capture_frame(capture, &packet, true, 0);
	for (const struct capture_record *record; (record = next_record()); n++)
		release(record);
	CHECK_EQ(n, DATA / 1024);
	CHECK_EQ(ring->lost, 100 - n);
	capture_frame(capture, &packet, true, 0);
	CHECK(next_record());
	end();
}

/* A reader may write what it likes into its words (a sanitizer and the guard below watch). */
static void hostile_reader_harms_itself_only(void)
{
	begin(0);
	make_packet(3000, 1500);
	for (u32 i = 0; i < 2000; i++) {
		ring->tail = (u64)check_random(1u << 30) << check_random(34);
		ring->head = (u64)check_random(1u << 30) << check_random(34);
		ring->size = check_random(1u << 30);
		capture_frame(capture, &packet, true, 0);
	}
	CHECK(ring->lost > 0);
	end();
}

static void memory_that_could_vanish_is_refused(void)
{
	struct capture *none = NULL;

	CHECK_EQ(capture_open(make_memfd(PAGE + DATA, false), DATA, 0, &none), -EINVAL);
	CHECK_EQ(capture_open(make_memfd(DATA, true), DATA, 0, &none), -EINVAL);
	CHECK_EQ(capture_open(make_memfd(PAGE + DATA, true), DATA - 8, 0, &none), -EINVAL);
	CHECK_EQ(capture_open(make_memfd(PAGE + DATA, true), 1024, 0, &none), -EINVAL);
	CHECK_EQ(capture_open(-1, DATA, 0, &none), -EINVAL);
	CHECK(!none);
}

int main(void)
{
	RUN(record_tells_all_of_a_frame);
	RUN(header_edits_are_seen);
	RUN(open_checksums_are_filled_in);
	RUN(snaplen_cuts_the_copy_only);
	RUN(records_never_wrap_and_keep_their_order);
	RUN(reader_that_sleeps_loses_the_new_ones);
	RUN(hostile_reader_harms_itself_only);
	RUN(memory_that_could_vanish_is_refused);
	return check_done();
}
