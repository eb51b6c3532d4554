/* From a frame's header copy to its flow key. All header bytes are read through one cursor that
 * knows the bounds.
 *
 * The bytes come from strangers, but are ours: copied once, they no longer change. Worker threads;
 * never fails: what cannot be read is marked unknown in the key.
 */
#ifndef VSWITCH_PARSE_H
#define VSWITCH_PARSE_H

#include "flow_key.h"
#include "packet.h"

/* Fills `key` (in_port from the caller, stage 0) and the packet's l3, l4, payload, tags from
 * header[0 … header_length). `frame_length` is the length of the whole frame: a header cut by our
 * own copy (header_length < frame_length) instead of by the sender returns false, and the caller
 * copies more (up to PACKET_HEADER_MAX) and calls again; with all that can be had the answer is
 * final and true. */
bool parse_packet(struct packet *packet, u32 in_port, struct flow_key *key, bool final);

#endif
