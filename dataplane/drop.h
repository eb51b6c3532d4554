/* The one list of reasons for which a frame is lost. Each has a counter per port.
 *
 * X(NAME, "name", "sentence"): the name is what people and programs see; the sentence completes
 * "the frame was dropped because …". `vswitch/drops.py` and the manual are checked against this
 * list. Numbers are stable within one build only: names are the contract. New reasons go to the
 * end.
 */
#ifndef VSWITCH_DROP_H
#define VSWITCH_DROP_H

#define DROP_REASONS(X)                                                                           \
	X(NONE, "none", "it was not dropped")                                                     \
	X(RUNT, "runt", "it is shorter than an Ethernet header")                                  \
	X(OVERSIZE, "oversize", "it is longer than any port may send")                            \
	X(TOO_MANY_SEGMENTS, "too_many_segments", "the guest spread it over too many buffers")    \
	X(BAD_OFFLOAD, "bad_offload",                                                             \
	  "its checksum or segmentation request does not fit its headers")                        \
	X(NOT_CONFIGURED, "not_configured", "its port has no rules yet")                          \
	X(PORT_DOWN, "port_down", "the port that it was for, or came from, was down")             \
	X(SPOOFED_MAC, "spoofed_mac",                                                             \
	  "its source MAC is not the port's own and the port may not spoof")                      \
	X(BAD_SOURCE_MAC, "bad_source_mac", "its source MAC is a group address or zero")          \
	X(VLAN_TAGGED, "vlan_tagged", "it carries a VLAN tag and its port takes untagged frames") \
	X(VLAN_UNTAGGED, "vlan_untagged",                                                         \
	  "it carries no VLAN tag and its trunk port has no native VLAN")                         \
	X(VLAN_NOT_ALLOWED, "vlan_not_allowed", "its VLAN is not in its trunk port's list")       \
	X(VLAN_NOT_MEMBER, "vlan_not_member",                                                     \
	  "the port that it was for is not a member of its VLAN")                                 \
	X(ACL_DENY, "acl_deny", "an ACL rule denies it")                                          \
	X(POLICY_MISS, "policy_miss", "no entry of a policy table matched it")                    \
	X(RESERVED_MAC, "reserved_mac",                                                           \
	  "it is for a link-local address (01:80:c2:00:00:0x) that bridges do not forward")       \
	X(SAME_PORT, "same_port", "its destination is behind the port that it came from")         \
	X(NO_DESTINATION, "no_destination", "nobody on the switch may have it")                   \
	X(STORM_LIMIT, "storm_limit",                                                             \
	  "its port sent more broadcast, multicast and unknown unicast than its storm limit")     \
	X(MTU_EXCEEDED, "mtu_exceeded", "it is larger than the port's MTU")                       \
	X(RX_FULL, "rx_full", "the receiver had no room for it")                                  \
	X(RX_TOO_SMALL, "rx_too_small", "the receiver's buffers are too small for it")            \
	X(TX_ERROR, "tx_error", "the kernel refused to send it")                                  \
	X(RING_BROKEN, "ring_broken", "the guest's ring was broken and its port is stopped")      \
	X(NO_BUFFER, "no_buffer", "the switch ran out of memory for copies")                      \
	X(RX_OVERRUN, "rx_overrun", "its device brought frames faster than the switch took them") \
	X(CONNECTION_QUOTA, "connection_quota",                                                   \
	  "it would begin a connection, and its port has as many as it may or the table is full")

enum drop_reason {
#define DROP_ENUM(id, name, sentence) DROP_##id,
	DROP_REASONS(DROP_ENUM)
#undef DROP_ENUM
		DROP_COUNT
};

#endif
