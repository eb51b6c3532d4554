/* Load: keeps transmit and receive rings busy with stamped frames, and checks what comes.
 *
 * Reads received frames (strangers' bytes until the stamp says whose they are). Runs in its
 * caller's thread until done; never sleeps, except that an idle loop yields the CPU.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <immintrin.h>
#include <sched.h>
#include <time.h>

#define TURN 64	       /* buffers taken from a ring before the next one has its turn */
#define IDLE_TURNS 64  /* turns after which fewer used buffers than a batch are good enough */
#define YIELD_TURNS 4096
#define CLOCK_TURNS 64 /* turns between two looks at the clock */

/* In the UDP payload. */
struct stamp {
	uint32_t sequence;
	uint32_t stream_flow; /* stream << 24 | flow */
};

struct run {
	struct driver_pump *pump;
	uint32_t tx_stamp[DRIVER_STREAMS_MAX]; /* places in a transmit buffer */
	uint32_t tx_ports[DRIVER_STREAMS_MAX];
	uint32_t rx_stamp[DRIVER_STREAMS_MAX]; /* in a receive buffer */
	uint64_t added[DRIVER_STREAMS_MAX]; /* frames given to the device in this run */
	uint64_t taken[DRIVER_STREAMS_MAX]; /* of those: taken by it */
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The UDP ports of a flow: 32768 source ports per destination port. */
static uint32_t ports_of(uint32_t flow)
{
	uint16_t source = (uint16_t)(1024 + (flow & 0x7fff));
	uint16_t destination = (uint16_t)(2000 + (flow >> 15));

	return (uint32_t)__builtin_bswap16(destination) << 16 | __builtin_bswap16(source);
}

static bool cuts_fit(const struct driver_ring *ring, const uint32_t *cuts, uint32_t n,
		     uint64_t *capacity)
{
	uint64_t room = 0;

	*capacity = 0;
	if (!n || n > ring->setup.segments_max)
		return false;
	for (uint32_t i = 0; i < n; i++) {
		*capacity += cuts[i];
		room += (uint64_t)cuts[i] + DRIVER_GUARD_SIZE;
	}
	return room <= ring->setup.stride;
}

/* Writes the frame into every buffer of an empty transmit ring; the loop only restamps them. */
static void fill_buffers(struct driver_pump_side *side)
{
	struct driver_ring *ring = side->tx;

	for (uint32_t id = 0; id < ring->setup.size; id++) {
		const uint8_t *from = side->frame;
		uint8_t *to = buffer_at(ring, id);

		for (uint32_t i = 0; i < side->n_tx_cuts; i++) {
			memcpy(to, from, side->tx_cuts[i]);
			from += side->tx_cuts[i];
			to += side->tx_cuts[i] + DRIVER_GUARD_SIZE;
		}
	}
}

static bool side_is_valid(struct run *run, uint32_t index)
{
	struct driver_pump_side *side = &run->pump->sides[index];
	uint64_t capacity;
	uint32_t left;

	if (!side->frame || side->length > UINT16_MAX || !side->flows || side->flows > 1u << 24)
		return false;
	if ((uint64_t)side->ports_offset + 4 > side->length ||
	    (uint64_t)side->stamp_offset + sizeof(struct stamp) > side->length)
		return false;
	if (side->tx) {
		if (!cuts_fit(side->tx, side->tx_cuts, side->n_tx_cuts, &capacity) ||
		    capacity != side->length)
			return false;
		run->tx_ports[index] = place_in_buffer(side->tx_cuts, side->ports_offset, &left);
		if (left < 4)
			return false;
		run->tx_stamp[index] = place_in_buffer(side->tx_cuts, side->stamp_offset, &left);
		if (left < sizeof(struct stamp))
			return false;
	}
	if (!side->rx)
		return true;
	if (!cuts_fit(side->rx, side->rx_cuts, side->n_rx_cuts, &capacity) ||
	    capacity < (uint64_t)side->stamp_offset + sizeof(struct stamp))
		return false;
	run->rx_stamp[index] = place_in_buffer(side->rx_cuts, side->stamp_offset, &left);
	return left >= sizeof(struct stamp);
}

/* True when so many used buffers are there that looking at them is worth the cache lines. With
 * descriptors that don't tell: when there is one. */
static bool batch_is_there(const struct driver_ring *ring, uint32_t batch, uint32_t n_cuts)
{
	uint32_t at = ring->used_position + batch - 1;
	bool wrap = ring->used_wrap;

	if (batch > ring->setup.size / 2)
		return driver_pending(ring);
	if (!ring->setup.packed)
		return (uint16_t)(LOAD_ACQUIRE(&ring->used->index) - ring->used_index) >= batch;
	if (ring->setup.in_order || (n_cuts > 1 && !ring->tables))
		return driver_pending(ring);
	if (at >= ring->setup.size) {
		at -= ring->setup.size;
		wrap = !wrap;
	}
	return packed_used_at(ring, at, wrap);
}

/* Transmit. Returns frames that were moved, or a negative driver_error. */
static int transmit(struct run *run, uint32_t index, bool patient)
{
	struct driver_pump_side *side = &run->pump->sides[index];
	struct driver_ring *ring = side->tx;
	uint64_t limit = run->pump->frames;
	struct completion used;
	int n = 0, got = 0, id;

	if (patient && ring->n_free < run->pump->batch &&
	    !batch_is_there(ring, run->pump->batch, side->n_tx_cuts))
		return 0;
	while (n < TURN && (got = ring_take(ring, &used)) > 0)
		n++;
	if (got < 0)
		return got;
	run->taken[index] += (uint64_t)n;
	for (int i = 0; i < TURN && (!limit || run->added[index] < limit); i++) {
		struct stamp stamp = {.sequence = side->sequence,
				      .stream_flow = index << 24 | side->flow};
		uint32_t ports = ports_of(side->flow);
		uint8_t *buffer;

		id = ring_add(ring, side->tx_cuts, side->n_tx_cuts, false);
		if (id < 0)
			break;
		buffer = buffer_at(ring, (uint32_t)id);
		memcpy(buffer + run->tx_stamp[index], &stamp, sizeof(stamp));
		memcpy(buffer + run->tx_ports[index], &ports, sizeof(ports));
		side->sequence++;
		if (++side->flow == side->flows)
			side->flow = 0;
		run->added[index]++;
		n++;
	}
	driver_publish(ring);
	driver_notify(ring);
	return n;
}

/* Compares a received frame (in one buffer) with what its stream sends. */
static bool frame_is_as_sent(const struct driver_pump_side *at, uint32_t id, uint32_t length,
			     const struct driver_pump_side *sender, struct stamp stamp)
{
	static _Thread_local uint8_t expected[UINT16_MAX];
	const uint8_t *from = buffer_at(at->rx, id);
	uint32_t ports = ports_of(stamp.stream_flow & 0xffffff);
	uint32_t done = 0;

	if (length != sender->length)
		return false;
	memcpy(expected, sender->frame, length);
	memcpy(expected + sender->ports_offset, &ports, sizeof(ports));
	memcpy(expected + sender->stamp_offset, &stamp, sizeof(stamp));
	/* A receive header without offloads, in one buffer. */
	memset(expected, 0, DRIVER_HEADER_SIZE);
	expected[10] = 1;
	for (uint32_t i = 0; done < length; i++) {
		uint32_t n = length - done < at->rx_cuts[i] ? length - done : at->rx_cuts[i];

		if (memcmp(from, expected + done, n) != 0)
			return false;
		done += n;
		from += at->rx_cuts[i] + DRIVER_GUARD_SIZE;
	}
	return true;
}

/* The first buffer of a frame: whose it is, and whether it is in order and whole. */
static void inspect(struct run *run, uint32_t index, uint32_t id, uint32_t length)
{
	struct driver_pump *pump = run->pump;
	struct driver_pump_side *side = &pump->sides[index];
	uint32_t stream;
	struct stamp stamp;

	memcpy(&stamp, buffer_at(side->rx, id) + run->rx_stamp[index], sizeof(stamp));
	stream = stamp.stream_flow >> 24;
	if (length < side->stamp_offset + sizeof(stamp) || stream >= pump->n_sides ||
	    (stamp.stream_flow & 0xffffff) >= pump->sides[stream].flows) {
		side->foreign++;
		return;
	}
	/* last[] is one more than the last number, so an increasing sequence never meets it. */
	if (side->last[stream] && (int32_t)(stamp.sequence - side->last[stream]) < 0)
		side->reordered++;
	side->last[stream] = stamp.sequence + 1;
	if (!pump->check_every || stamp.sequence % pump->check_every)
		return;
	if (pump->sides[stream].length > length)
		return; /* goes on in other buffers */
	side->checked++;
	if (!frame_is_as_sent(side, id, length, &pump->sides[stream], stamp))
		side->corrupt++;
}

/* Asks for the stamps of frames that are about to be taken: they are in the other CPU's cache. */
static void prefetch(const struct run *run, uint32_t index)
{
	const struct driver_ring *ring = run->pump->sides[index].rx;
	uint32_t size = ring->setup.size, place = run->rx_stamp[index];

	for (uint32_t i = 0; i < run->pump->batch && i < size; i++) {
		uint32_t id;

		if (ring->setup.packed) {
			uint32_t at = ring->used_position + i;

			id = LOAD_RELAXED(&ring->desc.packed[at < size ? at : at - size].id);
		} else {
			id = LOAD_RELAXED(
				&ring->used->ring[(ring->used_index + i) & (size - 1)].id);
		}
		if (id >= size)
			return;
		__builtin_prefetch(buffer_at(ring, id) + place);
		if (ring->setup.mergeable)
			__builtin_prefetch(buffer_at(ring, id));
	}
}

/* Receive: takes whole frames and posts their buffers again. Returns buffers moved, or a negative
 * driver_error. */
static int receive(struct run *run, uint32_t index, bool patient)
{
	struct driver_pump_side *side = &run->pump->sides[index];
	struct driver_ring *ring = side->rx;
	struct completion used;
	uint16_t more = 0;
	int n = 0, got = 0;

	if (patient && !batch_is_there(ring, run->pump->batch, side->n_rx_cuts))
		return 0;
	if (patient)
		prefetch(run, index);
	while ((n < TURN || more) && (got = ring_take(ring, &used)) > 0) {
		if (used.length > ring->requests[used.id].capacity)
			return -DRIVER_USED_LENGTH;
		side->received_bytes += used.length;
		if (more) {
			more--;
		} else {
			if (used.length < DRIVER_HEADER_SIZE)
				return -DRIVER_USED_LENGTH;
			if (ring->setup.mergeable) {
				memcpy(&more, buffer_at(ring, used.id) + 10, sizeof(more));
				if (!more--)
					return -DRIVER_FRAME_INCOMPLETE;
			}
			side->received++;
			side->received_bytes -= DRIVER_HEADER_SIZE;
			inspect(run, index, used.id, used.length);
		}
		n++;
	}
	if (got < 0)
		return got;
	if (more)
		return -DRIVER_FRAME_INCOMPLETE;
	for (int i = 0; i < n; i++)
		ring_add(ring, side->rx_cuts, side->n_rx_cuts, true);
	driver_publish(ring);
	driver_notify(ring);
	return n;
}

/* One turn over all rings. Returns buffers moved, or a negative driver_error. */
static int turn(struct run *run, bool patient, bool sending)
{
	struct driver_pump *pump = run->pump;
	int total = 0;

	for (uint32_t i = 0; i < pump->n_sides; i++) {
		struct driver_pump_side *side = &pump->sides[i];
		int n = 0;

		pump->failed_side = i;
		if (side->rx)
			n = receive(run, i, patient);
		if (n < 0)
			return n;
		total += n;
		if (!side->tx)
			continue;
		n = sending ? transmit(run, i, patient) : driver_reclaim(side->tx);
		if (n < 0)
			return n;
		if (!sending)
			run->taken[i] += (uint64_t)n;
		total += n;
	}
	return total;
}

/* True when each side has given the device all the frames it was to send. */
static bool all_given(const struct run *run)
{
	if (!run->pump->frames)
		return false;
	for (uint32_t i = 0; i < run->pump->n_sides; i++)
		if (run->pump->sides[i].tx && run->added[i] < run->pump->frames)
			return false;
	return true;
}

static int loop(struct run *run)
{
	struct driver_pump *pump = run->pump;
	uint64_t start = now_ns(), last = start, now = start;
	uint64_t idle = 0;
	bool sending = true;

	for (uint64_t turns = 0;; turns++) {
		int n = turn(run, idle < IDLE_TURNS, sending);

		if (n < 0)
			return n;
		idle = n ? 0 : idle + 1;
		if (idle && idle % YIELD_TURNS == 0)
			sched_yield();
		else if (idle)
			_mm_pause();
		if (turns % CLOCK_TURNS)
			continue;
		now = now_ns();
		if (n)
			last = now;
		pump->elapsed_ns = last - start;
		if (pump->stop || (pump->duration_ns && now - start >= pump->duration_ns) ||
		    all_given(run))
			sending = false;
		if (!sending && now - last >= pump->drain_ns)
			return 0;
	}
}

int driver_pump(struct driver_pump *pump)
{
	struct run run = {.pump = pump};
	int error;

	pump->elapsed_ns = 0;
	pump->failed_side = 0;
	if (!pump->n_sides || pump->n_sides > DRIVER_STREAMS_MAX || !pump->batch)
		return -DRIVER_BAD_ARGUMENT;
	for (uint32_t i = 0; i < pump->n_sides; i++) {
		pump->failed_side = i;
		if (!side_is_valid(&run, i))
			return -DRIVER_BAD_ARGUMENT;
		if (!pump->sides[i].tx)
			continue;
		error = driver_reclaim(pump->sides[i].tx);
		if (error < 0)
			return error;
		if (driver_in_flight(pump->sides[i].tx))
			return -DRIVER_BAD_ARGUMENT;
		fill_buffers(&pump->sides[i]);
	}
	error = loop(&run);
	for (uint32_t i = 0; i < pump->n_sides; i++)
		pump->sides[i].sent += run.taken[i];
	return error;
}
