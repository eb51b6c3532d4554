/* Fuzz target: any bytes as a frame with any vnet header, through the parser, what it says about
 * connections, the offload check and the software offloads.
 *
 * Holds: no look outside the copy; offsets inside the frame and in order; a second parse with more
 * bytes agrees with what the first knew; segmentation gives back all the payload. Input: 10 bytes
 * of vnet header, 1 byte of how much is copied at first, the frame.
 */
#include <stdlib.h>

#include "connection.h"
#include "offload.h"
#include "parse.h"
#include "vnet_header.h"

#define EXPECT(condition)         \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

static u8 scratch[4 * PACKET_LENGTH_MAX];

static void add_payload(struct packet *piece, void *context)
{
	EXPECT(piece->payload <= piece->length);
	*(u32 *)context += piece->length - piece->payload;
}

static void check_offsets(const struct packet *packet, const struct flow_key *key)
{
	EXPECT(packet->tags <= 2);
	EXPECT(packet->l3 <= packet->length && packet->l4 <= packet->length &&
	       packet->payload <= packet->length);
	EXPECT(!packet->l4 || packet->l4 > packet->l3);
	EXPECT(!packet->payload || packet->payload > packet->l4);
	EXPECT(!(key->flags & KEY_L3_UNKNOWN) || (key->flags & KEY_L4_UNKNOWN && !key->ip_proto));
	EXPECT(!(key->flags & KEY_L4_UNKNOWN) || (!key->l4_src && !key->l4_dst));
	EXPECT(!(key->flags & KEY_FRAGMENT_LATER) || key->flags & KEY_FRAGMENT);
}

static void check_connection(const struct packet *packet, const struct flow_key *key)
{
	struct connection_frame frame;

	connection_frame_read(&frame, key, packet, 1);
	EXPECT(frame.kind <= FRAME_LATER && frame.side <= 1);
	if (frame.kind == FRAME_UNTRACKED)
		return;
	EXPECT(frame.tuple.zone == 1 && (frame.tuple.family == 4 || frame.tuple.family == 6));
	EXPECT(memcmp(frame.tuple.address[0], frame.tuple.address[1], 16) <= 0);
	EXPECT(frame.kind != FRAME_LATER || frame.is_fragment);
	EXPECT(!frame.opening || frame.kind == FRAME_PLAIN);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct packet packet = {0};
	struct segment segment;
	struct flow_key first, key;
	u32 have, n, payload = 0;
	u8 *copy;

	if (size < VNET_HEADER + 1 || size - VNET_HEADER - 1 > 4096)
		return 0;
	vnet_header_read(data, &packet.offload);
	have = 14 + data[VNET_HEADER];
	segment = (struct segment){data + VNET_HEADER + 1, (u32)size - VNET_HEADER - 1};
	packet.length = segment.length;
	packet.segments = &segment;
	packet.n_segments = 1;
	if (have > packet.length)
		have = packet.length;
	copy = malloc(have ? have : 1);
	memcpy(copy, segment.data, have);
	packet.header = copy;
	packet.header_length = packet.header_taken = (u16)have;
	if (parse_packet(&packet, 1, &first, false)) {
		key = first;
		check_offsets(&packet, &key);
		check_connection(&packet, &key);
	} else {
		EXPECT(have < packet.length);
	}
	free(copy);
	have = packet.length < PACKET_HEADER_MAX ? packet.length : PACKET_HEADER_MAX;
	copy = malloc(have ? have : 1);
	memcpy(copy, segment.data, have);
	n = packet.header_length;
	packet.header = copy;
	packet.header_length = packet.header_taken = (u16)have;
	packet.l4 = packet.payload = 0;
	EXPECT(parse_packet(&packet, 1, &key, true));
	check_offsets(&packet, &key);
	check_connection(&packet, &key);
	if (n >= have)
		EXPECT(flow_key_equal(&first, &key));
	if (offload_check(&packet, key.ip_proto)) {
		n = offload_finish(&packet, scratch, sizeof(scratch), add_payload, &payload);
		EXPECT(n >= 1 && n <= PACKET_GSO_SEGMENTS_MAX);
		EXPECT(payload == packet.length - packet.payload);
	}
	free(copy);
	return 0;
}
