"""What the reference knows of connections: what can begin one, whose a frame is, and when it ends.

Written from the meaning of stateful rules; it knows nothing of tables, caches or workers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from controller.settings import Direction
from tests.switch.reading import ICMP, ICMPV6, IPV4, IPV6, SCTP, TAG_TYPES, TCP, UDP, Frame, number


def may_begin(frame: Frame) -> bool:
    """Whether a stateful rule may accept it: all is known, and it is not in the middle of something."""
    ip = frame.ip
    if frame.ethertype in TAG_TYPES:
        return frame.tag is not None  # half a tag hides what follows
    if frame.ethertype not in (IPV4, IPV6):
        return True
    if ip.source is None or ip.first is None:
        return False
    if ip.protocol == TCP:
        return ip.data[13] & 0x17 == 2
    requests = {ICMP: (8, 13), ICMPV6: (128,)}.get(ip.protocol or 0)
    return requests is None or ip.first in requests


End = tuple[int, int]  # address and port; ICMP: address and identifier


@dataclass(frozen=True)
class Conversation:
    """Both ends of a frame's connection, sorted, and which of them sent the frame that says so."""

    family: int
    protocol: int
    ends: tuple[End, End]
    side: int

    @classmethod
    def of(cls, family: int, protocol: int, source: End, destination: End) -> "Conversation":
        ends = (min(source, destination), max(source, destination))
        return cls(family, protocol, ends, ends.index(source))


def identified(family: int, protocol: int, data: bytes) -> int | None:
    """The identifier of an ICMP message that has one."""
    kinds = (0, 8, 13, 14) if protocol == ICMP else (128, 129)
    return number(data[4:6]) if len(data) >= 8 and data[0] in kinds else None


def quoted(family: int, data: bytes) -> tuple[int, Conversation] | None:
    """Of the packet that an ICMP error quotes: its source address, and its conversation."""
    size = (data[0] & 15) * 4 if data and family == 4 else 40
    if not data or data[0] >> 4 != family or size < 20 or len(data) < size + 8:
        return None
    if family == 4 and number(data[6:8]) & 0x1FFF:
        return None
    protocol = data[9] if family == 4 else data[6]
    cuts = (12, 16, 20) if family == 4 else (8, 24, 40)
    source, destination = number(data[cuts[0] : cuts[1]]), number(data[cuts[1] : cuts[2]])
    behind = data[size:]
    ports = (0, 0)
    if protocol in (TCP, UDP, SCTP):
        ports = (number(behind[:2]), number(behind[2:4]))
    elif protocol in (ICMP, ICMPV6):
        identifier = identified(family, protocol, behind)
        if identifier is None:
            return None
        ports = (identifier, identifier)
    return source, Conversation.of(family, protocol, (source, ports[0]), (destination, ports[1]))


def conversation(frame: Frame) -> tuple[Conversation | None, bool]:
    """Whose connection the frame may be of, and whether it is an error about that."""
    ip = frame.ip
    if frame.ethertype not in (IPV4, IPV6) or frame.destination[0] & 1:
        return None, False
    if ip.source is None or ip.destination is None or ip.protocol is None:
        return None, False
    if ip.first is None or ip.second is None:
        return None, False
    family = 4 if frame.ethertype == IPV4 else 6
    ports = (ip.first, ip.second)
    if ip.protocol == (ICMP if family == 4 else ICMPV6):
        identifier = identified(family, ip.protocol, ip.data)
        if identifier is None:
            errors = (3, 4, 11, 12) if family == 4 else (1, 2, 3, 4)
            about = quoted(family, ip.data[8:]) if ip.first in errors and len(ip.data) >= 8 else None
            return (about[1], True) if about and about[0] == ip.destination else (None, True)
        ports = (identifier, identifier)
    ends = (ip.source, ports[0]), (ip.destination, ports[1])
    return Conversation.of(family, ip.protocol, *ends), False


@dataclass
class Connection:
    """What a stateful rule has accepted. By side of its conversation: TCP flags, packets."""

    direction: Direction
    first: Frame
    protocol: int
    origin: int
    idle_timeout: int
    seen: float
    flags: list[int] = field(default_factory=lambda: [0, 0])
    packets: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def is_over(self) -> bool:
        first, second = self.flags
        return bool((first | second) & 4 or first & second & 1)

    @property
    def state(self) -> str:
        first, second = self.flags[self.origin], self.flags[1 - self.origin]
        if self.protocol != TCP:
            return "established" if self.packets[1 - self.origin] else "opening"
        if (first | second) & 5:
            return "closing"
        return "established" if second & 2 and first & 0x10 else "opening"

    @property
    def timeout(self) -> int:
        if self.protocol != TCP or self.state == "established":
            return self.idle_timeout
        shorter = 10 if self.is_over else 60 if self.state == "closing" else 30
        return min(shorter, self.idle_timeout)

    def saw(self, side: int, flags: int, now: float) -> None:
        self.flags[side] |= flags & 0x17
        self.packets[side] += 1
        self.seen = now


class Connections:
    """All connections, by zone (the number of the port whose rule it was), VLAN and conversation."""

    def __init__(self) -> None:
        self.now = 0.0
        self.living: dict[tuple[int, int, int, int, tuple[End, End]], Connection] = {}
        self.fragments: dict[tuple[object, ...], tuple[Connection, int, float]] = {}

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.living = {key: one for key, one in self.living.items() if self.now - one.seen <= one.timeout}

    def end(self, zone: int, which: Callable[[Connection], bool]) -> None:
        self.living = {key: one for key, one in self.living.items() if key[0] != zone or not which(one)}

    @staticmethod
    def _key(zone: int, frame: Frame, of: Conversation) -> tuple[int, int, int, int, tuple[End, End]]:
        return zone, frame.vid or 0, of.family, of.protocol, of.ends

    def _lives(self, connection: Connection) -> bool:
        return any(connection is one for one in self.living.values())

    @staticmethod
    def _fragment_key(zone: int, frame: Frame) -> tuple[object, ...]:
        ip = frame.ip
        protocol = ip.protocol if frame.ethertype == IPV4 else 0
        return zone, frame.vid or 0, frame.ethertype, protocol, ip.source, ip.destination, ip.identification

    def take(self, zone: int, frame: Frame) -> bool:
        """Whether the frame belongs to a connection; one that it is of has seen it then."""
        if frame.ip.later and not frame.destination[0] & 1 and frame.ip.source is not None:
            known = self.fragments.get(self._fragment_key(zone, frame))
            if known is None or self.now - known[2] > 30 or not self._lives(known[0]):
                return False
            known[0].saw(known[1], 0, self.now)
            return True
        of, is_error = conversation(frame)
        connection = self.living.get(self._key(zone, frame, of)) if of is not None else None
        if of is None or connection is None:
            return False
        if is_error:
            return True
        flags = frame.ip.data[13] if of.protocol == TCP else 0
        if of.protocol == TCP and may_begin(frame) and connection.is_over:
            return False
        connection.saw(of.side, flags, self.now)
        if frame.ip.fragment:
            self.fragments[self._fragment_key(zone, frame)] = connection, of.side, self.now
        return True

    def make(self, zone: int, direction: Direction, frame: Frame, idle_timeout: int, limit: int) -> bool:
        """Makes the connection that begins with this frame, if there can be one. False: there is no room."""
        of, is_error = conversation(frame)
        if of is None or is_error:
            return True
        self.living.pop(self._key(zone, frame, of), None)
        if sum(key[0] == zone for key in self.living) >= limit:
            return False
        made = Connection(direction, frame, of.protocol, of.side, idle_timeout, self.now)
        made.saw(of.side, frame.ip.data[13] if of.protocol == TCP else 0, self.now)
        self.living[self._key(zone, frame, of)] = made
        if frame.ip.fragment:
            self.fragments[self._fragment_key(zone, frame)] = made, of.side, self.now
        return True
