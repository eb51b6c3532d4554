"""A frame's way as sentences: the data plane's trace records, with names of ports, rules and reasons put in.

Pure. Numbers that have no name here (a port that went meanwhile) are shown as numbers.
"""

from collections.abc import Mapping
from typing import Literal

from controller.entry import rule_of
from controller.explain import explain
from vswitch import orders
from vswitch.drops import reason
from vswitch.model import AclRule, Trace, TraceStep
from vswitch.wanted import PortRow
from vswitch.words import PROTOCOLS

_PIPELINES = {orders.FROM_PORT: "from VM", orders.TO_PORT: "to VM"}
_CONNECTIONS: tuple[tuple[Literal["none", "known", "new"], str], ...] = (
    ("none", "it belongs to no connection of {port}"),
    ("known", "it belongs to a connection of {port}, so no rule is asked"),
    ("new", "it would make a connection of {port}"),
)
_FLOODS = ("broadcast", "multicast", "unknown unicast")
_ETHERTYPES = {
    0x0800: "IPv4",
    0x0806: "ARP",
    0x86DD: "IPv6",
    0x8100: "another VLAN tag",
    0x88A8: "another VLAN tag",
}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_FLAGS = {1: "a fragment", 4: "its network header is cut short", 8: "its ports cannot be known"}


class Tracer:
    """Turns records into steps.

    Args:
        ports: The ports by number, with their rules.
    """

    def __init__(self, ports: Mapping[int, PortRow]) -> None:
        self._ports = ports

    def name(self, number: int) -> str:
        """A port's name."""
        row = self._ports.get(number)
        return row.port.name if row else f"port {number}"

    def step(self, record: orders.TraceRecord) -> TraceStep:  # noqa: PLR0911 - one for each kind
        """One record as a step."""
        port = self.name(record.port)
        if record.kind == 1:
            return TraceStep(kind="key", text=f"{port} sends {_frame_text(record)}", port=port)
        if record.kind == 2:
            return self._entry(record, port)
        if record.kind == 3:
            return TraceStep(
                kind="learn",
                text=f"its source {record.eth_src.hex(':')} would be learned at {port}",
                port=port,
            )
        if record.kind == 4:
            how = "static" if record.value else "learned"
            return TraceStep(kind="fdb", text=f"its destination is known at {port} ({how})", port=port)
        if record.kind == 5:
            what = _FLOODS[record.value] if record.value < len(_FLOODS) else "a flood"
            return TraceStep(kind="flood", text=f"it is {what}: it goes to every port that may have it")
        if record.kind == 6:
            vid = record.vlan_tci & 0xFFF if record.vlan_tci & 0x1000 else None
            tag = f" with the tag of VLAN {vid}" if vid is not None else " untagged"
            return TraceStep(kind="output", text=f"it leaves at {port}{tag}", port=port, vid=vid)
        if record.kind == 8:
            connection, text = _CONNECTIONS[record.value]
            text = text.format(port=port)
            return TraceStep(kind="connection", text=text, port=port, connection=connection)
        name, sentence, way_out = reason(record.value)
        text = f"it is dropped at {port} because {sentence} ({name})"
        if way_out:
            text += "; to change that: " + way_out.replace("PORT", port)
        return TraceStep(kind="drop", text=text, port=port, reason=name)

    def _entry(self, record: orders.TraceRecord, port: str) -> TraceStep:
        rule_id = rule_of(record.cookie)
        text = explain(record.cookie, port)
        if rule_id is not None and (rule := self._rule(record.port, rule_id)) is not None:
            text += f": {rule_text(rule)}"
        return TraceStep(
            kind="entry",
            text=text,
            port=port,
            pipeline=_PIPELINES.get(record.pipeline),
            table=record.table,
            priority=record.priority,
            cookie=record.cookie,
            rule=rule_id,
        )

    def _rule(self, port: int, rule_id: int) -> AclRule | None:
        row = self._ports.get(port)
        return next((r.rule for r in row.rules if r.id == rule_id), None) if row else None


def rule_text(rule: AclRule) -> str:
    """A rule as a person would say it: `deny in, weight 10, protocol icmp`."""
    parts = [f"{rule.action} {rule.direction}", f"weight {rule.weight}"]
    for name, value in rule.model_dump(
        exclude_defaults=True, exclude={"action", "direction", "weight"}
    ).items():
        if name == "stateful":
            parts.append("stateful")
            continue
        shown = f"{value:#06x}" if name == "ethertype" else value
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _frame_text(record: orders.TraceRecord) -> str:
    parts = [f"{record.eth_src.hex(':')} to {record.eth_dst.hex(':')}"]
    if record.vlan_tci & 0x1000:
        parts.append(f"tagged with VLAN {record.vlan_tci & 0xFFF}, priority {record.vlan_tci >> 13}")
    else:
        parts.append("untagged")
    parts.append(_ETHERTYPES.get(record.eth_type, f"EtherType {record.eth_type:#06x}"))
    known = not record.key_flags & 4
    if record.eth_type in (0x0800, 0x0806, 0x86DD) and known:
        ends = [orders.ip_text(address, record.eth_type) for address in (record.ip_src, record.ip_dst)]
        parts.append(f"{ends[0]} to {ends[1]}")
    if record.eth_type in (0x0800, 0x86DD) and known:
        parts.append(_l4_text(record))
    parts += [text for bit, text in _FLAGS.items() if record.key_flags & bit]
    return ", ".join(parts)


def _l4_text(record: orders.TraceRecord) -> str:
    name = _PROTOCOL_NAMES.get(record.ip_proto, f"protocol {record.ip_proto}")
    if record.key_flags & 8:
        return name
    if record.ip_proto in (1, 58):
        return f"{name} type {record.l4_src} code {record.l4_dst}"
    if record.ip_proto in (6, 17, 132):
        return f"{name} port {record.l4_src} to {record.l4_dst}"
    return name


def describe(
    port: str, frame: bytes, records: list[orders.TraceRecord], ports: Mapping[int, PortRow]
) -> Trace:
    """The whole way, structured and as text to print."""
    tracer = Tracer(ports)
    steps = [tracer.step(record) for record in records]
    outputs = [step.port for step in steps if step.kind == "output" and step.port is not None]
    drops = [step.reason for step in steps if step.kind == "drop" and step.reason is not None]
    lines = [f"{_place(step):<28} {step.text}" for step in steps]
    if outputs:
        lines.append(f"result: it reaches {', '.join(outputs)}")
    else:
        lines.append(
            f"result: it reaches nobody{' (' + ', '.join(dict.fromkeys(drops)) + ')' if drops else ''}"
        )
    return Trace(
        port=port, frame_bytes=len(frame), steps=steps, outputs=outputs, drops=drops, text="\n".join(lines)
    )


def _place(step: TraceStep) -> str:
    if step.kind == "entry":
        return f"{step.pipeline} {step.port} table {step.table}"
    return step.kind
