/* A ring whose guest writes anything anywhere at any time: nothing outside its memory is touched,
 * nothing loops, and what is handed on as a frame adds up.
 *
 * Input: a byte of features, a byte of size, then steps: a byte of what to do, and what belongs to
 * it (see step()). /
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "rings.h"

#define MUST(condition)           \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

struct input {
	const u8 *at, *end;
};

static struct vring_config config;
static u8 frame[PACKET_LENGTH_MAX];

static u32 next(struct input *input, u32 bytes)
{
	u32 value = 0;

	for (u32 i = 0; i < bytes && input->at < input->end; i++)
		value |= (u32)*input->at++ << (8 * i);
	return value;
}

static void guest_writes(struct input *input)
{
	u32 at = next(input, 3) % GUEST_SIZE, n = next(input, 1);

	while (n-- && at < GUEST_SIZE)
		guest[at++] = (u8)next(input, 1);
}

static void check_frame(const struct packet *packet)
{
	u64 total = 0;

	MUST(packet->n_segments <= PACKET_SEGMENTS_MAX);
	if (packet->reason)
		return;
	MUST(packet->length >= 14 && packet->length <= PACKET_LENGTH_MAX);
	for (u32 i = 0; i < packet->n_segments; i++) {
		const struct segment *segment = &packet->segments[i];

		MUST(segment->data >= memory.regions[0].data && segment->length);
		MUST(segment->data + segment->length <= memory.regions[0].data + GUEST_SIZE);
		total += segment->length;
	}
	MUST(total == packet->length);
}

static void take_frames(u32 max)
{
	u32 room = RX_SLOTS - (queue->head - queue->tail), before = queue->head;
	u32 n = vring_rx(&ring, queue, max < room ? max : room);

	MUST(queue->head == before + n && n <= max);
	for (u32 i = 0; i < n; i++)
		check_frame(taken_frame(before + i));
}

static void give_back(u32 n)
{
	if (n > queue->head - queue->tail)
		n = queue->head - queue->tail;
	vring_complete(&ring, n);
	queue->tail += n;
}

static void give(u32 length)
{
	struct one_packet one[2];
	struct packet *packets[2];
	u64 before = guest_bytes_written;
	u32 n, bytes = 0;

	length = 14 + length % (PACKET_LENGTH_MAX - 14);
	for (u32 i = 0; i < 2; i++)
		packets[i] = packet_of(&one[i], frame, length);
	n = vring_tx(&ring, packets, 2);
	MUST(n <= 2);
	for (u32 i = 0; i < n; i++)
		bytes += packets[i]->reason ? 0 : length;
	MUST(guest_bytes_written - before == bytes);
}

static void step(struct input *input)
{
	u32 what = next(input, 1);

	switch (what % 8) {
	case 0:
	case 1:
		guest_writes(input);
		break;
	case 2:
		take_frames(1 + what / 8);
		break;
	case 3:
		give_back(1 + what / 8);
		break;
	case 4:
		give(next(input, 2));
		break;
	case 5:
		vring_arm(&ring, what & 8);
		break;
	case 6:
		vring_wants_call(&ring);
		vring_prepare(&ring, what / 8);
		break;
	default:
		vm_port->fault = 0;
		queue->tail = queue->head;
		config.base = vring_base(&ring);
		vring_start(&ring, &config);
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input input = {data, data + size};
	u32 features = next(&input, 1);

	if (!guest)
		guest_begin();
	memset(guest, 0, GUEST_SIZE);
	vm_port->fault = 0;
	queue->head = queue->tail = 0;
	config = (struct vring_config){.port = vm_port,
				       .memory = &memory,
				       .desc = USER_START + DESC_AT,
				       .driver = USER_START + DRIVER_AT,
				       .device = USER_START + DEVICE_AT,
				       .base = 0x8000,
				       .is_rx = features & 1,
				       .call_fd = -1};
	config.features = (features & 2 ? FEATURE(VIRTIO_F_RING_PACKED) : 0) |
			  (features & 4 ? FEATURE(VIRTIO_RING_F_INDIRECT_DESC) : 0) |
			  (features & 8 ? FEATURE(VIRTIO_NET_F_MRG_RXBUF) : 0) |
			  (features & 16 ? FEATURE(VIRTIO_RING_F_EVENT_IDX) : 0) |
			  (features & 32 ? FEATURE(VIRTIO_F_IN_ORDER) : 0) |
			  (features & 64 ? FEATURE(VIRTIO_F_VERSION_1) : 0);
	config.size = next(&input, 1);
	if (features & 128)
		config.size = 1u << (config.size % 12);
	if (vring_start(&ring, &config))
		return 0;
	while (input.at < input.end) {
		/* As port_vhost.c has it: a ring is used in one direction. */
		if ((*input.at % 8 == 4) == config.is_rx &&
		    (*input.at % 8 >= 2 && *input.at % 8 <= 4)) {
			input.at++;
			continue;
		}
		step(&input);
	}
	return 0;
}
