"""Gathers the facts for `vswitch why`: resolves names, samples counters, walks probes through the pipeline.

Runs on vswitchd's event loop, beside everything else: it holds no lock, changes nothing, and waits only for
the seconds for which losses are watched. What the facts mean is decided in `why.py`.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from vswitch import errors, wanted
from vswitch.diagnosis import Question, Walk, Why
from vswitch.model import AclRuleInfo, Change, PortInfo, PortStats, Trace, TraceRequest, VmInfo
from vswitch.probes import Probe, probes
from vswitch.wanted import PortRow, State
from vswitch.why import Counted, Facts, Side, judge

_CHANGES = 2000
_SWITCH_PORTS = ("host", "uplink")


class Source(Protocol):
    """What is asked: the service."""

    state: State

    async def port(self, name: str) -> PortInfo:
        """One port."""

    def port_stats(self, name: str) -> PortStats:
        """Its counters."""

    async def rules(self, port: str) -> list[AclRuleInfo]:
        """Its rules, counted."""

    async def trace(self, port: str, request: TraceRequest) -> Trace:
        """A frame's way."""

    def vm(self, name: str) -> VmInfo:
        """One VM."""

    def changes(self, limit: int) -> Sequence[Change]:
        """The journal."""


def _candidates(state: State, name: str) -> list[PortRow]:
    """The ports that a name may mean."""
    if "/" in name:
        return [wanted.port_row(state, name)]
    if name in state.vms:
        rows = wanted.ports_of(state, name)
        if not rows:
            raise errors.ConflictError(f"VM {name} has no NIC", f"`vswitch nic attach {name} SWITCH`")
        return rows
    if name in state.switches:
        known = [state.ports.get(f"{name}/{port}") for port in _SWITCH_PORTS]
        rows = [row for row in known if row is not None]
        if not rows:
            raise errors.ConflictError(f"switch {name} has no host port", "name a port: OWNER/PORT")
        return rows
    raise errors.NotFoundError(
        f"no VM, switch or port is named {name}", "`vswitch port list` shows the ports"
    )


def endpoints(state: State, one: str, other: str) -> tuple[PortRow, PortRow]:
    """The two ports that are meant: of several NICs, such as are on one switch."""
    pairs = [(a, b) for a in _candidates(state, one) for b in _candidates(state, other) if a is not b]
    if not pairs:
        raise errors.InvalidInputError(f"{one} and {other} are the same port", "name two")
    together = [(a, b) for a, b in pairs if a.port.switch is not None and a.port.switch == b.port.switch]
    return (together or pairs)[0]


async def _count(source: Source, row: PortRow) -> Counted:
    rules = {rule.id: rule.packets for rule in await source.rules(row.port.name)} if row.rules else {}
    return Counted(source.port_stats(row.port.name), rules)


def _connected(question: Trace) -> tuple[str, ...]:
    """The ports that would know the answer to this, because a stateful rule of theirs accepts it."""
    steps = (step for step in question.steps if step.connection in ("known", "new"))
    return tuple(dict.fromkeys(step.port for step in steps if step.port is not None))[:2]


async def _walks(source: Source, asked: Sequence[Probe]) -> list[Walk]:
    walks: list[Walk] = []
    for probe in asked:
        is_answer = probe.way == "back" and bool(walks) and walks[-1].way == "there"
        walks.append(await _walk(source, probe, _connected(walks[-1].trace) if is_answer else ()))
    return walks


async def _walk(source: Source, probe: Probe, connected: tuple[str, ...]) -> Walk:
    request = TraceRequest(frame=probe.frame, format="text", connected=connected)
    trace = await source.trace(probe.sender, request)
    return Walk(
        way=probe.way,
        what=probe.what,
        from_port=probe.sender,
        to_port=probe.receiver,
        frame=probe.frame,
        arrives=probe.receiver in trace.outputs,
        trace=trace,
    )


async def ask(source: Source, question: Question) -> Why:
    """The answer to a question."""
    state = source.state
    rows = endpoints(state, question.a, question.b)
    before = [await _count(source, row) for row in rows]
    infos = [await source.port(row.port.name) for row in rows]
    on_one_switch = rows[0].port.switch is not None and rows[0].port.switch == rows[1].port.switch
    asked = list(probes(question, rows[0].port, rows[1].port)) if on_one_switch else []
    walks = await _walks(source, asked)
    await asyncio.sleep(question.seconds)
    after = [await _count(source, row) for row in rows]
    vms = [source.vm(row.port.owner) if row.port.owner in state.vms else None for row in rows]
    a, b = (Side(*known) for known in zip(rows, infos, vms, before, after, strict=True))
    return judge(Facts(question, a, b, asked, walks, source.changes(_CHANGES)))
