"""The words of the model: names, addresses, VLANs, prefixes, protocols; how they are written.

Pure. A parser takes what a user wrote, as text or number, and returns it written in one way, or raises
ValueError with a sentence that names it. `model.py` puts the words together.
"""

import ipaddress
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

OWNER_LENGTH_MAX = 32
PORT_NAME_LENGTH_MAX = 15
SOCKET_PATH_MAX = 107  # sun_path without its terminating zero
INTERFACE_NAME_MAX = 15  # the kernel's IFNAMSIZ without its terminating zero
MTU_MIN, MTU_MAX = 68, 9000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ospf": 89,
    "vrrp": 112,
    "sctp": 132,
}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
ETHERTYPES = {"ipv4": 0x0800, "arp": 0x0806, "ipv6": 0x86DD, "lldp": 0x88CC, "mpls": 0x8847}
PROTOCOLS_WITH_PORTS = (6, 17, 132)


def _name(what: str, length: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not _NAME.match(value) or len(value) > length:
            raise ValueError(
                f"{value!r} cannot be the name of a {what}: letters, digits, '-', '_' and '.' are allowed, "
                f"a letter or digit first, {length} at most"
            )
        return value

    return check


def check_device(value: str) -> str:
    """The name of a kernel device, as the kernel allows it."""
    if not 1 <= len(value.encode()) <= INTERFACE_NAME_MAX or value in (".", ".."):
        raise ValueError(f"{value!r} cannot be the name of a device: 1 to {INTERFACE_NAME_MAX} bytes")
    if any(character.isspace() or character in '/:"' or not character.isprintable() for character in value):
        raise ValueError(f"{value!r} cannot be the name of a device: no spaces, slashes, colons or quotes")
    return value


def normalise_mac(value: str) -> str:
    """`52-54-00-AA-BB-CC` as `52:54:00:aa:bb:cc`. ValueError when it is not the address of one station."""
    mac = value.strip().lower().replace("-", ":")
    if not _MAC.match(mac):
        raise ValueError(f"{value!r} is not a MAC address such as 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{value!r} is a group address; a station's MAC has an even first byte")
    if mac == "00:00:00:00:00:00":
        raise ValueError("00:00:00:00:00:00 is nobody's address")
    return mac


def check_vid(value: int) -> int:
    """A VLAN number, 1..4094."""
    if not 1 <= value <= 4094:
        raise ValueError(f"VLAN {value} does not exist: 1 to 4094 are allowed (0 and 4095 are reserved)")
    return value


def parse_vlan_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """`1-10,20` as ((1, 10), (20, 20)), sorted.

    ValueError names what is wrong: a number, an order, two that overlap.
    """
    ranges: list[tuple[int, int]] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if not match:
            raise ValueError(f"{part!r} is neither a VLAN nor a range such as 1-10")
        first = check_vid(int(match[1]))
        last = check_vid(int(match[2])) if match[2] else first
        if last < first:
            raise ValueError(f"the range {part} ends before it begins")
        ranges.append((first, last))
    ranges.sort()
    for (first, last), (other, end) in pairwise(ranges):
        if other <= last:
            raise ValueError(f"the ranges {_range(first, last)} and {_range(other, end)} overlap")
    return tuple(ranges)


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _normalise_ranges(text: str) -> str:
    return ",".join(_range(first, last) for first, last in parse_vlan_ranges(text))


def split_port_name(name: str) -> tuple[str, str]:
    """`web/eth0` as ("web", "eth0"). ValueError when it has no such form."""
    owner, slash, port = name.partition("/")
    if not slash:
        raise ValueError(f"{name!r} is not the name of a port: OWNER/PORT is, such as web/eth0")
    _name("VM or switch", OWNER_LENGTH_MAX)(owner)
    _name("port", PORT_NAME_LENGTH_MAX)(port)
    return owner, port


def _port_name(value: str) -> str:
    split_port_name(value)
    return value


def _mtu(value: int) -> int:
    if not MTU_MIN <= value <= MTU_MAX:
        raise ValueError(f"an MTU of {value} is not possible: {MTU_MIN} to {MTU_MAX} bytes are")
    return value


def _socket_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"the socket path {value!r} is not absolute")
    if len(value.encode()) > SOCKET_PATH_MAX:
        raise ValueError(
            f"the socket path {value!r} is longer than the {SOCKET_PATH_MAX} bytes that sockets allow"
        )
    return value


def between(what: str, low: int, high: int) -> Callable[[int], int]:
    """A check that a number is in a range; `what` begins its sentence."""

    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"{what} of {value} is not possible: {low} to {high} is")
        return value

    return check


def size(value: int) -> str:
    """Bytes as a person says them: `512 MiB`, `1.5 GiB`, `900 B`."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} TiB"


def _memory(value: int) -> int:
    if not 64 << 20 <= value <= 1 << 40 or value % (1 << 20):
        amount = f"{value} bytes" if value % (1 << 20) else size(value)
        raise ValueError(f"a memory of {amount} is not possible: whole MiB are, from 64 MiB to 1 TiB")
    return value


OwnerName = Annotated[str, AfterValidator(_name("VM or switch", OWNER_LENGTH_MAX))]
PortName = Annotated[str, AfterValidator(_port_name)]
Mac = Annotated[str, AfterValidator(normalise_mac)]
DeviceName = Annotated[str, AfterValidator(check_device)]
Vid = Annotated[int, AfterValidator(check_vid)]
VlanRanges = Annotated[str, AfterValidator(_normalise_ranges)]
Mtu = Annotated[int, AfterValidator(_mtu)]
SocketPath = Annotated[str, AfterValidator(_socket_path)]
Memory = Annotated[int, AfterValidator(_memory)]
StormLimit = Annotated[int, AfterValidator(between("a storm limit (packets/s)", 0, 0xFFFFFFFF))]
ConnectionLimit = Annotated[int, AfterValidator(between("a connection limit", 1, 1 << 18))]
Queues = Annotated[int, AfterValidator(between("a number of queues", 1, 16))]
AgeingSeconds = Annotated[int, AfterValidator(between("an ageing time (seconds)", 0, 1_000_000))]


# ---- ACL rules ----


def _protocol(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in PROTOCOLS:
        return text
    if text.isdecimal() and int(text) <= 255:
        return _PROTOCOL_NAMES.get(int(text), str(int(text)))
    raise ValueError(f"{value!r} is not a protocol: {', '.join(PROTOCOLS)} or a number up to 255")


def _l4_ports(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6}))?\s*", value)
    if not match:
        raise ValueError(f"{value!r} is neither a port nor a range such as 8000-8010")
    first, last = int(match[1]), int(match[2] or match[1])
    if max(first, last) > 65535:
        raise ValueError(f"port {max(first, last)} does not exist: 65535 is the highest")
    if last < first:
        raise ValueError(f"the range {first}-{last} ends before it begins")
    return _range(first, last)


def _prefix(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return str(ipaddress.ip_network(value.strip()))
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(value.strip(), strict=False)
    except ValueError:
        raise ValueError(
            f"{value!r} is neither an address nor a prefix such as 10.0.0.0/24 or 2001:db8::/64"
        ) from None
    raise ValueError(f"{value!r} has bits set behind its prefix length; {network} is the prefix around it")


def _ethertype(value: object) -> object:
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ETHERTYPES:
            return ETHERTYPES[text]
        try:
            value = int(text, 0)
        except ValueError:
            raise ValueError(
                f"{value!r} is not an EtherType: {', '.join(ETHERTYPES)} or a number such as 0x88cc"
            ) from None
    if isinstance(value, int) and not isinstance(value, bool) and not 0x600 <= value <= 0xFFFF:
        raise ValueError(f"{value:#06x} is not an EtherType: 0x0600 to 0xffff are")
    return value


Prefix = Annotated[str, BeforeValidator(_prefix)]
Protocol = Annotated[str, BeforeValidator(_protocol)]
L4Ports = Annotated[str, BeforeValidator(_l4_ports)]
EtherType = Annotated[int, BeforeValidator(_ethertype)]
IcmpNumber = Annotated[int, AfterValidator(between("an ICMP type or code", 0, 255))]
