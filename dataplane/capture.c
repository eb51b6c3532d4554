/* Copies of one port's frames for vswitchd: see capture.h.
 *
 * The ring's memory is shared with vswitchd, which writes only `tail`; whatever stands there,
 * writes stay inside the ring: `head` and the size are kept here. capture_frame(): any worker. It
 * takes a try-lock, never waits, never allocates. Frames are strangers' bytes, copied and summed
 * but not looked at.
 */
#define _GNU_SOURCE
#include "capture.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checksum.h"

#define PAGE 4096
#define RING_MIN 65536
#define RING_MAX (1u << 30)
#define ALIGNMENT 8
#define UDP_CHECKSUM 6

struct capture {
	struct capture_ring *ring;
	u8 *data;
	u64 size;
	u64 head;
	u32 snaplen;
	u32 lock;
};

int capture_open(int fd, u64 ring_bytes, u32 snaplen, struct capture **out)
{
	struct capture *capture = NULL;
	struct stat stat;
	void *memory;
	int seals = fcntl(fd, F_GET_SEALS), error = 0;

	if (ring_bytes < RING_MIN || ring_bytes > RING_MAX || (ring_bytes & (ring_bytes - 1)) ||
	    fstat(fd, &stat) || stat.st_size < (off_t)(PAGE + ring_bytes) || seals < 0 ||
	    !(seals & F_SEAL_SHRINK))
		error = -EINVAL;
	else if (!(capture = calloc(1, sizeof(*capture))))
		error = -ENOMEM;
	if (error) {
		close(fd);
		return error;
	}
	memory = mmap(NULL, PAGE + ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	error = memory == MAP_FAILED ? -errno : 0;
	close(fd);
	if (error) {
		free(capture);
		return error;
	}
	madvise(memory, PAGE + ring_bytes, MADV_DONTDUMP);
	capture->ring = memory;
	capture->data = (u8 *)memory + PAGE;
	capture->size = ring_bytes;
	capture->snaplen = snaplen ? snaplen : UINT32_MAX;
	*capture->ring = (struct capture_ring){.size = ring_bytes};
	*out = capture;
	return 0;
}

void capture_close(struct capture *capture)
{
	munmap(capture->ring, PAGE + capture->size);
	free(capture);
}

/* Room for a record of `length` bytes that does not wrap, or NULL. */
static u8 *reserve(struct capture *capture, u64 length)
{
	u64 used =
		capture->head -
		LOAD_ACQUIRE(&capture->ring->tail); /* partner: the reader is done with the bytes */
	u64 at = capture->head & (capture->size - 1), to_end = capture->size - at;
	u64 skip = length > to_end ? to_end : 0;

	if (used > capture->size || length + skip > capture->size - used)
		return NULL;
	if (skip) {
		STORE_UNALIGNED(u32, capture->data + at, 0);
		capture->head += skip;
		at = 0;
	}
	return capture->data + at;
}

/* Copies the first `captured` bytes to `to`; with a checksum to be made, sums what lies behind
 * its start over the whole frame. */
static void copy_frame(const struct packet *packet, u8 *to, u32 captured)
{
	const struct offload *offload = &packet->offload;
	struct segment pieces[PACKET_SEGMENTS_MAX + 1];
	u32 n = packet_pieces(packet, pieces), at = 0,
	    field = (u32)offload->csum_start + offload->csum_offset;
	bool sum = (offload->flags & OFFLOAD_NEEDS_CSUM) && field + 2 <= captured;
	struct checksum checksum = {0};

	for (u32 i = 0; i < n && (sum || at < captured); i++) {
		const u8 *data = pieces[i].data;
		u32 length = pieces[i].length, copied = 0, skip;

		if (at < captured) {
			copied = length < captured - at ? length : captured - at;
			memcpy(to + at, data, copied);
			data = to + at; /* what is shown is what is summed */
		}
		if (sum && at + length > offload->csum_start) {
			skip = at < offload->csum_start ? offload->csum_start - at : 0;
			if (copied > skip)
				checksum_add(&checksum, data + skip, copied - skip);
			skip = skip > copied ? skip : copied;
			checksum_add(&checksum, pieces[i].data + skip, length - skip);
		}
		at += length;
	}
	if (sum) {
		be16 result = checksum_result(&checksum);

		if (!result && offload->csum_offset == UDP_CHECKSUM)
			result = 0xffff; /* zero would mean that there is none */
		STORE_UNALIGNED(be16, to + field, result);
	}
}

void capture_frame(struct capture *capture, const struct packet *packet, bool from_port,
		   u8 drop_reason)
{
	u32 frame_length = packet_length_out(packet);
	u32 captured = frame_length < capture->snaplen ? frame_length : capture->snaplen;
	struct capture_record record = {.length = (u32)sizeof(record) + captured,
					.frame_length = frame_length,
					.captured = captured,
					.from_port = from_port,
					.drop = drop_reason};
	u64 length = (record.length + ALIGNMENT - 1) & ~(u64)(ALIGNMENT - 1);
	struct timespec now;
	u8 *to;

	if (__atomic_exchange_n(&capture->lock, 1, __ATOMIC_ACQUIRE)) {
		__atomic_fetch_add(&capture->ring->lost, 1, __ATOMIC_RELAXED);
		return;
	}
	to = reserve(capture, length);
	if (!to) {
		__atomic_fetch_add(&capture->ring->lost, 1, __ATOMIC_RELAXED);
	} else {
		clock_gettime(CLOCK_REALTIME, &now);
		record.time_ns = (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec;
		memcpy(to, &record, sizeof(record));
		copy_frame(packet, to + sizeof(record), captured);
		capture->head += length;
		STORE_RELEASE(&capture->ring->head,
			      capture->head); /* partner: the reader's load of head */
	}
	STORE_RELEASE(&capture->lock, 0);
}
