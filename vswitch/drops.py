"""Why frames are lost: the names and sentences of dataplane/drop.h, and what one can do about each.

The order is the header's: a reason's number is its place. A test compares both, so this list cannot drift.
"""

from typing import NamedTuple


class DropReason(NamedTuple):
    """A reason. `sentence` completes `the frame was dropped because …`; `way_out` may be empty."""

    name: str
    sentence: str
    way_out: str = ""


DROP_REASONS: tuple[DropReason, ...] = (
    DropReason("none", "it was not dropped"),
    DropReason("runt", "it is shorter than an Ethernet header"),
    DropReason("oversize", "it is longer than any port may send"),
    DropReason("too_many_segments", "the guest spread it over too many buffers"),
    DropReason("bad_offload", "its checksum or segmentation request does not fit its headers"),
    DropReason("not_configured", "its port has no rules yet"),
    DropReason("port_down", "the port that it was for, or came from, was down"),
    DropReason(
        "spoofed_mac",
        "its source MAC is not the port's own and the port may not spoof",
        "`vswitch port set PORT --allow-spoofing`",
    ),
    DropReason("bad_source_mac", "its source MAC is a group address or zero"),
    DropReason(
        "vlan_tagged",
        "it carries a VLAN tag and its port takes untagged frames",
        "`vswitch port set PORT --trunk …` if the VM shall send tags",
    ),
    DropReason(
        "vlan_untagged",
        "it carries no VLAN tag and its trunk port has no native VLAN",
        "`vswitch port set PORT --trunk … --native-vlan N`",
    ),
    DropReason(
        "vlan_not_allowed",
        "its VLAN is not in its trunk port's list",
        "`vswitch port set PORT --trunk …` with that VLAN",
    ),
    DropReason(
        "vlan_not_member",
        "the port that it was for is not a member of its VLAN",
        "put both ports into one VLAN: `vswitch port set PORT --vlan N`",
    ),
    DropReason("acl_deny", "an ACL rule denies it", "`vswitch acl list PORT` shows the rules"),
    DropReason("policy_miss", "no entry of a policy table matched it"),
    DropReason(
        "reserved_mac", "it is for a link-local address (01:80:c2:00:00:0x) that bridges do not forward"
    ),
    DropReason("same_port", "its destination is behind the port that it came from"),
    DropReason("no_destination", "nobody on the switch may have it"),
    DropReason(
        "storm_limit",
        "its port sent more broadcast, multicast and unknown unicast than its storm limit",
        "`vswitch port set PORT --storm-limit N`",
    ),
    DropReason("mtu_exceeded", "it is larger than the port's MTU", "`vswitch port set PORT --mtu N`"),
    DropReason("rx_full", "the receiver had no room for it"),
    DropReason("rx_too_small", "the receiver's buffers are too small for it"),
    DropReason("tx_error", "the kernel refused to send it"),
    DropReason(
        "ring_broken", "the guest's ring was broken and its port is stopped", "reset the guest's driver"
    ),
    DropReason("no_buffer", "the switch ran out of memory for copies"),
    DropReason("rx_overrun", "its device brought frames faster than the switch took them"),
    DropReason(
        "connection_quota",
        "it would begin a connection, and its port has as many as it may or the table is full",
        "`vswitch port set PORT --connection-limit N`; `vswitch connections list --port PORT` shows them",
    ),
)


def reason(number: int) -> DropReason:
    """The reason with this number; one that is not known here is named by its number."""
    if number < len(DROP_REASONS):
        return DROP_REASONS[number]
    return DropReason(f"reason_{number}", "of a reason that this vswitchd does not know")
