"""Frames for the tests: packets built by scapy once, put behind MACs and tags, and damaged."""

from dataclasses import dataclass
from functools import cache
from itertools import product

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, LLC, SNAP
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

BROADCAST = b"\xff" * 6
V4 = ("10.0.0.1", "10.0.1.2")
V6 = ("fd00::1", "fd00:1::2")
PORTS = (22, 80, 40000)


def mac(number: int) -> bytes:
    """The MAC of port `number`; others than the ports' are strangers'."""
    return bytes([2, 0, 0, 0, 0, number])


@dataclass(frozen=True)
class Payload:
    """What stands behind MACs and tags."""

    ethertype: int
    data: bytes

    def frame(self, to: bytes, source: bytes, *tags: tuple[int, int]) -> bytes:
        """The whole frame; `tags` as TPID and TCI, the outermost first."""
        behind = b"".join(tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") for tpid, tci in tags)
        return to + source + behind + self.ethertype.to_bytes(2, "big") + self.data


def _transports() -> list[Packet]:
    pairs = [(40000, 80), (80, 40000), (40000, 22), (0, 0)]
    built: list[Packet] = [TCP(sport=sport, dport=dport, flags="S") for sport, dport in pairs]
    built += [
        TCP(sport=sport, dport=dport, flags=f) for sport, dport in pairs[:2] for f in ("SA", "A", "FA", "R")
    ]
    built += [UDP(sport=sport, dport=dport) / Raw(b"data") for sport, dport in pairs]
    built += [SCTP(sport=40000, dport=80), Raw(b"four")]
    return built


def _chains() -> list[Packet]:
    """IPv6 headers before a transport: chains that can be followed, and some that cannot."""
    options, routing = IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(segleft=0)
    nine = IPv6ExtHdrDestOpt()
    for _ in range(8):
        nine = nine / IPv6ExtHdrDestOpt()
    return [
        IPv6ExtHdrHopByHop() / options / routing,
        IPv6ExtHdrFragment(offset=0, m=0),
        IPv6ExtHdrFragment(offset=0, m=1),
        IPv6ExtHdrFragment(offset=100, m=1),
        options / IPv6ExtHdrFragment(offset=0, m=1) / options,
        IPv6ExtHdrFragment(offset=100, m=0) / options,
        AH(icv=b"12 bytes icv", payloadlen=4),
        IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250)), PadN(optdata=bytes(250))]),
        nine,
    ]


def _ipv4() -> list[Packet]:
    built: list[Packet] = []
    for source, destination in product(V4, V4):
        head = IP(src=source, dst=destination)
        built += [head / transport for transport in _transports()]
        built += [head / ICMP(type=kind, code=code, id=5) for kind, code in ((8, 0), (0, 0), (3, 3))]
        about = IP(src=destination, dst=source)
        built += [head / ICMP(type=3, code=1) / about / UDP(sport=sport, dport=80) for sport in (40000, 80)]
        built += [head / ICMP(type=11) / about / TCP(sport=80, dport=40000, flags="A")]
        built += [head / ICMP(type=11) / about / ICMP(id=5)]
    head = IP(src=V4[0], dst=V4[1])
    for fragment in (IP(flags="MF"), IP(frag=100), IP(flags="MF", frag=9)):
        fragment.src, fragment.dst = V4
        built += [fragment / TCP(sport=40000, dport=80), fragment / UDP(sport=40000, dport=22)]
        built += [fragment / UDP(sport=40000, dport=80) / Raw(b"data")]
    built += [IP(src=V4[0], dst=V4[1], options=b"\x01\x01\x01\x01") / TCP(dport=22)]
    built += [head / ICMP() / Raw(bytes(600))]
    return built


def _ipv6() -> list[Packet]:
    built: list[Packet] = []
    for source, destination in product(V6, V6):
        head = IPv6(src=source, dst=destination)
        built += [head / transport for transport in _transports()]
        built += [head / ICMPv6EchoRequest(), head / ICMPv6ND_NS(tgt=destination), head / ICMPv6ND_NA()]
        about = IPv6(src=destination, dst=source)
        built += [head / ICMPv6EchoReply(), head / ICMPv6DestUnreach() / about / UDP(sport=40000, dport=80)]
    head = IPv6(src=V6[0], dst=V6[1])
    for chain in _chains():
        built += [head / chain / TCP(sport=40000, dport=22), head / chain / UDP(sport=40000, dport=80)]
        built += [head / chain / ICMPv6ND_NS()]
    return built


def of(packet: Packet) -> Payload:
    """What scapy makes of this packet."""
    ethertype = {IP: 0x0800, IPv6: 0x86DD, ARP: 0x0806}.get(type(packet), 0x88B5)
    return Payload(ethertype, bytes(packet))


@cache
def payloads() -> tuple[Payload, ...]:
    """Packets of every kind that the switch tells apart; built once."""
    built = [of(packet) for packet in _ipv4() + _ipv6()]
    built += [of(ARP(op=operation, psrc=V4[0], pdst=V4[1])) for operation in (1, 2)]
    for inner in (IP(src=V4[0], dst=V4[1]) / UDP(dport=80), Raw(b"x" * 40)):
        behind = bytes(LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(code=0x0800) / inner)
        built.append(Payload(len(behind), behind))
    built += [Payload(46, bytes(46)), Payload(0x88B5, bytes(46))]
    return tuple(built)
