"""The frames by which `vswitch why` finds out: what A would send to B, and what B would answer.

Pure. What is not known (addresses, the tag that a guest behind a trunk uses) is chosen so that it can pass,
and `remarks` say so.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vswitch.diagnosis import Question, Way
from vswitch.model import Port, Vlan, VlanAccess, VlanAny, VlanTrunk
from vswitch.words import parse_vlan_ranges

_UNKNOWN = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}  # RFC 5737, RFC 3849
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_CLIENT_PORT = 20000
_SIZE = 84
_HEADERS = {4: 20, 6: 40}
UNTAGGED = 0  # the VLAN of frames without a tag


@dataclass(frozen=True)
class Probe:
    """A frame.

    Attributes:
        way: there or back.
        what: What it is, in words.
        sender, receiver: Names of ports.
        frame: As `vswitch trace` takes it.
        protocol: The IP protocol of the question; None: ARP or neighbour discovery.
        group: It is for many.
    """

    way: Way
    what: str
    sender: str
    receiver: str
    frame: str
    protocol: int | None
    group: bool = False


# ---- VLANs ----


def sends(vlan: Vlan) -> list[int]:
    """The VLANs of the switch into which a port's frames can go, the likeliest first; empty: all."""
    if isinstance(vlan, VlanAccess):
        return [vlan.vid]
    if isinstance(vlan, VlanTrunk):
        native = [vlan.native_vid] if vlan.native_vid is not None else []
        listed = [vid for first, last in parse_vlan_ranges(vlan.allowed) for vid in range(first, last + 1)]
        return [*native, *(vid for vid in listed if vid not in native)]
    return [] if isinstance(vlan, VlanAny) else [UNTAGGED]


def common_vid(sender: Vlan, receiver: Vlan) -> int | None:
    """The VLAN in which both are, the likeliest for the sender; None: they have none in common."""
    ours, theirs = sends(sender), sends(receiver)
    if not ours:
        return theirs[0] if theirs else UNTAGGED
    if not theirs:
        return ours[0]
    members = set(theirs)
    return next((vid for vid in ours if vid in members), None)


def _tag(vlan: Vlan, vid: int) -> int | None:
    """The tag that the VM behind a port puts on a frame for this VLAN; None: none."""
    if isinstance(vlan, VlanTrunk):
        return None if vid == vlan.native_vid else vid
    if isinstance(vlan, VlanAny):
        return vid or None
    return None


# ---- frames ----


def addresses(question: Question) -> tuple[str, str]:
    """A's address and B's, made up where they are not known."""
    unknown = _UNKNOWN[question.version]
    return question.from_ip or unknown[0], question.to_ip or unknown[1]


def _payload(question: Question, header: int) -> str:
    size = (question.size or _SIZE) - _HEADERS[question.version] - header
    return f"/'{'x' * size}'" if size > 0 else ""


def _transport(question: Question, there: bool) -> tuple[str, str]:
    """The layers behind IP, and what they are in words."""
    number, port = question.protocol_number, question.port
    if number in (1, 58):
        v6 = question.version == 6
        kinds = (128, 129) if v6 else (8, 0)
        layer = f"{'ICMPv6' if v6 else 'ICMP'}(type={kinds[0 if there else 1]})"
        return layer + _payload(question, 8), "an echo request" if there else "an echo reply"
    ends = (_CLIENT_PORT, port) if there else (port, _CLIENT_PORT)
    what = f"a {question.protocol} packet {'to' if there else 'from'} port {port}"
    if number == 6:
        flags = "S" if there else "SA"
        layer = f"TCP(sport={ends[0]}, dport={ends[1]}, flags='{flags}')"
        return layer + _payload(question, 20), what.replace("packet", "segment")
    if number == 17:
        return f"UDP(sport={ends[0]}, dport={ends[1]})" + _payload(question, 8), what
    return _payload(question, 0).lstrip("/") or "'x'", f"a packet of protocol {question.protocol}"


def _macs(question: Question, a: Port, b: Port, there: bool) -> tuple[str, str]:
    one, other = question.from_mac or a.mac or "", question.to_mac or b.mac or ""
    return (one, other) if there else (other, one)


def _ether(port: Port, vid: int | None, source: str, destination: str) -> str:
    tag = _tag(port.vlan, vid) if vid is not None else None
    return f"Ether(src='{source}', dst='{destination}')" + (f"/Dot1Q(vlan={tag})" if tag else "")


def _neighbour(question: Question, macs: tuple[str, str], there: bool) -> tuple[str, str, str]:
    """The question for B's MAC, or its answer: destination MAC, layers, words."""
    own, other = addresses(question) if there else addresses(question)[::-1]
    if question.version == 4:
        operation = 1 if there else 2
        layer = f"ARP(op={operation}, hwsrc='{macs[0]}', psrc='{own}', pdst='{other}')"
        return (_BROADCAST, layer, "an ARP request") if there else (macs[1], layer, "an ARP reply")
    kind = f"ICMPv6(type={135 if there else 136})"
    if there:
        return (
            "33:33:ff:00:00:02",
            f"IPv6(src='{own}', dst='ff02::1:ff00:2')/{kind}",
            "a neighbour solicitation",
        )
    return macs[1], f"IPv6(src='{own}', dst='{other}')/{kind}", "a neighbour advertisement"


def probes(question: Question, a: Port, b: Port) -> Iterator[Probe]:
    """What has to arrive for B to be reached, the packets that are asked about first."""
    for find_neighbour in (False, True):
        for way, sender, receiver in (("there", a, b), ("back", b, a)):
            there = way == "there"
            vid = common_vid(sender.vlan, receiver.vlan)
            if vid is None:
                vid = next(iter(sends(sender.vlan)), None)
            macs = _macs(question, a, b, there)
            if find_neighbour:
                destination, layers, what = _neighbour(question, macs, there)
            else:
                ends = addresses(question) if there else addresses(question)[::-1]
                behind, what = _transport(question, there)
                ip = "IPv6" if question.version == 6 else "IP"
                number = _number_field(question)
                destination = macs[1]
                layers = f"{ip}(src='{ends[0]}', dst='{ends[1]}'{number})/{behind}"
            yield Probe(
                "there" if there else "back",
                what,
                sender.name,
                receiver.name,
                f"{_ether(sender, vid, macs[0], destination)}/{layers}",
                None if find_neighbour else question.protocol_number,
                group=find_neighbour and there,
            )


def _number_field(question: Question) -> str:
    """The protocol's number where no layer behind says it."""
    if question.protocol_number in (1, 6, 17, 58):
        return ""
    return f", {'nh' if question.version == 6 else 'proto'}={question.protocol_number}"


def remarks(a: Port, b: Port) -> Iterator[str]:
    """What was chosen because it is not known."""
    for port, other in ((a, b), (b, a)):
        if port.kind == "uplink":
            yield f"behind {port.name} are other stations: --to-mac or --from-mac says which is meant"
        vid = common_vid(port.vlan, other.vlan)
        if isinstance(port.vlan, VlanTrunk) and vid is not None:
            tag = _tag(port.vlan, vid)
            how = f"tagged with VLAN {tag}" if tag else "untagged, in the trunk's native VLAN"
            yield f"{port.name} is a trunk: its guest is taken to send {how}"
