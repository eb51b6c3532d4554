"""How the reference reads a frame: from its bytes, in plain Python, without a look at the C parser.

Slow and simple on purpose; bytes are strangers'.
"""

from dataclasses import dataclass, replace

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
TAG_TYPES = (0x8100, 0x88A8)
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
LOOKED_AT = 512  # bytes of a frame that the switch reads at most
EXTENSIONS = (0, 43, 44, 51, 60)
TRANSPORT_BYTES = {TCP: 20, UDP: 8, SCTP: 12, ICMP: 4, ICMPV6: 4}


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


@dataclass(frozen=True)
class Transport:
    """IP's fields; None: cannot be known. `first` and `second`: ports, or ICMP type and code.

    `data`: from the transport header to the end of the packet; `later`: a fragment without that header.
    """

    source: int | None = None
    destination: int | None = None
    protocol: int | None = None
    first: int | None = None
    second: int | None = None
    fragment: bool = False
    later: bool = False
    identification: int | None = None
    data: bytes = b""


@dataclass(frozen=True)
class Frame:
    """A frame as the switch reads it. `tag`: TPID and TCI of the outermost VLAN tag; `rest`: what follows."""

    destination: bytes
    source: bytes
    tag: tuple[int, int] | None
    rest: bytes
    ethertype: int
    ip: Transport

    @property
    def vid(self) -> int | None:
        return None if self.tag is None else self.tag[1] & 0xFFF

    @property
    def stacked(self) -> bool:
        """Whether another tag, or what is left of one, is behind the outermost."""
        return self.ethertype in TAG_TYPES

    def bytes(self) -> bytes:
        tag = b"" if self.tag is None else b"".join(part.to_bytes(2, "big") for part in self.tag)
        return self.destination + self.source + tag + self.rest


def read_transport(protocol: int, data: bytes) -> Transport:
    if protocol not in TRANSPORT_BYTES:
        return Transport(protocol=protocol, first=0, second=0, data=data)
    if len(data) < TRANSPORT_BYTES[protocol]:
        return Transport(protocol=protocol)
    if protocol in (ICMP, ICMPV6):
        return Transport(protocol=protocol, first=data[0], second=data[1], data=data)
    return Transport(protocol=protocol, first=number(data[:2]), second=number(data[2:4]), data=data)


def read_ipv4(data: bytes) -> Transport:
    if len(data) < 20 or data[0] >> 4 != 4:
        return Transport()
    header, total = (data[0] & 15) * 4, number(data[2:4])
    if header < 20 or total < header or len(data) < header:
        return Transport()
    more_and_offset = number(data[6:8]) & 0x3FFF
    if more_and_offset & 0x1FFF:
        known = Transport(protocol=data[9], later=True)
    else:
        known = read_transport(data[9], data[header:total])
    return replace(
        known,
        source=number(data[12:16]),
        destination=number(data[16:20]),
        fragment=more_and_offset != 0,
        identification=number(data[4:6]),
    )


def read_ipv6_chain(protocol: int, data: bytes) -> Transport:
    """Follows at most eight extension headers. One that cannot be followed hides the protocol."""
    fragment, identification = False, None
    for _ in range(8):
        if protocol not in EXTENSIONS:
            break
        if len(data) < 8:
            return Transport(fragment=fragment)
        length = {44: 8, 51: (data[1] + 2) * 4}.get(protocol, (data[1] + 1) * 8)
        if protocol == 44:
            offset_and_more = number(data[2:4])
            identification = number(data[4:8]) if identification is None else identification
            fragment = fragment or bool(offset_and_more & 0xFFF9)
            if offset_and_more & 0xFFF8:
                named = data[0] if data[0] not in EXTENSIONS else None
                return Transport(protocol=named, fragment=True, later=True, identification=identification)
        if len(data) < length:
            return Transport(fragment=fragment)
        protocol, data = data[0], data[length:]
    if protocol in EXTENSIONS:
        return Transport(fragment=fragment)
    return replace(read_transport(protocol, data), fragment=fragment, identification=identification)


def read_ipv6(data: bytes) -> Transport:
    if len(data) < 40 or data[0] >> 4 != 6:
        return Transport()
    known = read_ipv6_chain(data[6], data[40 : 40 + number(data[4:6])])
    return replace(known, source=number(data[8:24]), destination=number(data[24:40]))


def read(data: bytes) -> Frame:
    """A frame of at least 14 bytes."""
    tag, rest = None, data[12:]
    if number(rest[:2]) in TAG_TYPES and len(rest) >= 6:
        tag, rest = (number(rest[:2]), number(rest[2:4])), rest[4:]
    ethertype, payload = number(rest[:2]), rest[2 : LOOKED_AT - (len(data) - len(rest))]
    if ethertype < 0x600:
        snap = payload[:6] == b"\xaa\xaa\x03\0\0\0" and len(payload) >= 8 and number(payload[6:8]) >= 0x600
        ethertype, payload = (number(payload[6:8]), payload[8:]) if snap else (0x5FF, payload)
    ip = Transport()
    if ethertype == IPV4:
        ip = read_ipv4(payload)
    elif ethertype == IPV6:
        ip = read_ipv6(payload)
    return Frame(data[:6], data[6:12], tag, rest, ethertype, ip)


def l3_bytes(data: bytes) -> int:
    """What counts against an MTU: all behind the Ethernet header and at most two tags."""
    tags = 0
    while (
        tags < 2 and number(data[12 + 4 * tags : 14 + 4 * tags]) in TAG_TYPES and len(data) >= 18 + 4 * tags
    ):
        tags += 1
    return len(data) - 14 - 4 * tags
