"""Connections as people see them: their model, and the data plane's records with names put in.

Pure. Numbers that have no name here are shown as numbers.
"""

from collections.abc import Mapping
from typing import Literal

from vswitch import orders
from vswitch.model import Direction, Model
from vswitch.words import PROTOCOLS

_NAMES = {number: name for name, number in PROTOCOLS.items()}
_STATES: dict[int, Literal["opening", "established", "closing"]] = {
    1: "opening",
    2: "established",
    3: "closing",
}


class Connection(Model):
    """What a stateful rule of a port has accepted, and what answers it. `from`: the end that began.

    Attributes:
        port: Whose rule accepted it.
        direction: Of that rule: in or out.
        protocol: A name or number.
        from_ip, from_port, to_ip, to_port: ICMP: both ports are its identifier.
        vid: The VLAN on the switch; None: untagged.
        state: opening (nobody has answered yet), established or closing.
        idle_s: Seconds since its last frame.
        left_s: Seconds until it ends when nothing comes.
        from_packets, from_bytes: Sent by the end that began, as far as they met the port.
        to_packets, to_bytes: Sent by the other end.
    """

    port: str
    direction: Direction
    protocol: str
    from_ip: str
    from_port: int
    to_ip: str
    to_port: int
    vid: int | None
    state: Literal["opening", "established", "closing"]
    idle_s: int
    left_s: int
    from_packets: int
    from_bytes: int
    to_packets: int
    to_bytes: int


class Flushed(Model):
    """How many were ended."""

    ended: int


def describe(record: orders.ConnectionRecord, ports: Mapping[int, str]) -> Connection:
    """One record. `ports`: names by number."""
    return Connection(
        port=ports.get(record.port_id, f"port {record.port_id}"),
        direction="out" if record.pipeline == orders.FROM_PORT else "in",
        protocol=_NAMES.get(record.ip_proto, str(record.ip_proto)),
        from_ip=record.addresses[0],
        from_port=record.l4[0],
        to_ip=record.addresses[1],
        to_port=record.l4[1],
        vid=record.vid or None,
        state=_STATES[record.state],
        idle_s=record.idle_s,
        left_s=record.left_s,
        from_packets=record.packets[0],
        from_bytes=record.bytes[0],
        to_packets=record.packets[1],
        to_bytes=record.bytes[1],
    )
