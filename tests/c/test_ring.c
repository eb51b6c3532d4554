/* The byte ring's promises: messages arrive whole and in order, across the wrap and between
 * threads; nonsense from the other side is told. */
#include <pthread.h>
#include <stdlib.h>

#include "api.h"
#include "check.h"

#define DATA 1024
#define WRITTEN 0 /* where ring.c keeps its words */
#define READ 128

static u8 *memory;
static struct ring *ring;

static void begin(void)
{
	memory = aligned_alloc(64, RING_HEADER + DATA);
	memset(memory, 0xee, RING_HEADER + DATA);
	ring = ring_at(memory, RING_HEADER + DATA);
	ring_init(ring, RING_HEADER + DATA);
}

static void end(void)
{
	ring_free(ring);
	free(memory);
}

static void only_a_power_of_two_is_a_ring(void)
{
	u8 *area = aligned_alloc(64, 4096);

	CHECK(!ring_at(area, RING_HEADER));
	CHECK(!ring_at(area, RING_HEADER + 1000));
	CHECK(!ring_at(area, 100));
	CHECK(!ring_at(area + 4, RING_HEADER + 1024));
	free(area);
}

static void messages_of_all_lengths_come_back_across_the_wrap(void)
{
	u8 message[DATA], seen[DATA];

	begin();
	for (u32 round = 0; round < 5000; round++) {
		u32 length = 1 + check_random(DATA - 8);

		for (u32 i = 0; i < length; i++)
			message[i] = (u8)(round + i);
		CHECK_EQ(ring_write(ring, message, length), 0);
		CHECK_EQ(ring_read(ring, seen, sizeof(seen)), length);
		CHECK(!memcmp(message, seen, length));
	}
	CHECK_EQ(ring_read(ring, seen, sizeof(seen)), 0);
	end();
}

static void full_ring_takes_nothing_and_loses_nothing(void)
{
	u8 message[24] = {0}, seen[DATA];
	u32 n = 0;

	begin();
	while (!ring_write(ring, message, sizeof(message)))
		message[0] = (u8)++n;
	CHECK_EQ(n, DATA / 32);
	CHECK_EQ(ring_write(ring, message, sizeof(message)), -EAGAIN);
	for (u32 i = 0; i < n; i++) {
		CHECK_EQ(ring_read(ring, seen, sizeof(seen)), sizeof(message));
		CHECK_EQ(seen[0], (u8)i);
	}
	CHECK_EQ(ring_read(ring, seen, sizeof(seen)), 0);
	end();
}

static void what_never_fits_is_refused(void)
{
	u8 message[2 * DATA] = {0}, seen[8];

	begin();
	CHECK_EQ(ring_write(ring, message, DATA - 7), -E2BIG);
	CHECK_EQ(ring_write(ring, message, 0), -E2BIG);
	CHECK_EQ(ring_write(ring, message, UINT32_MAX), -E2BIG);
	CHECK_EQ(ring_write(ring, message, 100), 0);
	CHECK_EQ(ring_read(ring, seen, sizeof(seen)), -E2BIG);
	CHECK_EQ(ring_read(ring, message, sizeof(message)), 100);
	end();
}

static void set_word(u32 at, u64 value)
{
	memcpy(memory + at, &value, sizeof(value));
}

static void nonsense_of_the_writer_is_told(void)
{
	static const u64 lengths[] = {0, DATA - 7, DATA, 1ull << 32, UINT64_MAX, UINT64_MAX - 7};
	u8 seen[2 * DATA];

	begin();
	set_word(WRITTEN, DATA + 8);
	CHECK_EQ(ring_read(ring, seen, sizeof(seen)), -EBADMSG);
	set_word(WRITTEN, 12);
	CHECK_EQ(ring_read(ring, seen, sizeof(seen)), -EBADMSG);
	set_word(WRITTEN, UINT64_MAX - 7);
	CHECK_EQ(ring_read(ring, seen, sizeof(seen)), -EBADMSG);
	set_word(WRITTEN, 16);
	for (u32 i = 0; i < ARRAY_SIZE(lengths); i++) {
		set_word(RING_HEADER, lengths[i]);
		CHECK_EQ(ring_read(ring, seen, sizeof(seen)), -EBADMSG);
	}
	end();
}

static void nonsense_of_the_reader_stops_the_writer(void)
{
	static const u64 positions[] = {8, DATA, UINT64_MAX, 1ull << 63};
	u8 message[64] = {0};

	for (u32 i = 0; i < ARRAY_SIZE(positions); i++) {
		begin();
		set_word(READ, positions[i]);
		CHECK_EQ(ring_write(ring, message, sizeof(message)), -EAGAIN);
		end();
	}
}

/* Whatever stands in the words and the data, both ends stay inside the ring (a sanitizer
 * watches). */
static void random_memory_is_survived(void)
{
	u8 message[DATA], seen[DATA];

	memset(message, 1, sizeof(message));
	begin();
	for (u32 round = 0; round < 50000; round++) {
		set_word(WRITTEN, (u64)check_random(4 * DATA) << (check_random(2) * 40));
		set_word(READ, (u64)check_random(4 * DATA) << (check_random(2) * 40));
		set_word(RING_HEADER + 8 * check_random(DATA / 8), check_random(2 * DATA));
		ring_read(ring, seen, 1 + check_random(sizeof(seen)));
		ring_write(ring, message, 1 + check_random(sizeof(message)));
	}
	end();
}

#define STREAM 200000

static void *write_stream(void *context)
{
	struct ring *writer = ring_at(memory, RING_HEADER + DATA);

	(void)context;
	for (u32 i = 0; i < STREAM;) {
		u32 message[8] = {i, i, i, i, i, i, i, i};

		if (!ring_write(writer, message, 4 + 4 * (i % 8)))
			i++;
	}
	ring_free(writer);
	return NULL;
}

static void threads_see_whole_messages_in_order(void)
{
	pthread_t thread;
	u32 message[8], expected = 0;

	begin();
	pthread_create(&thread, NULL, write_stream, NULL);
	while (expected < STREAM) {
		int64_t length = ring_read(ring, message, sizeof(message));

		if (!length)
			continue;
		if (length != 4 + 4 * (expected % 8) || message[0] != expected ||
		    message[(length - 4) / 4] != expected)
			break;
		expected++;
	}
	CHECK_EQ(expected, STREAM);
	if (expected == STREAM)
		pthread_join(thread, NULL);
	end();
}

int main(void)
{
	RUN(only_a_power_of_two_is_a_ring);
	RUN(messages_of_all_lengths_come_back_across_the_wrap);
	RUN(full_ring_takes_nothing_and_loses_nothing);
	RUN(what_never_fits_is_refused);
	RUN(nonsense_of_the_writer_is_told);
	RUN(nonsense_of_the_reader_stops_the_writer);
	RUN(random_memory_is_survived);
	RUN(threads_see_whole_messages_in_order);
	return check_done();
}
