"""OpenFlow 1.3 messages in bytes: the few that our own data plane is programmed with.

Flow mods, barriers, flow statistics and errors, encoded and decoded with `struct`; section numbers are
those of the OpenFlow 1.3.5 specification. What is encoded comes from our own compiler; what is decoded
comes from the data plane, but is checked as a stranger's would be: a `MessageError` is raised for what
cannot be read, nothing else.

Two things are ours, under experimenter id 0xff767377: match fields for port ranges and for what the
parser could not know of a frame, and actions that drop with a reason, look connections up and make them.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple, Self

EXPERIMENTER = 0xFF767377
VERSION = 4  # OpenFlow 1.3
NO_BUFFER = ANY = 0xFFFFFFFF
ALL_TABLES = 0xFF
VID_PRESENT = 0x1000  # OFPVID_PRESENT: the frame carries a tag
MESSAGE_MAX = 0xFFFF

_HEADER = struct.Struct("!BBHI")
_FLOW_MOD = struct.Struct("!QQBBHHHIIIH2x")  # 7.3.4.1
_FLOW_STATS_REQUEST = struct.Struct("!B3xII4xQQ")  # 7.3.5.2
_FLOW_STATS = struct.Struct("!HBxIIHHHH4xQQQ")  # 7.3.5.2, to the match
_MULTIPART = struct.Struct("!HH4x")
_MULTIPART_FLOW = 1
_REPLY_MORE = 1
_EXPERIMENTER_CLASS = 0xFFFF
_BASIC_CLASS = 0x8000
_ACCEPTED = 0xFF  # where another action names a table


class MessageError(ValueError):
    """Bytes that are no message, or not one that can be read here. The text says what is wrong with them."""


class MessageType(IntEnum):
    """OpenFlow message types that are used here (7.1)."""

    ERROR = 1
    FLOW_MOD = 14
    MULTIPART_REQUEST = 18
    MULTIPART_REPLY = 19
    BARRIER_REQUEST = 20
    BARRIER_REPLY = 21


class Command(IntEnum):
    """What a flow mod does (7.3.4.1)."""

    ADD = 0
    MODIFY = 1
    MODIFY_STRICT = 2
    DELETE = 3
    DELETE_STRICT = 4


class DropReason(IntEnum):
    """Why a policy entry drops a frame: those numbers of `dataplane/drop.h` that port tables name."""

    SPOOFED_MAC = 7
    BAD_SOURCE_MAC = 8
    VLAN_TAGGED = 9
    VLAN_UNTAGGED = 10
    VLAN_NOT_ALLOWED = 11
    VLAN_NOT_MEMBER = 12
    ACL_DENY = 13


class KeyFlag(IntEnum):
    """What the parser says of a frame beside its fields: KEY_* of `dataplane/flow_key.h`."""

    FRAGMENT = 0x01
    FRAGMENT_LATER = 0x02
    L3_UNKNOWN = 0x04
    L4_UNKNOWN = 0x08
    MIDSTREAM = 0x10  # TCP but not a bare SYN, ICMP but no request: no first packet of a connection


class Oxm(IntEnum):
    """Match fields, in an order in which each stands behind what it presupposes (7.2.3.6)."""

    IN_PORT = 0
    ETH_DST = 1
    ETH_SRC = 2
    ETH_TYPE = 3
    VLAN_VID = 4
    VLAN_PCP = 5
    IP_DSCP = 6
    IP_ECN = 7
    IP_PROTO = 8
    IPV4_SRC = 9
    IPV4_DST = 10
    TCP_SRC = 11
    TCP_DST = 12
    UDP_SRC = 13
    UDP_DST = 14
    SCTP_SRC = 15
    SCTP_DST = 16
    ICMPV4_TYPE = 17
    ICMPV4_CODE = 18
    ARP_OP = 19
    ARP_SPA = 20
    ARP_TPA = 21
    IPV6_SRC = 22
    IPV6_DST = 23
    ICMPV6_TYPE = 24
    ICMPV6_CODE = 25
    KEY_FLAGS = 26  # ours: KeyFlag bits, maskable
    L4_SRC_RANGE = 27  # ours: first port << 16 | last port, inclusive
    L4_DST_RANGE = 28


class _Layout(NamedTuple):
    oxm_class: int
    number: int
    size: int  # of the value in bytes


# 7.2.3.7; the last three: dataplane/openflow.h
_LAYOUTS: dict[Oxm, _Layout] = {
    Oxm.IN_PORT: _Layout(_BASIC_CLASS, 0, 4),
    Oxm.ETH_DST: _Layout(_BASIC_CLASS, 3, 6),
    Oxm.ETH_SRC: _Layout(_BASIC_CLASS, 4, 6),
    Oxm.ETH_TYPE: _Layout(_BASIC_CLASS, 5, 2),
    Oxm.VLAN_VID: _Layout(_BASIC_CLASS, 6, 2),
    Oxm.VLAN_PCP: _Layout(_BASIC_CLASS, 7, 1),
    Oxm.IP_DSCP: _Layout(_BASIC_CLASS, 8, 1),
    Oxm.IP_ECN: _Layout(_BASIC_CLASS, 9, 1),
    Oxm.IP_PROTO: _Layout(_BASIC_CLASS, 10, 1),
    Oxm.IPV4_SRC: _Layout(_BASIC_CLASS, 11, 4),
    Oxm.IPV4_DST: _Layout(_BASIC_CLASS, 12, 4),
    Oxm.TCP_SRC: _Layout(_BASIC_CLASS, 13, 2),
    Oxm.TCP_DST: _Layout(_BASIC_CLASS, 14, 2),
    Oxm.UDP_SRC: _Layout(_BASIC_CLASS, 15, 2),
    Oxm.UDP_DST: _Layout(_BASIC_CLASS, 16, 2),
    Oxm.SCTP_SRC: _Layout(_BASIC_CLASS, 17, 2),
    Oxm.SCTP_DST: _Layout(_BASIC_CLASS, 18, 2),
    Oxm.ICMPV4_TYPE: _Layout(_BASIC_CLASS, 19, 1),
    Oxm.ICMPV4_CODE: _Layout(_BASIC_CLASS, 20, 1),
    Oxm.ARP_OP: _Layout(_BASIC_CLASS, 21, 2),
    Oxm.ARP_SPA: _Layout(_BASIC_CLASS, 22, 4),
    Oxm.ARP_TPA: _Layout(_BASIC_CLASS, 23, 4),
    Oxm.IPV6_SRC: _Layout(_BASIC_CLASS, 26, 16),
    Oxm.IPV6_DST: _Layout(_BASIC_CLASS, 27, 16),
    Oxm.ICMPV6_TYPE: _Layout(_BASIC_CLASS, 29, 1),
    Oxm.ICMPV6_CODE: _Layout(_BASIC_CLASS, 30, 1),
    Oxm.KEY_FLAGS: _Layout(_EXPERIMENTER_CLASS, 1, 1),
    Oxm.L4_SRC_RANGE: _Layout(_EXPERIMENTER_CLASS, 2, 4),
    Oxm.L4_DST_RANGE: _Layout(_EXPERIMENTER_CLASS, 3, 4),
}
_BY_NUMBER = {(layout.oxm_class, layout.number): oxm for oxm, layout in _LAYOUTS.items()}


class Field(NamedTuple):
    """One match field: `value` where `mask` has bits (None: all), as one big-endian number."""

    oxm: Oxm
    value: int
    mask: int | None = None

    def pack(self) -> bytes:
        """The field as an OXM TLV (7.2.3.2)."""
        head, size = _oxm_head(self.oxm, self.mask is not None)
        if self.mask is None:
            return head + self.value.to_bytes(size, "big")
        return head + self.value.to_bytes(size, "big") + self.mask.to_bytes(size, "big")


def _order(field: Field) -> int:
    return field.oxm


@cache
def _oxm_head(oxm: Oxm, masked: bool) -> tuple[bytes, int]:
    layout = _LAYOUTS[oxm]
    ours = struct.pack("!I", EXPERIMENTER) if layout.oxm_class == _EXPERIMENTER_CLASS else b""
    length = len(ours) + layout.size * (2 if masked else 1)
    return struct.pack("!HBB", layout.oxm_class, layout.number << 1 | masked, length) + ours, layout.size


def _unpack_fields(data: bytes) -> Iterator[Field]:
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise MessageError("a match field is cut short")
        oxm_class, field, length = struct.unpack_from("!HBB", data, at)
        body = data[at + 4 : at + 4 + length]
        if len(body) != length:
            raise MessageError("a match field is longer than its match")
        at += 4 + length
        if oxm_class == _EXPERIMENTER_CLASS:
            if body[:4] != struct.pack("!I", EXPERIMENTER):
                raise MessageError("a match field of a foreign experimenter")
            body = body[4:]
        oxm = _BY_NUMBER.get((oxm_class, field >> 1))
        masked = bool(field & 1)
        if oxm is None or len(body) != _LAYOUTS[oxm].size * (1 + masked):
            raise MessageError(f"match field {oxm_class:#x}/{field >> 1} is unknown or has a wrong length")
        size = _LAYOUTS[oxm].size
        value = int.from_bytes(body[:size], "big")
        yield Field(oxm, value, int.from_bytes(body[size:], "big") if masked else None)


@dataclass(frozen=True, slots=True)
class Match:
    """What an entry matches: all its fields; in the order of `Oxm`, so that equal ones are equal values."""

    fields: tuple[Field, ...] = ()

    @classmethod
    def of(cls, *fields: Field) -> Self:
        """A match of these fields, in any order, each at most once."""
        return cls(tuple(sorted(fields, key=_order)))

    def pack(self) -> bytes:
        """The OXM match with its padding to 8 bytes (7.2.3.1)."""
        body = b"".join([field.pack() for field in self.fields])
        length = 4 + len(body)
        return struct.pack("!HH", 1, length) + body + bytes(-length % 8)

    @classmethod
    def unpack(cls, data: bytes) -> tuple[Self, int]:
        """The match at the start of `data`, and how many bytes it takes with its padding."""
        if len(data) < 4:
            raise MessageError("a match is cut short")
        kind, length = struct.unpack_from("!HH", data)
        if kind != 1 or length < 4 or length + -length % 8 > len(data):
            raise MessageError("a match is not an OXM match, or longer than its message")
        match = cls.of(*_unpack_fields(data[4:length]))
        if len({field.oxm for field in match.fields}) != len(match.fields):
            raise MessageError("a match names a field twice")
        return match, length + -length % 8


@dataclass(frozen=True, slots=True)
class PushVlan:
    """Puts a new outermost tag with VID 0 and PCP 0 on the frame."""

    tpid: int = 0x8100

    def pack(self) -> bytes:
        """OFPAT_PUSH_VLAN (7.2.5)."""
        return struct.pack("!HHH2x", 17, 8, self.tpid)


@dataclass(frozen=True, slots=True)
class PopVlan:
    """Takes the outermost tag off."""

    def pack(self) -> bytes:
        """OFPAT_POP_VLAN (7.2.5)."""
        return struct.pack("!HH4x", 18, 8)


@dataclass(frozen=True, slots=True)
class SetField:
    """Writes one field; here: VLAN_VID (with VID_PRESENT) or VLAN_PCP of the outermost tag."""

    field: Field

    def pack(self) -> bytes:
        """OFPAT_SET_FIELD, padded to 8 bytes (7.2.5)."""
        body = self.field.pack()
        padding = -(4 + len(body)) % 8
        return struct.pack("!HH", 25, 4 + len(body) + padding) + body + bytes(padding)


@dataclass(frozen=True, slots=True)
class Output:
    """Sends the frame to a port by its number. Controllers' tables only."""

    port: int
    max_length: int = 0xFFFF

    def pack(self) -> bytes:
        """OFPAT_OUTPUT (7.2.5)."""
        return struct.pack("!HHIH6x", 0, 16, self.port, self.max_length)


@dataclass(frozen=True, slots=True)
class Drop:
    """Ends the frame's way with a reason that is counted. Ours."""

    reason: DropReason

    def pack(self) -> bytes:
        """OFPAT_EXPERIMENTER with our id, subtype 1 (dataplane/openflow.h)."""
        return _pack_ours(1, self.reason)


@dataclass(frozen=True, slots=True)
class LookUpConnection:
    """Frames of a living connection of the port go on with a later table, or are accepted: None. Ours."""

    goto: int | None

    def pack(self) -> bytes:
        """OFPAT_EXPERIMENTER with our id, subtype 2."""
        return _pack_ours(2, _ACCEPTED if self.goto is None else self.goto)


@dataclass(frozen=True, slots=True)
class MakeConnection:
    """The frame, once it is accepted, makes a connection of the port. Ours.

    `timeout_s`: 1..65535 seconds without a frame end it.
    """

    timeout_s: int

    def pack(self) -> bytes:
        """OFPAT_EXPERIMENTER with our id, subtype 3."""
        return _pack_ours(3, self.timeout_s)


Action = PushVlan | PopVlan | SetField | Output | Drop | LookUpConnection | MakeConnection


def _pack_ours(subtype: int, value: int) -> bytes:
    return struct.pack("!HHIHH4x", 0xFFFF, 16, EXPERIMENTER, subtype, value)


def _unpack_ours(subtype: int, value: int) -> Action | None:
    if subtype == 1:
        return Drop(DropReason(value))
    if subtype == 2:
        return LookUpConnection(None if value == _ACCEPTED else value)
    return MakeConnection(value) if subtype == 3 else None


def _unpack_action(kind: int, body: bytes) -> Action:
    """One action from what follows its type and length."""
    try:
        if kind == 0 and len(body) == 12:
            return Output(*struct.unpack("!IH6x", body))
        if kind == 17 and len(body) == 4:
            return PushVlan(*struct.unpack("!H2x", body))
        if kind == 18 and len(body) == 4:
            return PopVlan()
        if kind == 25 and len(body) >= 4:
            field = next(_unpack_fields(body[: 4 + body[3]]))
            return SetField(field)
        if kind == 0xFFFF and len(body) == 12:
            experimenter, subtype, value = struct.unpack("!IHH4x", body)
            ours = _unpack_ours(subtype, value) if experimenter == EXPERIMENTER else None
            if ours is not None:
                return ours
    except ValueError as error:
        raise MessageError(f"an action cannot be read: {error}") from error
    raise MessageError(f"action {kind} is unknown or has a wrong length")


def _unpack_tlvs(data: bytes, what: str) -> Iterator[tuple[int, bytes]]:
    """Type and body of instructions or actions: both start with type and length, and are multiples of 8."""
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise MessageError(f"an {what} is cut short")
        kind, length = struct.unpack_from("!HH", data, at)
        if length < 8 or length % 8 or at + length > len(data):
            raise MessageError(f"an {what} has the length {length}")
        yield kind, data[at + 4 : at + length]
        at += length


def _pack_instructions(actions: Sequence[Action], goto: int | None) -> bytes:
    """APPLY_ACTIONS, then GOTO_TABLE (7.2.4)."""
    packed = b""
    if actions:
        body = b"".join([action.pack() for action in actions])
        packed = struct.pack("!HH4x", 4, 8 + len(body)) + body
    if goto is not None:
        packed += struct.pack("!HHB3x", 1, 8, goto)
    return packed


def _unpack_instructions(data: bytes) -> tuple[tuple[Action, ...], int | None]:
    actions: tuple[Action, ...] = ()
    goto = None
    for kind, body in _unpack_tlvs(data, "instruction"):
        if kind == 1:
            goto = body[0]
        elif kind == 4:
            actions = tuple(_unpack_action(*tlv) for tlv in _unpack_tlvs(body[4:], "action"))
        else:
            raise MessageError(f"instruction {kind} is unknown")
    return actions, goto


def _message(kind: MessageType, xid: int, body: bytes = b"") -> bytes:
    return _HEADER.pack(VERSION, kind, _HEADER.size + len(body), xid) + body


@dataclass(frozen=True, slots=True)
class FlowMod:
    """One entry to be added or deleted.

    `priority` 0..65535, higher is looked at first; `goto` is the table that the walk goes on with, None
    where it ends (in a port's tables: the frame is accepted). An entry is identified by `table`,
    `priority` and `match`; to add one that is there already replaces it.
    """

    table: int
    priority: int
    match: Match
    cookie: int
    actions: tuple[Action, ...] = ()
    goto: int | None = None
    command: Command = Command.ADD
    cookie_mask: int = 0

    def pack(self, xid: int = 0) -> bytes:
        """The message OFPT_FLOW_MOD (7.3.4.1)."""
        fixed = _FLOW_MOD.pack(
            self.cookie,
            self.cookie_mask,
            self.table,
            self.command,
            0,
            0,
            self.priority,
            NO_BUFFER,
            ANY,
            ANY,
            0,
        )
        body = fixed + self.match.pack() + _pack_instructions(self.actions, self.goto)
        return _message(MessageType.FLOW_MOD, xid, body)


@dataclass(frozen=True, slots=True)
class FlowStat:
    """An entry and its counters: `packets` and `bytes` that have matched since it was added."""

    table: int
    priority: int
    cookie: int
    packets: int
    bytes: int
    match: Match
    actions: tuple[Action, ...]
    goto: int | None


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """OFPT_ERROR: `kind` and `code` as in 7.4.4; `data` is the start of the message that was refused."""

    kind: int
    code: int
    data: bytes
    xid: int


@dataclass(frozen=True, slots=True)
class FlowStatsReply:
    """One part of the answer to a flow statistics request; `more` follow."""

    stats: tuple[FlowStat, ...]
    more: bool
    xid: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """OFPT_BARRIER_REQUEST or its reply."""

    is_reply: bool
    xid: int


Message = FlowMod | ErrorMessage | FlowStatsReply | Barrier


def barrier_request(xid: int = 0) -> bytes:
    """OFPT_BARRIER_REQUEST."""
    return _message(MessageType.BARRIER_REQUEST, xid)


def flow_stats_request(xid: int = 0, cookie: int = 0, cookie_mask: int = 0) -> bytes:
    """Asks for the entries of all tables whose cookie is `cookie` in the bits of `cookie_mask` (7.3.5.2)."""
    fixed = _FLOW_STATS_REQUEST.pack(ALL_TABLES, ANY, ANY, cookie, cookie_mask)
    body = _MULTIPART.pack(_MULTIPART_FLOW, 0) + fixed + Match().pack()
    return _message(MessageType.MULTIPART_REQUEST, xid, body)


def _decode_flow_mod(body: bytes) -> FlowMod:
    if len(body) < _FLOW_MOD.size:
        raise MessageError("a flow mod is cut short")
    cookie, cookie_mask, table, command, _, _, priority, _, _, _, _ = _FLOW_MOD.unpack_from(body)
    match, used = Match.unpack(body[_FLOW_MOD.size :])
    actions, goto = _unpack_instructions(body[_FLOW_MOD.size + used :])
    try:
        return FlowMod(table, priority, match, cookie, actions, goto, Command(command), cookie_mask)
    except ValueError as error:
        raise MessageError(f"a flow mod has the unknown command {command}") from error


def _decode_stats(body: bytes) -> Iterator[FlowStat]:
    at = 0
    while at < len(body):
        if at + _FLOW_STATS.size > len(body):
            raise MessageError("flow statistics are cut short")
        length, table, _, _, priority, _, _, _, cookie, packets, octets = _FLOW_STATS.unpack_from(body, at)
        if length < _FLOW_STATS.size + 8 or at + length > len(body):
            raise MessageError(f"flow statistics have the length {length}")
        entry = body[at + _FLOW_STATS.size : at + length]
        match, used = Match.unpack(entry)
        actions, goto = _unpack_instructions(entry[used:])
        yield FlowStat(table, priority, cookie, packets, octets, match, actions, goto)
        at += length


def _decode_one(kind: int, xid: int, body: bytes) -> Message:
    if kind == MessageType.FLOW_MOD:
        return _decode_flow_mod(body)
    if kind == MessageType.ERROR and len(body) >= 4:
        error, code = struct.unpack_from("!HH", body)
        return ErrorMessage(error, code, body[4:], xid)
    if kind in (MessageType.BARRIER_REQUEST, MessageType.BARRIER_REPLY):
        return Barrier(kind == MessageType.BARRIER_REPLY, xid)
    if kind == MessageType.MULTIPART_REPLY and len(body) >= _MULTIPART.size:
        what, flags = _MULTIPART.unpack_from(body)
        if what == _MULTIPART_FLOW:
            stats = tuple(_decode_stats(body[_MULTIPART.size :]))
            return FlowStatsReply(stats, bool(flags & _REPLY_MORE), xid)
    raise MessageError(f"a message of type {kind} cannot be read here")


def decode(data: bytes) -> list[Message]:
    """All messages in `data`, which holds whole ones back to back.

    Raises:
        MessageError: where a message is cut short, malformed, or of a kind that is not read here.
    """
    messages = []
    at = 0
    while at < len(data):
        if at + _HEADER.size > len(data):
            raise MessageError("a message header is cut short")
        version, kind, length, xid = _HEADER.unpack_from(data, at)
        if version != VERSION or length < _HEADER.size or at + length > len(data):
            raise MessageError(f"a message has version {version} and length {length}")
        messages.append(_decode_one(kind, xid, data[at + _HEADER.size : at + length]))
        at += length
    return messages


def parse_flow_stats(data: bytes) -> list[FlowStat]:
    """The entries in the answer to `flow_stats_request()`, all its parts together.

    Raises:
        MessageError: when the answer is malformed or is an error message.
    """
    stats: list[FlowStat] = []
    for message in decode(data):
        if isinstance(message, ErrorMessage):
            raise MessageError(f"statistics were refused: error {message.kind}/{message.code}")
        if isinstance(message, FlowStatsReply):
            stats.extend(message.stats)
    return stats
