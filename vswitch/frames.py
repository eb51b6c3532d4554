"""A frame as a person writes it, as bytes: scapy-like text, hex digits, or the first frame of a capture file.

    Ether(dst="52:54:00:00:00:02")/IP(src="10.0.0.1", dst="10.0.0.2")/TCP(dport=22)
    Dot1Q(vlan=100)/ARP(pdst="10.0.0.2")

Pure. The text is a user's: it is parsed, never evaluated. What is left out gets a sensible value (lengths and
checksums included); the source MAC is the port's own.
"""

import ast
import base64
import binascii
import ipaddress
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from vswitch import errors
from vswitch.model import TraceRequest

FRAME_MAX = 65535
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_EXAMPLE = (
    'write it like Ether(dst="52:54:00:00:00:02")/IP(dst="10.0.0.2")/TCP(dport=22), as hex digits, '
    "or name a pcap file"
)

Value = int | str | bytes


@dataclass(frozen=True)
class _Layer:
    name: str
    fields: dict[str, Value]


def parse_frame(request: TraceRequest, source_mac: str) -> bytes:
    """The bytes of the frame that is asked about.

    Raises:
        errors.InvalidInputError: It is none of the forms, or has a field that its layer does not have.
    """
    kind = request.format
    if kind == "auto":
        kind = "hex" if re.fullmatch(r"(0x)?[0-9a-fA-F:\s.-]+", request.frame.strip()) else "text"
    if kind == "pcap":
        frame = _first_of_file(request.frame)
    elif kind == "hex":
        frame = _hex(request.frame)
    else:
        frame = _build(_parse(request.frame), source_mac)
    if len(frame) > FRAME_MAX:
        raise errors.InvalidInputError(f"the frame has {len(frame)} bytes; {FRAME_MAX} are possible")
    return frame


def _hex(text: str) -> bytes:
    digits = re.sub(r"[\s:.-]", "", text.strip().removeprefix("0x"))
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise errors.InvalidInputError(
            f"the frame has {len(digits)} hex digits: an even number is needed", _EXAMPLE
        ) from None


# ---- capture files ----


def _first_of_file(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise errors.InvalidInputError("the capture file is not in base64") from None
    frame = _first_of_pcap(data) if data[:4] != b"\x0a\x0d\x0d\x0a" else _first_of_pcapng(data)
    if frame is None:
        raise errors.InvalidInputError(
            "the file is no pcap or pcapng with a whole Ethernet frame at its start", _EXAMPLE
        )
    return frame


def _first_of_pcap(data: bytes) -> bytes | None:
    orders = {
        b"\xd4\xc3\xb2\xa1": "<",
        b"\x4d\x3c\xb2\xa1": "<",
        b"\xa1\xb2\xc3\xd4": ">",
        b"\xa1\xb2\x3c\x4d": ">",
    }
    order = orders.get(data[:4])
    if order is None or len(data) < 40 or struct.unpack_from(f"{order}I", data, 20)[0] & 0xFFFF != 1:
        return None
    (captured,) = struct.unpack_from(f"{order}I", data, 32)
    return data[40 : 40 + captured] if len(data) >= 40 + captured else None


def _first_of_pcapng(data: bytes) -> bytes | None:
    order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(data[8:12])
    at = 0
    while order is not None and at + 12 <= len(data):
        kind, length = struct.unpack_from(f"{order}II", data, at)
        if length < 12 or length % 4 or at + length > len(data):
            return None
        if kind == 6 and length >= 32:
            (captured,) = struct.unpack_from(f"{order}I", data, at + 20)
            return data[at + 28 : at + 28 + captured] if captured <= length - 32 else None
        if kind == 3 and length >= 16:
            (original,) = struct.unpack_from(f"{order}I", data, at + 8)
            return data[at + 12 : at + 12 + min(original, length - 16)]
        at += length
    return None


# ---- scapy-like text: parsing ----


def _parse(text: str) -> list[_Layer]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise errors.InvalidInputError(f"{_short(text)} is not a frame", _EXAMPLE) from None
    layers: list[_Layer] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Div):
        layers.append(_layer(tree.right))
        tree = tree.left
    layers.append(_layer(tree))
    layers.reverse()
    return layers


def _layer(node: ast.expr) -> _Layer:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return _Layer("Raw", {"load": node.value})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise errors.InvalidInputError(f"{_short(ast.unparse(node))} is not a layer of a frame", _EXAMPLE)
    name = node.func.id
    if name not in _BUILDERS:
        raise errors.InvalidInputError(
            f"{name} is not a layer that is known here: {', '.join(_BUILDERS)} are"
        )
    fields: dict[str, Value] = {}
    for keyword in node.keywords:
        value = keyword.value
        if keyword.arg not in _FIELDS[name]:
            raise errors.InvalidInputError(
                f"{name} has no field {keyword.arg}: it has {', '.join(_FIELDS[name])}"
            )
        if not isinstance(value, ast.Constant) or not isinstance(value.value, int | str | bytes):
            raise errors.InvalidInputError(f"{name}: {keyword.arg} must be a number or a text")
        fields[keyword.arg] = value.value
    return _Layer(name, fields)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


# ---- scapy-like text: building, from the last layer to the first ----


@dataclass(frozen=True)
class _Context:
    """What a layer knows of what is behind and around it."""

    payload: bytes
    inner: str  # the name of the layer behind, "" for none
    outer: _Layer | None
    source_mac: str


_FIELDS = {
    "Ether": ("src", "dst", "type"),
    "Dot1Q": ("vlan", "prio", "type"),
    "Dot1AD": ("vlan", "prio", "type"),
    "ARP": ("op", "hwsrc", "hwdst", "psrc", "pdst"),
    "IP": ("src", "dst", "proto", "ttl", "tos", "id", "flags", "frag"),
    "IPv6": ("src", "dst", "nh", "hlim", "tc"),
    "TCP": ("sport", "dport", "flags", "seq", "ack"),
    "UDP": ("sport", "dport"),
    "ICMP": ("type", "code"),
    "ICMPv6": ("type", "code"),
    "Raw": ("load",),
}
_TYPES = {"Dot1Q": 0x8100, "Dot1AD": 0x88A8, "ARP": 0x0806, "IP": 0x0800, "IPv6": 0x86DD}
_PROTOCOLS = {"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58}
_TCP_FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}


def _int(layer: _Layer, name: str, default: int, most: int) -> int:
    value = layer.fields.get(name, default)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise errors.InvalidInputError(f"{layer.name}: {name} is a number from 0 to {most}, not {value!r}")
    return value


def _mac(layer: _Layer, name: str, default: str) -> bytes:
    value = str(layer.fields.get(name, default))
    if not re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", value):
        raise errors.InvalidInputError(f"{layer.name}: {name} is a MAC, not {value!r}")
    return bytes.fromhex(value.replace(":", "").replace("-", ""))


def _address(layer: _Layer, name: str, default: str) -> bytes:
    value = str(layer.fields.get(name, default))
    version = 6 if layer.name == "IPv6" else 4
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or address.version != version:
        raise errors.InvalidInputError(f"{layer.name}: {name} is an IPv{version} address, not {value!r}")
    return address.packed


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _l4_checksum(context: _Context, protocol: int, data: bytes) -> int:
    """With the pseudo header of the IP layer outside; 0 when there is none."""
    outer = context.outer
    if outer is None or outer.name not in ("IP", "IPv6"):
        return 0
    ends = _addresses(outer)
    if outer.name == "IP":
        pseudo = ends + struct.pack("!BBH", 0, protocol, len(data))
    else:
        pseudo = ends + struct.pack("!IHBB", len(data), 0, 0, protocol)
    return _checksum(pseudo + data)


def _addresses(layer: _Layer) -> bytes:
    default = "::" if layer.name == "IPv6" else "0.0.0.0"  # noqa: S104 - an address in a frame
    return _address(layer, "src", default) + _address(layer, "dst", default)


def _ether(layer: _Layer, context: _Context) -> bytes:
    kind = _int(layer, "type", _TYPES.get(context.inner, 0x9000), 0xFFFF)
    return _mac(layer, "dst", _BROADCAST) + _mac(layer, "src", context.source_mac) + struct.pack("!H", kind)


def _tag(layer: _Layer, context: _Context) -> bytes:
    vlan, priority = _int(layer, "vlan", 1, 4095), _int(layer, "prio", 0, 7)
    return struct.pack(
        "!HH", priority << 13 | vlan, _int(layer, "type", _TYPES.get(context.inner, 0x9000), 0xFFFF)
    )


def _arp(layer: _Layer, context: _Context) -> bytes:
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _int(layer, "op", 1, 0xFFFF))
    source = _mac(layer, "hwsrc", context.source_mac) + _address(layer, "psrc", "0.0.0.0")  # noqa: S104 - in a frame
    return fixed + source + _mac(layer, "hwdst", "00:00:00:00:00:00") + _address(layer, "pdst", "0.0.0.0")  # noqa: S104


def _ip(layer: _Layer, context: _Context) -> bytes:
    protocol = _int(layer, "proto", _PROTOCOLS.get(context.inner, 253), 255)
    fragment = _int(layer, "frag", 0, 0x1FFF) | (0x2000 if "MF" in str(layer.fields.get("flags", "")) else 0)
    head = struct.pack(
        "!BBHHHBBH",
        0x45,
        _int(layer, "tos", 0, 255),
        min(20 + len(context.payload), 0xFFFF),
        _int(layer, "id", 1, 0xFFFF),
        fragment,
        _int(layer, "ttl", 64, 255),
        protocol,
        0,
    ) + _addresses(layer)
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:]


def _ipv6(layer: _Layer, context: _Context) -> bytes:
    first = 6 << 28 | _int(layer, "tc", 0, 255) << 20
    protocol = _int(layer, "nh", _PROTOCOLS.get(context.inner, 59), 255)
    length = min(len(context.payload), 0xFFFF)
    return struct.pack("!IHBB", first, length, protocol, _int(layer, "hlim", 64, 255)) + _addresses(layer)


def _tcp(layer: _Layer, context: _Context) -> bytes:
    flags = layer.fields.get("flags", "S")
    if isinstance(flags, int):
        bits = flags & 0xFF
    elif isinstance(flags, str) and all(flag in _TCP_FLAGS for flag in flags):
        bits = sum(_TCP_FLAGS[flag] for flag in set(flags))
    else:
        raise errors.InvalidInputError(f"TCP: flags are letters of {''.join(_TCP_FLAGS)}, not {flags!r}")
    head = struct.pack(
        "!HHIIBBHHH",
        _int(layer, "sport", 20000, 0xFFFF),
        _int(layer, "dport", 80, 0xFFFF),
        _int(layer, "seq", 0, 0xFFFFFFFF),
        _int(layer, "ack", 0, 0xFFFFFFFF),
        5 << 4,
        bits,
        8192,
        0,
        0,
    )
    return head[:16] + struct.pack("!H", _l4_checksum(context, 6, head + context.payload)) + head[18:]


def _udp(layer: _Layer, context: _Context) -> bytes:
    ports = (_int(layer, "sport", 53, 0xFFFF), _int(layer, "dport", 53, 0xFFFF))
    head = struct.pack("!HHHH", *ports, min(8 + len(context.payload), 0xFFFF), 0)
    return head[:6] + struct.pack("!H", _l4_checksum(context, 17, head + context.payload) or 0xFFFF)


def _icmp(layer: _Layer, context: _Context) -> bytes:
    v6 = layer.name == "ICMPv6"
    head = struct.pack("!BBHI", _int(layer, "type", 128 if v6 else 8, 255), _int(layer, "code", 0, 255), 0, 0)
    data = head + context.payload
    sum_ = _l4_checksum(context, 58, data) if v6 else _checksum(data)
    return head[:2] + struct.pack("!H", sum_) + head[4:]


def _raw(layer: _Layer, _context: _Context) -> bytes:
    load = layer.fields.get("load", b"")
    if isinstance(load, int):
        raise errors.InvalidInputError("Raw: load is a text, not a number")
    return load.encode() if isinstance(load, str) else load


_BUILDERS: dict[str, Callable[[_Layer, _Context], bytes]] = {
    "Ether": _ether,
    "Dot1Q": _tag,
    "Dot1AD": _tag,
    "ARP": _arp,
    "IP": _ip,
    "IPv6": _ipv6,
    "TCP": _tcp,
    "UDP": _udp,
    "ICMP": _icmp,
    "ICMPv6": _icmp,
    "Raw": _raw,
}


def _build(layers: list[_Layer], source_mac: str) -> bytes:
    if layers[0].name != "Ether":
        layers = [_Layer("Ether", {}), *layers]
    payload, inner = b"", ""
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        context = _Context(payload, inner, layers[index - 1] if index else None, source_mac)
        payload, inner = _BUILDERS[layer.name](layer, context) + payload, layer.name
    return payload
