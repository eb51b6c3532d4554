/* Capture files as ports: every flavour is replayed, damage ends the replay with a word, what is
 * written can be read, a full disk costs frames only.
 *
 * Files live in memory (memfd), so nothing is left behind.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frames.h"
#include "orders.h"
#include "pcap_file.h"

#define SECOND 1000000000ull
#define DEADLINE_NS (5 * SECOND)

static struct frame file;
static bool big_endian;
static struct port *port;

/* ---- making files ---- */

static void file32(u32 value)
{
	value = big_endian ? __builtin_bswap32(value) : value;
	memcpy(file.bytes + file.length, &value, 4);
	file.length += 4;
}

static void file16(u16 value)
{
	value = big_endian ? __builtin_bswap16(value) : value;
	memcpy(file.bytes + file.length, &value, 2);
	file.length += 2;
}

static void classic_begin(bool swapped, u32 magic, u32 link)
{
	file.length = 0;
	big_endian = swapped;
	file32(magic);
	file16(2);
	file16(4);
	file32(0);
	file32(0);
	file32(262144);
	file32(link);
}

static void classic_frame(u32 seconds, u32 fraction, u32 length, u8 fill)
{
	file32(seconds);
	file32(fraction);
	file32(length);
	file32(length + 10);
	put_fill(&file, length, fill);
}

static void ng_section(bool swapped)
{
	big_endian = swapped;
	file32(0x0a0d0d0a);
	file32(28);
	file32(0x1a2b3c4d);
	file16(1);
	file16(0);
	file32(UINT32_MAX);
	file32(UINT32_MAX);
	file32(28);
}

static void ng_interface(u16 link, int resolution)
{
	u32 length = resolution < 0 ? 20 : 32;

	file32(1);
	file32(length);
	file16(link);
	file16(0);
	file32(0);
	if (resolution >= 0) {
		file16(9);
		file16(1);
		put8(&file, (u8)resolution);
		put_fill(&file, 3, 0);
		file32(0);
	}
	file32(length);
}

static void ng_frame(u32 interface, u64 ticks, u32 length, u8 fill)
{
	u32 padded = (length + 3) & ~3u;

	file32(6);
	file32(32 + padded);
	file32(interface);
	file32((u32)(ticks >> 32));
	file32((u32)ticks);
	file32(length);
	file32(length);
	put_fill(&file, padded, fill);
	file32(32 + padded);
}

/* ---- reading them ---- */

static void expect_frame(struct pcap_reader *reader, u32 length, u8 fill, u64 time_ns)
{
	struct pcap_frame frame;

	REQUIRE(pcap_reader_next(reader, &frame) == 1);
	CHECK_EQ(frame.length, length);
	CHECK_EQ(frame.data[0], fill);
	CHECK_EQ(frame.data[length - 1], fill);
	CHECK_EQ(frame.time_ns, time_ns);
}

static void expect_end(struct pcap_reader *reader, int result)
{
	struct pcap_frame frame;

	CHECK_EQ(pcap_reader_next(reader, &frame), result);
	CHECK_EQ(pcap_reader_next(reader, &frame), result);
}

static void classic_files_are_read_in_all_flavours(void)
{
	for (u32 flavour = 0; flavour < 4; flavour++) {
		bool nanoseconds = flavour & 1;
		struct pcap_reader reader;

		classic_begin(flavour & 2, nanoseconds ? 0xa1b23c4d : 0xa1b2c3d4, 1);
		classic_frame(100, 7, 60, 0x11);
		classic_frame(101, 999999, 1514, 0x22);
		CHECK_EQ(pcap_reader_open(&reader, file.bytes, file.length), 0);
		expect_frame(&reader, 60, 0x11, 100000000000 + (nanoseconds ? 7 : 7000));
		expect_frame(&reader, 1514, 0x22,
			     101000000000 + (nanoseconds ? 999999 : 999999000));
		expect_end(&reader, 0);
	}
}

static void pcapng_sections_and_interfaces_are_kept_apart(void)
{
	struct pcap_reader reader;

	file.length = 0;
	ng_section(false);
	ng_interface(1, -1);
	ng_interface(113, 9); /* Linux cooked */
	ng_interface(1, 9);
	ng_interface(1, 0x80 | 10);
	ng_frame(0, 5, 60, 0x11);
	ng_frame(1, 5, 60, 0x99);
	ng_frame(2, 5, 61, 0x22);
	ng_frame(3, 2048 + 512, 62, 0x33);
	ng_frame(77, 5, 60, 0x99);
	file32(0x0bad); /* a block nobody knows */
	file32(16);
	file32(0);
	file32(16);
	ng_section(true);
	ng_interface(1, 12);
	ng_frame(0, 7777, 63, 0x44);
	CHECK_EQ(pcap_reader_open(&reader, file.bytes, file.length), 0);
	expect_frame(&reader, 60, 0x11, 5000);
	expect_frame(&reader, 61, 0x22, 5);
	expect_frame(&reader, 62, 0x33, 2500000000);
	expect_frame(&reader, 63, 0x44, 7);
	expect_end(&reader, 0);
}

static void simple_blocks_take_the_time_before(void)
{
	struct pcap_reader reader;

	file.length = 0;
	ng_section(false);
	ng_interface(1, 9);
	ng_frame(0, 42, 60, 0x11);
	file32(3);
	file32(16 + 64);
	file32(61);
	put_fill(&file, 64, 0x22);
	file32(16 + 64);
	CHECK_EQ(pcap_reader_open(&reader, file.bytes, file.length), 0);
	expect_frame(&reader, 60, 0x11, 42);
	expect_frame(&reader, 61, 0x22, 42);
	expect_end(&reader, 0);
}

static void files_of_other_kinds_are_refused(void)
{
	struct pcap_reader reader;

	classic_begin(false, 0xa1b2c3d4, 113);
	CHECK_EQ(pcap_reader_open(&reader, file.bytes, file.length), -EPROTONOSUPPORT);
	CHECK_EQ(pcap_reader_open(&reader, file.bytes, 23), -EBADMSG);
	memset(file.bytes, 'x', 100);
	CHECK_EQ(pcap_reader_open(&reader, file.bytes, 100), -EBADMSG);
}

static void damage_stays_damage(void)
{
	struct pcap_reader reader;

	classic_begin(false, 0xa1b2c3d4, 1);
	classic_frame(1, 0, 60, 0x11);
	file32(2);
	file32(0);
	file32(0x7fffffff);
	file32(0);
	CHECK_EQ(pcap_reader_open(&reader, file.bytes, file.length), 0);
	expect_frame(&reader, 60, 0x11, 1000000000);
	expect_end(&reader, -EBADMSG);
	file.length = 0;
	ng_section(false);
	ng_interface(1, 9);
	ng_frame(0, 1, 60, 0x11);
	ng_frame(0, 1, 60, 0x11);
	file.bytes[file.length - 60 - 12] = 61; /* more than the block has */
	CHECK_EQ(pcap_reader_open(&reader, file.bytes, file.length), 0);
	expect_frame(&reader, 60, 0x11, 1);
	expect_end(&reader, -EBADMSG);
}

/* What a stopped writer leaves: the last record is not all there. */
static void cut_files_end_with_their_last_whole_frame(void)
{
	for (u32 kind = 0; kind < 2; kind++) {
		u32 head, whole;

		if (kind) {
			file.length = 0;
			ng_section(false);
			ng_interface(1, 9);
		} else {
			classic_begin(false, 0xa1b23c4d, 1);
		}
		head = file.length;
		for (u32 i = 0; i < 2; i++)
			kind ? ng_frame(0, 5, 60, 0x11) : classic_frame(0, 5, 60, 0x11);
		whole = head + (file.length - head) / 2;
		for (u32 length = whole; length < file.length; length++) {
			u8 *copy = malloc(length);
			struct pcap_reader reader;

			memcpy(copy, file.bytes, length);
			CHECK_EQ(pcap_reader_open(&reader, copy, length), 0);
			expect_frame(&reader, 60, 0x11, 5);
			expect_end(&reader, 0);
			free(copy);
		}
	}
}

/* ---- ports ---- */

static int file_fd(void)
{
	int fd = memfd_create("replay", MFD_CLOEXEC);

	CHECK(write(fd, file.bytes, file.length) == (ssize_t)file.length);
	return fd;
}

static int open_port(u16 flags, const int *fds, u16 n)
{
	int error = add_port(1, PORT_PCAP, flags, fds, n);

	port = error ? NULL : dataplane_port(engine, 1);
	return error;
}

static void configure(void)
{
	struct order_switch add = {.switch_id = 1};
	struct order_port_set set = {.port_id = 1, .switch_id = 1, .flags = PORT_FLAG_UP};

	CHECK_EQ(give_order(&add, ORDER_SWITCH_ADD, sizeof(add), NULL, 0), 0);
	CHECK_EQ(give_order(&set, ORDER_PORT_SET, sizeof(set), NULL, 0), 0);
	port->policy->tables[OPENFLOW_FROM_PORT - 1][0] = flow_table_new();
	port->policy->version = 1;
}

static void three_frames(void)
{
	classic_begin(false, 0xa1b23c4d, 1);
	classic_frame(1000, 0, 60, 0x11);
	classic_frame(1500, 0, 10, 0x22);
	classic_frame(3000, 0, 1514, 0x33);
}

static void replay_waits_for_its_rules_and_then_gives_all(void)
{
	int fd;

	engine_begin();
	three_frames();
	fd = file_fd();
	REQUIRE(open_port(PORT_ADD_PCAP_REPLAY, &fd, 1) == 0);
	CHECK_EQ(take(port, BATCH), 0);
	CHECK_EQ(port_state(1).connected, 1);
	configure();
	CHECK(port->ops->arm(port->rx[0], true));
	CHECK_EQ(take(port, 2), 2);
	CHECK_EQ(taken(port, 0)->length, 60);
	CHECK_EQ(taken(port, 0)->segments[0].data[0], 0x11);
	CHECK_EQ(taken(port, 0)->offload.flags, 0);
	CHECK_EQ(taken(port, 1)->reason, DROP_RUNT);
	CHECK_EQ(take(port, BATCH), 1);
	CHECK_EQ(taken(port, 2)->length, 1514);
	finish_all(port);
	CHECK_EQ(take(port, BATCH), 0);
	CHECK(!port->ops->arm(port->rx[0], true));
	CHECK_EQ(port_state(1).connected, 0);
	CHECK_EQ(port_state(1).link, 1);
	CHECK_EQ(port_state(1).fault, FAULT_NONE);
	CHECK_EQ(port_state(1).error, 0);
	engine_end();
}

static void timed_replay_keeps_the_gaps(void)
{
	int fd;

	engine_begin();
	three_frames();
	fd = file_fd();
	REQUIRE(open_port(PORT_ADD_PCAP_REPLAY | PORT_ADD_PCAP_TIMED, &fd, 1) == 0);
	configure();
	CHECK_EQ(take(port, BATCH), 1);
	CHECK(!port->ops->arm(port->rx[0], true));
	dataplane_advance_clock(engine, 500 * SECOND);
	CHECK_EQ(take(port, BATCH), 1);
	dataplane_advance_clock(engine, 1400 * SECOND);
	CHECK_EQ(take(port, BATCH), 0);
	dataplane_advance_clock(engine, 100 * SECOND);
	CHECK(port->ops->arm(port->rx[0], true));
	CHECK_EQ(take(port, BATCH), 1);
	finish_all(port);
	engine_end();
}

static void damaged_file_is_told_and_replayed_up_to_there(void)
{
	int fd;

	engine_begin();
	classic_begin(false, 0xa1b2c3d4, 1);
	classic_frame(1, 0, 60, 0x11);
	put_fill(&file, 64, 0xff);
	fd = file_fd();
	REQUIRE(open_port(PORT_ADD_PCAP_REPLAY, &fd, 1) == 0);
	configure();
	CHECK_EQ(take(port, BATCH), 1);
	finish_all(port);
	CHECK_EQ(port_state(1).connected, 0);
	CHECK_EQ(port_state(1).error, EBADMSG);
	CHECK_EQ(port_state(1).link, 1);
	engine_end();
}

static void what_is_no_capture_file_makes_no_port(void)
{
	int fds[2];

	engine_begin();
	file.length = 0;
	put_fill(&file, 100, 'x');
	fds[0] = file_fd();
	CHECK_EQ(open_port(PORT_ADD_PCAP_REPLAY, fds, 1), -EBADMSG);
	file.length = 0;
	fds[0] = file_fd();
	CHECK_EQ(open_port(PORT_ADD_PCAP_REPLAY, fds, 1), -EBADMSG);
	CHECK_EQ(open_port(PORT_ADD_PCAP_REPLAY, NULL, 0), -EINVAL);
	CHECK(!pipe(fds));
	CHECK_EQ(open_port(PORT_ADD_PCAP_REPLAY, fds, 1), -EINVAL);
	CHECK_EQ(open_port(PORT_ADD_PCAP_WRITE, fds + 1, 1), -EINVAL);
	engine_end();
}

/* Waits until the file has `size` bytes. */
static bool file_reaches(int fd, off_t size)
{
	u64 deadline = clock_ns() + DEADLINE_NS;
	struct stat stat;

	while (clock_ns() < deadline) {
		if (!fstat(fd, &stat) && stat.st_size >= size)
			return stat.st_size == size;
		usleep(200);
	}
	return false;
}

static u32 give(const u8 *bytes, u32 length, u32 n)
{
	struct one_packet one;
	struct packet *packet = packet_of(&one, bytes, length);
	u32 done = 0;

	while (done < n && port->ops->tx(&port->tx[0], &packet, 1) && !packet->reason)
		done++;
	port->ops->tx_notify(&port->tx[0]);
	return done;
}

static void written_frames_can_be_read_back(void)
{
	static u8 bytes[9000], *seen;
	struct pcap_reader reader;
	struct pcap_frame frame;
	off_t size = PCAP_HEAD_SIZE;
	int fd = memfd_create("write", MFD_CLOEXEC), own = dup(fd);
	struct timespec now;

	engine_begin();
	REQUIRE(open_port(PORT_ADD_PCAP_WRITE, &own, 1) == 0);
	CHECK_EQ(port->offloads, 0);
	for (u32 i = 0; i < 3000; i++) {
		u32 length = 14 + i * 3 % 8000;

		memset(bytes, (int)i, length);
		while (!give(bytes, length, 1))
			usleep(100); /* the ring is full: the thread has work */
		size += pcap_block_size(length);
	}
	CHECK(file_reaches(fd, size));
	seen = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
	CHECK_EQ(pcap_reader_open(&reader, seen, (u64)size), 0);
	clock_gettime(CLOCK_REALTIME, &now);
	for (u32 i = 0; i < 3000; i++) {
		REQUIRE(pcap_reader_next(&reader, &frame) == 1);
		CHECK_EQ(frame.length, 14 + i * 3 % 8000);
		CHECK_EQ(frame.wire_length, frame.length);
		CHECK(frame.data[0] == (u8)i && frame.data[frame.length - 1] == (u8)i);
		CHECK((u64)now.tv_sec - frame.time_ns / 1000000000u <= 60);
	}
	expect_end(&reader, 0);
	munmap(seen, (size_t)size);
	engine_end();
	close(fd);
}

static void all_is_written_when_the_port_is_closed(void)
{
	static u8 bytes[1000];
	struct stat stat;
	int fd = memfd_create("write", MFD_CLOEXEC), own = dup(fd);

	engine_begin();
	REQUIRE(open_port(PORT_ADD_PCAP_WRITE, &own, 1) == 0);
	CHECK_EQ(give(bytes, sizeof(bytes), 500), 500);
	engine_end();
	CHECK(!fstat(fd, &stat));
	CHECK_EQ(stat.st_size, PCAP_HEAD_SIZE + 500 * pcap_block_size(sizeof(bytes)));
	close(fd);
}

static u64 lost_frames(void)
{
	return dataplane_counters(engine)[1 * WORKERS_MAX].drops[DROP_TX_ERROR];
}

/* A limit on the size of files stands for the full disk: the write fails part of the way. */
static void full_disk_costs_frames_and_the_file_stays_whole(void)
{
	static u8 bytes[1000];
	u32 block = pcap_block_size(sizeof(bytes));
	struct rlimit old, small = {.rlim_cur = PCAP_HEAD_SIZE + 10 * block + 500};
	u64 deadline = clock_ns() + DEADLINE_NS;
	char name[] = "/tmp/test-port-pcap-XXXXXX";
	int fd = mkstemp(name), own = dup(fd);
	struct stat stat;

	unlink(name);
	getrlimit(RLIMIT_FSIZE, &old);
	small.rlim_max = old.rlim_max;
	engine_begin();
	REQUIRE(open_port(PORT_ADD_PCAP_WRITE, &own, 1) == 0);
	CHECK_EQ(give(bytes, sizeof(bytes), 10), 10);
	CHECK(file_reaches(fd, PCAP_HEAD_SIZE + 10 * block));
	setrlimit(RLIMIT_FSIZE, &small);
	CHECK_EQ(give(bytes, sizeof(bytes), 3), 3);
	while (lost_frames() < 3 && clock_ns() < deadline)
		dataplane_step(engine, 1);
	CHECK_EQ(lost_frames(), 3);
	CHECK_EQ(port_state(1).error, EFBIG);
	CHECK_EQ(port_state(1).link, 1);
	CHECK(!fstat(fd, &stat));
	CHECK_EQ(stat.st_size, PCAP_HEAD_SIZE + 10 * block);
	setrlimit(RLIMIT_FSIZE, &old);
	CHECK_EQ(give(bytes, sizeof(bytes), 2), 2);
	CHECK(file_reaches(fd, PCAP_HEAD_SIZE + 12 * block));
	engine_end();
	close(fd);
}

int main(void)
{
	signal(SIGXFSZ, SIG_IGN);
	RUN(classic_files_are_read_in_all_flavours);
	RUN(pcapng_sections_and_interfaces_are_kept_apart);
	RUN(simple_blocks_take_the_time_before);
	RUN(files_of_other_kinds_are_refused);
	RUN(damage_stays_damage);
	RUN(cut_files_end_with_their_last_whole_frame);
	RUN(replay_waits_for_its_rules_and_then_gives_all);
	RUN(timed_replay_keeps_the_gaps);
	RUN(damaged_file_is_told_and_replayed_up_to_there);
	RUN(what_is_no_capture_file_makes_no_port);
	RUN(written_frames_can_be_read_back);
	RUN(all_is_written_when_the_port_is_closed);
	RUN(full_disk_costs_frames_and_the_file_stays_whole);
	return check_done();
}
