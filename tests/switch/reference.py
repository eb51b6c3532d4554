"""What the switch is meant to do with a frame, in plain Python: the oracle of the differential tests.

Written from the meaning of the settings, not from table entries: it knows nothing of OpenFlow, priorities or
caches. Frames go in and come out as bytes; drops, rule hits and learned addresses are counted. Slow and
simple on purpose. Only the settings' data classes are shared with the compiler.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from controller.settings import AclRule, Direction, PortPolicy, Verdict, VlanMode
from tests.switch.connections import Connection, Connections, may_begin
from tests.switch.reading import ARP, ICMP, ICMPV6, IPV4, IPV6, Frame, l3_bytes, read

# ---- VLANs ----


def allows(policy: PortPolicy, vid: int) -> bool:
    return any(first <= vid <= last for first, last in policy.vlan.allowed)


def retag(policy: PortPolicy, frame: Frame, vid: int) -> Frame:
    """The frame in this VLAN. Its priority is its sender's word: kept from who is trusted only."""
    if frame.tag is None:
        return replace(frame, tag=(0x8100, vid))
    tpid, tci = frame.tag
    priority = tci & 0xE000 if policy.trust_pcp else 0
    return replace(frame, tag=(tpid, priority | tci & 0x1000 | vid))


def vlan_in(policy: PortPolicy, frame: Frame) -> Frame | str:  # noqa: PLR0911  (one return per promise)
    """The frame with its VLAN as on a trunk, or the reason for which the port may not send it."""
    mode, vid = policy.vlan.mode, frame.vid
    if mode is VlanMode.ANY:
        return frame if vid is None else retag(policy, frame, vid)
    if vid:
        if mode is not VlanMode.TRUNK:
            return "vlan_tagged"
        return retag(policy, frame, vid) if allows(policy, vid) else "vlan_not_allowed"
    if mode is VlanMode.TRUNK:
        if policy.vlan.native is None:
            return "vlan_untagged"
        if frame.tag is None and frame.stacked:
            return "vlan_tagged"
        return retag(policy, frame, policy.vlan.native)
    if frame.stacked:
        return "vlan_tagged"
    return replace(frame, tag=None) if policy.vlan.vid is None else retag(policy, frame, policy.vlan.vid)


def is_member(policy: PortPolicy, frame: Frame) -> bool:
    mode, vid = policy.vlan.mode, frame.vid
    if mode is VlanMode.ANY:
        return True
    if mode is VlanMode.UNTAGGED:
        return vid is None or (vid == 0 and not frame.stacked)
    if vid is None:
        return False
    return vid in (policy.vlan.vid, policy.vlan.native) or allows(policy, vid)


def vlan_out(policy: PortPolicy, frame: Frame) -> Frame:
    """The frame as a member of its VLAN gets it."""
    mode = policy.vlan.mode
    is_native = mode is VlanMode.TRUNK and frame.vid == policy.vlan.native and not frame.stacked
    if mode in (VlanMode.UNTAGGED, VlanMode.ACCESS) or is_native:
        return replace(frame, tag=None)
    return frame


# ---- ACLs ----


def is_neighbour(frame: Frame) -> bool:
    """ARP, and whole packets of IPv6 neighbour discovery."""
    if frame.ethertype == ARP:
        return True
    discovery = frame.ip.protocol == ICMPV6 and frame.ip.first in range(133, 137) and not frame.ip.fragment
    return frame.ethertype == IPV6 and discovery


def speaks_of_neighbours(rule: AclRule) -> bool:
    layer2 = (rule.local_mac, rule.remote_mac, rule.ethertype, rule.vlan)
    return any(value is not None for value in layer2) or (
        rule.protocol == ICMPV6 and rule.icmp_type in range(133, 137)
    )


def conditions(rule: AclRule, frame: Frame) -> list[bool | None]:
    """All that the rule says of the frame: true, false, or None where it cannot be known."""
    ip = frame.ip
    macs, addresses, ends = (
        [frame.source, frame.destination],
        [ip.source, ip.destination],
        [ip.first, ip.second],
    )
    if rule.direction is Direction.IN:
        for pair in (macs, addresses, ends):
            pair.reverse()
    said: list[bool | None] = []
    for named, mac in zip((rule.local_mac, rule.remote_mac), macs, strict=True):
        said.append(named is None or named == mac)
    said.append(rule.vlan is None or frame.vid == rule.vlan)
    said.append(rule.ethertype is None or frame.ethertype == rule.ethertype)
    for prefix, address in zip((rule.local_prefix, rule.remote_prefix), addresses, strict=True):
        if prefix is None:
            continue
        said.append(frame.ethertype == (IPV4 if prefix.version == 4 else IPV6))
        if prefix.prefixlen:
            said.append(
                None
                if address is None
                else (address ^ int(prefix.network_address)) & int(prefix.netmask) == 0
            )
    if rule.protocol is not None:
        families = {ICMP: (IPV4,), ICMPV6: (IPV6,)}.get(rule.protocol, (IPV4, IPV6))
        said.append(frame.ethertype in families)
        said.append(ip.protocol == rule.protocol if ip.protocol is not None else None)
    for ports, end in zip((rule.local_ports, rule.remote_ports), ends, strict=True):
        if ports is not None:
            said.append(ports[0] <= end <= ports[1] if end is not None else None)
    for named_number, value in ((rule.icmp_type, ip.first), (rule.icmp_code, ip.second)):
        if named_number is not None:
            said.append(value == named_number if value is not None else None)
    return said


def applies(rule: AclRule, frame: Frame) -> bool:
    """A rule that allows must be sure of what it says; one that denies must not be sure of the contrary."""
    if is_neighbour(frame) and not speaks_of_neighbours(rule):
        return False
    said = conditions(rule, frame)
    if rule.idle_timeout_s is not None and not is_neighbour(frame) and not may_begin(frame):
        return False
    return False not in said and (None not in said or rule.verdict is Verdict.DENY)


def deciding_rule(policy: PortPolicy, direction: Direction, frame: Frame) -> AclRule | None:
    rules = [rule for rule in policy.rules if rule.direction is direction and applies(rule, frame)]
    return max(rules, key=lambda rule: rule.weight, default=None)


# ---- the switch ----


@dataclass
class Port:
    """A port of the switch. `learns`: addresses are learned here, and unknown ones looked for."""

    policy: PortPolicy
    learns: bool = False
    up: bool = True
    mtu: int = 0
    fdb_limit: int = 1024
    connection_limit: int = 10000
    got: list[bytes] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)  # for each frame, the TCI of its VLAN's tag; 0: none
    drops: Counter[str] = field(default_factory=Counter)
    rules: Counter[tuple[int, str]] = field(default_factory=Counter)  # (rule id, "packets" or "bytes")
    from_packets: int = 0
    from_bytes: int = 0
    to_packets: int = 0
    to_bytes: int = 0


@dataclass
class Learned:
    port: int
    seen: float


class Switch:
    """One switch with its ports, by number. `now` in seconds moves by `advance()`."""

    def __init__(self, ageing: float = 300) -> None:
        self.ports: dict[int, Port] = {}
        self.fixed: dict[tuple[int, bytes], int] = {}  # static entries of one VLAN
        self.learned: dict[tuple[int, bytes], Learned] = {}
        self.ageing = ageing
        self.now = 0.0
        self.connections = Connections()
        # What stateful rules want of the frame that is on its way: port, direction, frame, idle timeout.
        self.wanted: list[tuple[Port, Direction, Frame, int]] = []

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.connections.advance(seconds)
        if self.ageing:
            oldest = self.now - self.ageing
            self.learned = {key: entry for key, entry in self.learned.items() if entry.seen >= oldest}

    def claim(self, mac: bytes) -> None:
        """A port has this address from now on: what was learned of it before is forgotten."""
        self.learned = {key: entry for key, entry in self.learned.items() if key[1] != mac}

    def forget(self, at: int) -> None:
        """A port goes, with what was learned there."""
        del self.ports[at]
        self.connections.end(at, lambda _connection: True)
        self.learned = {key: entry for key, entry in self.learned.items() if entry.port != at}

    def owner(self, mac: bytes) -> int | None:
        """The port whose own MAC this is."""
        return next((number for number, port in self.ports.items() if port.policy.mac == mac), None)

    def learn(self, at: int, vid: int, mac: bytes) -> None:
        key = (vid, mac)
        if self.owner(mac) is not None or key in self.fixed:
            return
        known = self.learned.get(key)
        is_new = known is None or known.port != at
        if is_new and sum(entry.port == at for entry in self.learned.values()) >= self.ports[at].fdb_limit:
            return
        self.learned[key] = Learned(at, self.now)

    def where(self, vid: int, mac: bytes) -> int | None:
        key = (vid, mac)
        if key in self.fixed:
            return self.fixed[key]
        return self.learned[key].port if key in self.learned else self.owner(mac)

    def number_of(self, port: Port) -> int:
        return next(number for number, other in self.ports.items() if other is port)

    def set_policy(self, at: int, policy: PortPolicy) -> None:
        """Changes a port's rules. Its connections live on as far as they would be made now."""
        self.ports[at].policy = policy

        def would_not_be_made(connection: Connection) -> bool:
            rule = deciding_rule(policy, connection.direction, connection.first)
            if rule is None or rule.idle_timeout_s is None:
                return True
            connection.idle_timeout = rule.idle_timeout_s
            return False

        self.connections.end(at, would_not_be_made)
        self.connections.advance(0)

    def check(self, port: Port, direction: Direction, frame: Frame, size: int) -> bool:
        """Asks the port's connections, then its rules, and counts the one that decides."""
        stateful = any(rule.idle_timeout_s is not None for rule in port.policy.rules)
        if stateful and self.connections.take(self.number_of(port), frame):
            return True
        rule = deciding_rule(port.policy, direction, frame)
        if rule is None:
            return True
        if rule.idle_timeout_s is not None and not is_neighbour(frame):
            self.wanted.append((port, direction, frame, rule.idle_timeout_s))
        port.rules[rule.id, "packets"] += 1
        port.rules[rule.id, "bytes"] += size
        return rule.verdict is Verdict.ALLOW

    def begin(self) -> bool:
        """Makes the connections that were wanted for an accepted frame. False: it is lost, and counted."""
        wanted, self.wanted = self.wanted, []
        for port, direction, frame, idle_timeout in wanted:
            at = self.number_of(port)
            if not self.connections.make(at, direction, frame, idle_timeout, port.connection_limit):
                port.drops["connection_quota"] += 1
                return False
        return True

    def enter(self, port: Port, data: bytes) -> Frame | str:  # noqa: PLR0911  (one return per reason)
        """The frame between the ports, or the reason for which its own port loses it."""
        if len(data) < 14:
            return "runt"
        if port.mtu and l3_bytes(data) > port.mtu:
            return "mtu_exceeded"
        if not port.up:
            return "port_down"
        frame = read(data)
        if frame.source[0] & 1 or not any(frame.source):
            return "bad_source_mac"
        if frame.source != port.policy.mac and not port.policy.allow_spoofing:
            return "spoofed_mac"
        inside = vlan_in(port.policy, frame)
        if isinstance(inside, str):
            return inside
        return inside if self.check(port, Direction.OUT, inside, len(data)) else "acl_deny"

    def leave(self, port: Port, frame: Frame, data: bytes) -> str | None:
        """Gives the frame to a port, or says why not (nothing, where it is counted already)."""
        if not port.up:
            return "port_down"
        if not is_member(port.policy, frame):
            return "vlan_not_member"
        if not self.check(port, Direction.IN, frame, len(data)):
            return "acl_deny"
        if not self.begin():
            return ""
        if port.mtu and l3_bytes(data) > port.mtu:
            return "mtu_exceeded"
        given = vlan_out(port.policy, frame)
        out = given.bytes()
        port.got.append(out)
        port.tags.append(0 if given.tag is None else given.tag[1])
        port.to_packets += 1
        port.to_bytes += len(out)
        return None

    def flood(self, at: int, frame: Frame, data: bytes, wanted: Callable[[Port], bool]) -> None:
        reached = False
        self.wanted = []
        for number_, port in sorted(self.ports.items()):
            if number_ == at or not port.up or not wanted(port):
                continue
            reason = self.leave(port, frame, data)
            self.wanted = []
            if reason == "vlan_not_member":
                continue  # it was not for this port: no loss
            reached = True
            if reason:
                port.drops[reason] += 1
        if not reached:
            self.ports[at].drops["no_destination"] += 1

    def send(self, at: int, data: bytes) -> None:
        """The VM at this port sends a frame."""
        port = self.ports[at]
        port.from_packets += 1
        port.from_bytes += len(data)
        self.wanted = []
        frame = self.enter(port, data)
        if isinstance(frame, str):
            port.drops[frame] += 1
            return
        vid = frame.vid or 0
        if port.learns:
            self.learn(at, vid, frame.source)
        if frame.destination[:5] == bytes.fromhex("0180c20000") and frame.destination[5] < 16:
            port.drops["reserved_mac"] += 1
        elif frame.destination[0] & 1:
            self.flood(at, frame, data, lambda port: True)
        else:
            to = self.where(vid, frame.destination)
            if to is None:
                if not self.begin():
                    return
                self.flood(at, frame, data, lambda port: port.learns)
            elif to == at:
                port.drops["same_port"] += 1
            else:
                reason = self.leave(self.ports[to], frame, data)
                if reason:
                    self.ports[to].drops[reason] += 1
