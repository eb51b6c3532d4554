"""Orders and answers of dataplane/api.h as Python values: packed and unpacked here, nowhere else.

Pure. The layouts are checked against the C header by a test (sizes and offsets, through the cffi module). The
data plane is trusted; lengths of its answers are checked all the same.
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import ClassVar

PORTS_MAX = 4096
WORKERS_MAX = 8
DROP_SLOTS = 64
ADDRESS_MAX = 108
API_VERSION = 1

FROM_PORT, TO_PORT = 1, 2  # enum of pipelines: OPENFLOW_FROM_PORT, OPENFLOW_TO_PORT
FLAG_LEARN, FLAG_UP = 1, 2
ADD_LISTEN, ADD_PCAP_REPLAY, ADD_PCAP_WRITE, ADD_PCAP_TIMED = 1, 2, 4, 8
KIND_VHOST, KIND_TAP, KIND_MEM, KIND_PCAP, KIND_PACKET = 1, 2, 3, 4, 5
VID_ANY = 0xFFFF
EVENT_PORT_STATE = 0x100

FAULT_DEVICE = 6

FAULTS = {
    1: "the guest's available index jumped by more than its ring's size",
    2: "a descriptor of the guest points outside what is allowed",
    3: "the guest's descriptors form a loop",
    4: "the memory behind the guest's descriptors is gone",
    5: "the front end sent a malformed message and was disconnected",
    FAULT_DEVICE: "its device is gone",
}

_ORDER = struct.Struct("=IHHQ")
_ANSWER = struct.Struct("=IHHQiI")
_PORT_ADD = struct.Struct(f"=IBBHII{ADDRESS_MAX}s4x")
_PORT_SET = struct.Struct("=IIIIH6sI4x")
_CONNECTION = struct.Struct("=IIHBBBB2HHII16s16s4x2Q2Q")
_STATE = struct.Struct("=IIBBBBiQQII")
_FDB_RECORD = struct.Struct("=IH6sB3xI")
_FDB = struct.Struct("=IIH6s")
_TRACE_RECORD = struct.Struct("=BBBBHHIIQ6s6sHHHBx16s16s4x")
_WORKER = struct.Struct("=II9Q")
ANSWER_BYTES = _ANSWER.size


@dataclass(frozen=True)
class Order:
    """One order without its id, which the transport chooses. `kind` is its number in enum order_type."""

    kind: ClassVar[int]

    def fields(self) -> bytes:
        """What follows struct order."""
        return b""

    def describe(self) -> str:
        """What it is for, for an error's sentence."""
        return type(self).__name__


def pack(order: Order, order_id: int, n_fds: int) -> bytes:
    """The message."""
    fields = order.fields()
    return _ORDER.pack(_ORDER.size + len(fields), order.kind, n_fds, order_id) + fields


def mac_bytes(mac: str | None) -> bytes:
    """`52:54:00:…` as six bytes; zeros for none."""
    return bytes.fromhex(mac.replace(":", "")) if mac else bytes(6)


def mac_text(mac: bytes) -> str:
    """Six bytes as `52:54:00:…`."""
    return mac.hex(":")


@dataclass(frozen=True)
class Hello(Order):
    """Asks which interface the data plane speaks."""

    kind: ClassVar[int] = 1


@dataclass(frozen=True)
class SwitchAdd(Order):
    """Makes a switch."""

    kind: ClassVar[int] = 2
    switch_id: int
    fdb_size: int
    ageing_s: int

    def fields(self) -> bytes:
        """See Order."""
        return struct.pack("=IIII", self.switch_id, self.fdb_size, self.ageing_s, 0)


@dataclass(frozen=True)
class SwitchSet(SwitchAdd):
    """Changes a switch's ageing time."""

    kind: ClassVar[int] = 3


@dataclass(frozen=True)
class SwitchDelete(Order):
    """Deletes a switch that has no ports."""

    kind: ClassVar[int] = 4
    switch_id: int

    def fields(self) -> bytes:
        """See Order."""
        return struct.pack("=IIII", self.switch_id, 0, 0, 0)


@dataclass(frozen=True)
class PortAdd(Order):
    """Makes a port, dark: it has no rules and is connected to nothing. Its descriptors go with the order."""

    kind: ClassVar[int] = 5
    port_id: int
    port_kind: int
    queues: int = 1
    flags: int = 0
    fdb_limit: int = 0
    address: bytes = b""

    def fields(self) -> bytes:
        """See Order."""
        return _PORT_ADD.pack(
            self.port_id,
            self.port_kind,
            self.queues,
            self.flags,
            self.fdb_limit,
            len(self.address),
            self.address,
        )


@dataclass(frozen=True)
class PortSet(Order):
    """Connects a port to a switch (0: to none) and sets what is not a rule."""

    kind: ClassVar[int] = 6
    port_id: int
    switch_id: int = 0
    flags: int = 0
    storm_limit: int = 0
    mtu: int = 0
    mac: bytes = bytes(6)
    connection_limit: int = 0

    def fields(self) -> bytes:
        """See Order."""
        return _PORT_SET.pack(
            self.port_id,
            self.switch_id,
            self.flags,
            self.storm_limit,
            self.mtu,
            self.mac,
            self.connection_limit,
        )


@dataclass(frozen=True)
class _OfPort(Order):
    port_id: int

    def fields(self) -> bytes:
        """See Order."""
        return struct.pack("=II", self.port_id, 0)


@dataclass(frozen=True)
class PortDelete(_OfPort):
    """Deletes a port."""

    kind: ClassVar[int] = 7


@dataclass(frozen=True)
class GetPortState(_OfPort):
    """Asks for struct port_state."""

    kind: ClassVar[int] = 8


@dataclass(frozen=True)
class OpenFlow(Order):
    """OpenFlow 1.3 messages for one pipeline of a port; their flow mods become visible together."""

    kind: ClassVar[int] = 9
    target: int
    pipeline: int
    messages: bytes = field(repr=False)

    def fields(self) -> bytes:
        """See Order."""
        return struct.pack("=II", self.target, self.pipeline) + self.messages


@dataclass(frozen=True)
class FdbAdd(Order):
    """Adds a static address. vid 0: untagged."""

    kind: ClassVar[int] = 10
    switch_id: int
    port_id: int
    vid: int
    mac: bytes

    def fields(self) -> bytes:
        """See Order."""
        return _FDB.pack(self.switch_id, self.port_id, self.vid, self.mac)


@dataclass(frozen=True)
class FdbDelete(FdbAdd):
    """Deletes one address, static or learned."""

    kind: ClassVar[int] = 11


@dataclass(frozen=True)
class FdbFlush(Order):
    """Forgets what was learned, of one port (0: all) and VLAN (VID_ANY: all)."""

    kind: ClassVar[int] = 12
    switch_id: int
    port_id: int = 0
    vid: int = VID_ANY

    def fields(self) -> bytes:
        """See Order."""
        return _FDB.pack(self.switch_id, self.port_id, self.vid, bytes(6))


@dataclass(frozen=True)
class FdbList(FdbFlush):
    """Asks for struct fdb_record[]."""

    kind: ClassVar[int] = 13


@dataclass(frozen=True)
class TraceFrame(Order):
    """Asks for the way of a frame."""

    kind: ClassVar[int] = 14
    port_id: int
    frame: bytes = field(repr=False)
    # Ports, at most two, to a connection of which the frame is taken to belong.
    connected: tuple[int, ...] = ()

    def fields(self) -> bytes:
        """See Order."""
        connected = (*self.connected, 0, 0)[:2]
        return struct.pack("=IIII", self.port_id, len(self.frame), *connected) + self.frame


@dataclass(frozen=True)
class CaptureStart(Order):
    """Starts a capture into the memfd that goes with it."""

    kind: ClassVar[int] = 15
    port_id: int
    snaplen: int
    ring_bytes: int

    def fields(self) -> bytes:
        """See Order."""
        return struct.pack("=IIQ", self.port_id, self.snaplen, self.ring_bytes)


@dataclass(frozen=True)
class CaptureStop(_OfPort):
    """Ends a capture."""

    kind: ClassVar[int] = 16


@dataclass(frozen=True)
class GetWorkers(Order):
    """Asks for struct worker_state[]."""

    kind: ClassVar[int] = 17


@dataclass(frozen=True)
class Stop(Order):
    """Ends the data plane."""

    kind: ClassVar[int] = 18


@dataclass(frozen=True)
class ConnectionList(Order):
    """Asks for struct connection_record[] of a port (0: all), from behind the index `after` on."""

    kind: ClassVar[int] = 19
    port_id: int = 0
    after: int = 0

    def fields(self) -> bytes:
        """See Order."""
        return struct.pack("=II", self.port_id, self.after)


@dataclass(frozen=True)
class ConnectionFlush(_OfPort):
    """Ends all connections of a port (0: of all ports). The answer's count says how many."""

    kind: ClassVar[int] = 20


# ---- answers ----


@dataclass(frozen=True)
class Answer:
    """struct answer and what follows it."""

    kind: int
    id: int
    error: int
    count: int
    body: bytes = field(repr=False)

    def error_text(self) -> str:
        """The error as errno's name and words."""
        number = -self.error
        return f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"


def parse_answer(message: bytes) -> Answer:
    """ValueError when it is shorter than it says."""
    if len(message) < ANSWER_BYTES:
        raise ValueError(f"an answer of {len(message)} bytes")
    length, kind, _worker, number, error, count = _ANSWER.unpack_from(message)
    if length > len(message) or length < ANSWER_BYTES:
        raise ValueError(f"an answer of {len(message)} bytes that says {length}")
    return Answer(kind, number, error, count, message[ANSWER_BYTES:length])


@dataclass(frozen=True)
class PortStateRecord:
    """struct port_state."""

    port_id: int
    fault: int
    link: bool
    connected: bool
    queues: int
    packed: bool
    error: int
    features: int
    reconnects: int
    fdb_count: int


def parse_port_state(body: bytes) -> PortStateRecord:
    """What follows the answer of GetPortState and of EVENT_PORT_STATE."""
    port_id, fault, link, connected, queues, packed, error, features, reconnects, _mtu, count = (
        _STATE.unpack_from(body)
    )
    return PortStateRecord(
        port_id, fault, bool(link), bool(connected), queues, bool(packed), error, features, reconnects, count
    )


@dataclass(frozen=True)
class FdbRecord:
    """struct fdb_record."""

    port_id: int
    vid: int
    mac: bytes
    is_static: bool
    idle_s: int


@dataclass(frozen=True)
class WorkerRecord:
    """struct worker_state."""

    cpu: int
    queues: int
    turns: int
    empty_turns: int
    sleeps: int
    packets: int
    cache_hits: int
    cache_misses: int
    cache_entries: int
    guest_bytes: int
    busy_ns: int


def parse_workers(answer: Answer) -> list[WorkerRecord]:
    """Of GetWorkers."""
    return [WorkerRecord(*_WORKER.unpack_from(answer.body, i * _WORKER.size)) for i in range(answer.count)]


@dataclass(frozen=True)
class TraceRecord:
    """struct trace_record. `vlan_tci`: PCP << 13 | 0x1000 | VID, 0: untagged."""

    kind: int
    pipeline: int
    table: int
    key_flags: int
    priority: int
    vlan_tci: int
    port: int
    value: int
    cookie: int
    eth_dst: bytes
    eth_src: bytes
    eth_type: int
    l4_src: int
    l4_dst: int
    ip_proto: int
    ip_src: bytes
    ip_dst: bytes


def parse_fdb(answer: Answer) -> list[FdbRecord]:
    """Of FdbList."""
    records = []
    for index in range(answer.count):
        port, vid, mac, static, idle_s = _FDB_RECORD.unpack_from(answer.body, index * _FDB_RECORD.size)
        records.append(FdbRecord(port, vid, mac, bool(static), idle_s))
    return records


def parse_trace(answer: Answer) -> list[TraceRecord]:
    """Of TraceFrame."""
    size = _TRACE_RECORD.size
    return [
        TraceRecord(*_TRACE_RECORD.unpack_from(answer.body, index * size)) for index in range(answer.count)
    ]


@dataclass(frozen=True)
class ConnectionRecord:
    """struct connection_record; of pairs, the first is the end that began it."""

    index: int
    port_id: int
    vid: int
    family: int
    ip_proto: int
    state: int
    pipeline: int
    l4: tuple[int, int]
    timeout_s: int
    idle_s: int
    left_s: int
    addresses: tuple[str, str]
    packets: tuple[int, int]
    bytes: tuple[int, int]


def parse_connections(answer: Answer) -> list[ConnectionRecord]:
    """Of ConnectionList."""
    records = []
    for at in range(answer.count):
        index, port_id, vid, family, ip_proto, state, pipeline, *rest = _CONNECTION.unpack_from(
            answer.body, at * _CONNECTION.size
        )
        eth_type = 0x0800 if family == 4 else 0x86DD
        records.append(
            ConnectionRecord(
                index,
                port_id,
                vid,
                family,
                ip_proto,
                state,
                pipeline,
                l4=(rest[0], rest[1]),
                timeout_s=rest[2],
                idle_s=rest[3],
                left_s=rest[4],
                addresses=(ip_text(rest[5], eth_type), ip_text(rest[6], eth_type)),
                packets=(rest[7], rest[8]),
                bytes=(rest[9], rest[10]),
            )
        )
    return records


def sockaddr_path(path: str) -> bytes:
    """The bytes of sun_path."""
    raw = os.fsencode(path)
    if len(raw) >= ADDRESS_MAX:
        raise ValueError(f"{path} is too long for a socket")
    return raw


def ip_text(address: bytes, eth_type: int) -> str:
    """An address of a trace record; IPv4 is in the first four bytes."""
    if eth_type == 0x86DD:
        return socket.inet_ntop(socket.AF_INET6, address)
    return socket.inet_ntop(socket.AF_INET, address[:4])
