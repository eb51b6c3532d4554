/* A guest's virtio-net driver without a guest: memory, rings, and a loop that keeps them busy.
 *
 * Together with session.py, which speaks vhost-user, it plays QEMU and the guest's driver against
 * any vhost-user back end: the switch under test, or a peer beside it. What the back end writes
 * (used entries, lengths, received frames, suppression flags) is a stranger's and is checked before
 * use. One thread per ring at a time. It never prints and never allocates outside of the _new
 * functions. x86-64 only: virtio's little-endian fields are the machine's.
 *
 * Everything between the two "cffi" marks is also what Python sees (build_ffi.py).
 */
#ifndef BENCH_DRIVER_H
#define BENCH_DRIVER_H

#include <stdint.h>

/* cffi: begin */

/* Why a back end is wrong. Functions return them negative. */
enum driver_error {
	DRIVER_FULL = 1,    /* not an error of the back end: no free descriptors */
	DRIVER_BAD_ARGUMENT, /* the caller's mistake */
	DRIVER_USED_INDEX,    /* more used entries than buffers are out */
	DRIVER_USED_ID_RANGE,  /* a used entry names no descriptor of this ring */
	DRIVER_USED_ID_NOT_OUT,	   /* a used entry names a buffer that the device does not have */
	DRIVER_USED_LENGTH, /* more bytes than the buffer has, or fewer than a header */
	DRIVER_OVERRUN, /* bytes behind a receive buffer's segment were changed */
	DRIVER_FRAME_INCOMPLETE, /* num_buffers is 0, or counts buffers that are not used yet */
	DRIVER_FRAME_TOO_LONG, /* more bytes than a frame can have */
};

enum {
	DRIVER_HEADER_SIZE = 12, /* struct virtio_net_hdr_v1 */
	DRIVER_GUARD_SIZE = 64, /* untouched bytes behind each segment of a buffer */
	DRIVER_SEGMENTS_MAX = 256,
	DRIVER_STREAMS_MAX = 16,
};

/* Guest memory: one span of our address space in which guest address g is at a fixed distance, with
 * regions mapped into it and holes between. */
struct driver_memory;
struct driver_memory *driver_memory_new(uint64_t lowest, uint64_t span);
int driver_memory_map(struct driver_memory *memory, uint64_t address, uint64_t size, int fd,
		      uint64_t offset);
int driver_memory_zero(struct driver_memory *memory, uint64_t address, uint64_t size);
uint8_t *driver_memory_at(struct driver_memory *memory, uint64_t address);
void driver_memory_free(struct driver_memory *memory);

/* How a ring is laid out. All addresses are guest addresses. */
struct driver_ring_setup {
	uint32_t size; /* descriptors: 2..32768; a power of two for split rings */
	uint32_t packed; /* the booleans: 0 or 1 */
	uint32_t in_order;
	uint32_t event_idx;
	uint32_t mergeable; /* receive rings: one frame may fill several buffers */
	uint32_t start; /* first index: split 0..65535; packed: position, bit 15 the wrap counter */
	uint64_t descriptors;
	uint64_t avail; /* packed: the driver's event structure */
	uint64_t used; /* packed: the device's event structure */
	uint64_t buffers; /* `size` buffers of `stride` bytes: segments, each with a guard */
	uint32_t stride;
	uint32_t segments_max; /* of one buffer: 1..256 */
	uint64_t tables; /* `size` indirect tables of `segments_max` descriptors; 0: chains */
	int kick_fd;
	int call_fd;
};

struct driver_counters {
	uint64_t added; /* buffers made available */
	uint64_t completed; /* buffers that came back */
	uint64_t out_of_order; /* of those: not the oldest one. Always 0 with IN_ORDER */
	uint64_t batched; /* of those: without a used entry of their own (IN_ORDER only) */
	uint64_t kicks;
	uint64_t kicks_suppressed;
	uint64_t tx_lengths; /* transmit buffers whose used entry claims written bytes */
};

struct driver_ring;
struct driver_ring *driver_ring_new(struct driver_memory *memory,
				    const struct driver_ring_setup *setup);
void driver_ring_free(struct driver_ring *ring);
const struct driver_counters *driver_ring_counters(const struct driver_ring *ring);

/* Puts `bytes` (virtio-net header and frame) into a free buffer, cut into segments of the given
 * lengths (they must add up). The device sees it after driver_publish(). Returns 0, -DRIVER_FULL or
 * -DRIVER_BAD_ARGUMENT. */
int driver_send(struct driver_ring *ring, const uint8_t *bytes, uint32_t length,
		const uint32_t *cuts, uint32_t n_cuts);

/* The same for one empty receive buffer. */
int driver_post(struct driver_ring *ring, const uint32_t *cuts, uint32_t n_cuts);

/* Shows the device what was added. Returns how many buffers. */
uint32_t driver_publish(struct driver_ring *ring);

/* Kicks, unless the device asked not to be. Returns 1 when it kicked. */
int driver_notify(struct driver_ring *ring);

/* Takes back all used transmit buffers. Returns how many, or a negative driver_error. */
int driver_reclaim(struct driver_ring *ring);

/* Copies the oldest received frame, header first, to `out`, and frees its buffers. Returns its
 * length (never below the header's), 0 when there is none, or a negative driver_error. `n_buffers`
 * is how many it filled. */
int driver_receive(struct driver_ring *ring, uint8_t *out, uint32_t size, uint32_t *n_buffers);

/* True when the device has returned something that was not looked at. */
int driver_pending(const struct driver_ring *ring);

/* Asks for interrupts (from the next used buffer on), or asks not to be interrupted. Look at
 * driver_pending() after asking. */
void driver_interrupts(struct driver_ring *ring, int on);

/* Buffers the device has; free descriptors. */
uint32_t driver_in_flight(const struct driver_ring *ring);
uint32_t driver_free_descriptors(const struct driver_ring *ring);

/* Where a new back end has to go on if the old one is gone: the SET_VRING_BASE value behind the
 * last used buffer. */
uint32_t driver_resume_base(const struct driver_ring *ring);

/* One queue pair under load. The frame has `flows` variants (UDP ports) and carries a stamp in its
 * UDP payload, 8 bytes from `stamp_offset` on. */
struct driver_pump_side {
	struct driver_ring *tx; /* may be NULL: receives only. Empty at the start */
	struct driver_ring *rx; /* may be NULL: sends only. Its buffers are posted by the caller */
	const uint8_t *frame; /* header and frame as sent */
	uint32_t length;
	uint32_t ports_offset; /* in frame[]: of the UDP ports */
	uint32_t stamp_offset; /* in frame[]: of the stamp */
	uint32_t flows; /* 1..16777216 */
	const uint32_t *tx_cuts;
	uint32_t n_tx_cuts;
	const uint32_t *rx_cuts;
	uint32_t n_rx_cuts;
	uint32_t sequence; /* the state, kept between runs */
	uint32_t flow;
	/* Results. */
	uint64_t sent; /* frames the device has taken */
	uint64_t received;
	uint64_t received_bytes; /* without headers */
	uint64_t reordered; /* frames that came after a later one of the same stream */
	uint64_t checked; /* frames compared byte by byte */
	uint64_t corrupt; /* of those: different */
	uint64_t foreign; /* without one of our stamps */
	uint32_t last[16]; /* by stream: last sequence number received, plus one; 0: none yet */
};

struct driver_pump {
	struct driver_pump_side *sides; /* the index of a side is its stream's number */
	uint32_t n_sides; /* 1..16 */
	uint32_t batch; /* leave fewer used buffers than this for a while; 1 or more */
	uint32_t check_every; /* compare frames whose number divides by this; 0: none */
	uint64_t frames; /* to send per side; 0: no limit */
	uint64_t duration_ns; /* 0: no limit */
	uint64_t drain_ns; /* goes on receiving until nothing has come for so long */
	volatile int stop; /* another thread may set this */
	/* Results. */
	uint64_t elapsed_ns; /* until the last frame, without the waiting of the drain */
	uint32_t failed_side;
};

/* Runs until all is sent and received, or the time is over, or `stop`. Returns 0 or a negative
 * driver_error. */
int driver_pump(struct driver_pump *pump);

/* cffi: end */

#endif
