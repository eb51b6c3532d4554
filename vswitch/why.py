"""Why A does not reach B: from facts (ports, VMs, traces, counters, the journal) to causes and their mends.

Pure. Three kinds of evidence, in the order in which they are told: what is plainly not there (a VM that is
stopped, a cable that is out), what the pipeline does to the frames of `probes.py`, and what was counted while
it was watched, since a guest may send other frames than one would think.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vswitch.diagnosis import Cause, Question, Since, Walk, Way, Why
from vswitch.drops import DROP_REASONS
from vswitch.model import Change, Port, PortInfo, PortStats, TraceStep, Vlan, VlanTrunk, VmInfo, vlan_text
from vswitch.probes import UNTAGGED, Probe, common_vid, remarks, sends
from vswitch.trace import rule_text
from vswitch.wanted import PortRow, RuleRow

STORM_LIMIT_DEFAULT = 10_000
_MTU_MAX = 9000
_REASONS = {reason.name: reason for reason in DROP_REASONS}
_VLAN_REASONS = ("vlan_tagged", "vlan_untagged", "vlan_not_allowed", "vlan_not_member")


@dataclass(frozen=True)
class Counted:
    """A port's counters at one moment. `rules`: packets by the rule's number."""

    stats: PortStats
    rules: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One of the two ports, and the VM that it belongs to."""

    row: PortRow
    info: PortInfo
    vm: VmInfo | None
    before: Counted
    after: Counted

    @property
    def port(self) -> Port:
        """Its settings."""
        return self.row.port

    @property
    def name(self) -> str:
        """Its name."""
        return self.row.port.name

    def grown(self, reason: str) -> int:
        """Frames lost for a reason while it was watched."""
        return self.after.stats.drops.get(reason, 0) - self.before.stats.drops.get(reason, 0)


@dataclass(frozen=True)
class Facts:
    """All that is known. `walks` stand in the order of the probes."""

    question: Question
    a: Side
    b: Side
    probes: Sequence[Probe]
    walks: Sequence[Walk]
    changes: Sequence[Change]

    def side(self, name: str) -> Side:
        """The side with this port."""
        return self.a if name == self.a.name else self.b

    def other(self, side: Side) -> Side:
        """The side that is not this one."""
        return self.b if side is self.a else self.a


# ---- the journal ----


def _since(facts: Facts, side: Side, setting: str) -> Since | None:
    """The latest change of a setting of a port."""
    key = f"ports {side.row.id}"
    for change in facts.changes:
        old, new = change.before.get(key), change.after.get(key)
        if isinstance(new, dict) and new.get("of") == side.name:
            was = old.get(setting) if isinstance(old, dict) else None
            if not isinstance(old, dict) or was != new.get(setting):
                return _said(change)
    return None


def _since_rule(facts: Facts, rule: int) -> Since | None:
    key = f"rules {rule}"
    return next((_said(c) for c in facts.changes if key in c.after and key not in c.before), None)


def _said(change: Change) -> Since:
    return Since(when=change.when, who=change.who.name, what=change.what)


def _later(facts: Facts, setting: str) -> Side:
    """The side of which a setting was changed last; B when nobody knows."""
    one, other = (_since(facts, side, setting) for side in (facts.a, facts.b))
    return facts.a if one is not None and (other is None or one.when > other.when) else facts.b


def _earlier_switch(facts: Facts, side: Side) -> str | None:
    """The switch that a port was on before its cable was pulled; else the other side's."""
    key = f"ports {side.row.id}"
    for change in facts.changes:
        old, new = change.before.get(key), change.after.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and new.get("of") == side.name:
            switch = old.get("switch")
            if switch is not None and new.get("switch") is None:
                return str(switch)
    return facts.other(side).port.switch


# ---- what is plainly not there ----


def _set(port: str, *words: str) -> list[list[str]]:
    return [["vswitch", "port", "set", port, *words]]


def _restart(vm: str) -> list[list[str]]:
    return [["vswitch", "vm", "stop", vm, "--force"], ["vswitch", "vm", "start", vm]]


def _connect(side: Side, switch: str) -> list[list[str]]:
    if side.vm is not None:
        return [["vswitch", "nic", "connect", side.name, switch]]
    return _set(side.name, "--switch", switch)


def _standing(facts: Facts, side: Side) -> Iterator[Cause]:
    name = side.name
    if side.vm is not None and side.vm.state != "running":
        vm = side.vm
        yield Cause(
            kind="vm_stopped",
            port=name,
            sentence=f"VM {vm.name} is {vm.state}" + (f": {vm.reason.rstrip('.')}" if vm.reason else ""),
            mend=[["vswitch", "vm", "start", vm.name]] if vm.state in ("stopped", "crashed") else [],
            advice="" if vm.state in ("stopped", "crashed") else "wait until it has come to rest",
        )
    if side.port.switch is None:
        switch = _earlier_switch(facts, side)
        yield Cause(
            kind="cable",
            port=name,
            sentence=f"the cable of {name} is out: it is connected to no switch",
            since=_since(facts, side, "switch"),
            mend=_connect(side, switch) if switch else [],
            advice="" if switch else "connect it to a switch",
        )
    if not side.port.enabled:
        yield Cause(
            kind="disabled",
            port=name,
            sentence=f"{name} is disabled",
            since=_since(facts, side, "enabled"),
            mend=_set(name, "--enable"),
        )
    yield from _link(side)


def _link(side: Side) -> Iterator[Cause]:
    state = side.info.state
    stopped = side.vm is not None and side.vm.state != "running"
    if state is None or state.link or side.port.switch is None or stopped:
        return
    if state.fault is not None:
        yield Cause(
            kind="fault",
            port=side.name,
            sentence=f"{side.name} is stopped: {state.fault}",
            mend=_restart(side.vm.name) if side.vm else [],
            advice="reset its guest's driver, or its front end"
            if side.vm is None and side.port.kind == "vhost-user"
            else "",
        )
        return
    if side.vm is not None:
        why, advice = "its guest has not started the driver", f"`vswitch vm console {side.vm.name}` shows it"
    elif side.port.kind != "vhost-user":
        why, advice = "its device is down", "bring the device up"
    elif state.connected:
        why, advice = "its guest has not started the driver", "look at the guest"
    else:
        why = "no VM is connected to its socket"
        advice = f"start one with the arguments of `vswitch port show {side.name} --qemu-args`"
    yield Cause(kind="link_down", port=side.name, sentence=f"{side.name} has no link: {why}", advice=advice)


def _other_switch(facts: Facts) -> Iterator[Cause]:
    a, b = facts.a.port.switch, facts.b.port.switch
    if a is None or b is None or a == b:
        return
    movable = [side for side in (_later(facts, "switch"), facts.b, facts.a) if side.vm is not None]
    side = movable[0] if movable else facts.b
    switch = facts.other(side).port.switch
    assert switch is not None
    yield Cause(
        kind="other_switch",
        port=side.name,
        sentence=f"{facts.a.name} is on switch {a} and {facts.b.name} on switch {b}",
        since=_since(facts, side, "switch"),
        mend=_connect(side, switch) if movable else [],
        advice="" if movable else "only NICs of VMs can move to another switch",
    )


# ---- what the pipeline does ----


def _pipeline(facts: Facts) -> Iterator[Cause]:
    for probe, walk in zip(facts.probes, facts.walks, strict=True):
        if not walk.arrives:
            yield _stop(facts, probe, walk)


def _stop(facts: Facts, probe: Probe, walk: Walk) -> Cause:
    drops = [step for step in walk.trace.steps if step.kind == "drop"]
    ours = [step for step in drops if step.port in (probe.sender, probe.receiver)]
    step = next(reversed(ours or drops), None)
    reason = step.reason if step is not None else None
    at = facts.side(step.port) if step is not None and step.port is not None else facts.side(probe.sender)
    what = f"{probe.what} from {probe.sender} to {probe.receiver}"
    nobody_dropped = reason in (None, "no_destination")
    apart = common_vid(facts.a.port.vlan, facts.b.port.vlan) is None
    elsewhere = any(one.kind == "fdb" and one.port != probe.receiver for one in walk.trace.steps)
    if elsewhere or (nobody_dropped and not probe.group and not apart):
        return _fdb(facts, probe, walk)
    if reason in _VLAN_REASONS or (nobody_dropped and apart):
        return _vlan(facts)
    if reason == "acl_deny":
        return _acl(facts, probe, at, _rule_of(walk, at.name))
    if reason == "spoofed_mac":
        return _spoofing(facts, at, probe.way, f"{what} does not have the MAC of its port")
    if reason == "mtu_exceeded":
        return _mtu(facts, at, probe.way, facts.question.size or at.port.mtu)
    known = _REASONS.get(reason or "")
    return Cause(
        kind="other",
        port=at.name,
        way=probe.way,
        reason=reason,
        sentence=f"{what} is lost at {at.name}: {known.sentence if known else 'it is not given there'}",
        advice=known.way_out.replace("PORT", at.name) if known else "",
    )


def _rule_of(walk: Walk, port: str) -> TraceStep | None:
    entries = [step for step in walk.trace.steps if step.kind == "entry" and step.port == port]
    return entries[-1] if entries else None


def _acl(facts: Facts, probe: Probe, at: Side, step: TraceStep | None) -> Cause:
    number = step.rule if step is not None else None
    row = next((rule for rule in at.row.rules if rule.id == number), None)
    if row is None:
        return Cause(
            kind="acl", port=at.name, way=probe.way, rule=number, sentence=f"a rule of {at.name} denies it"
        )
    direction = "from VM" if row.rule.direction == "out" else "to VM"
    return Cause(
        kind="acl",
        port=at.name,
        way=probe.way,
        rule=row.id,
        reason="acl_deny",
        sentence=f"rule {row.id} of {at.name} drops {probe.what}, {direction}: {rule_text(row.rule)}",
        since=_since_rule(facts, row.id),
        mend=[_acl_mend(facts, probe, at, row)],
    )


def _acl_mend(facts: Facts, probe: Probe, at: Side, row: RuleRow) -> list[str]:
    """The rule goes when it is about few frames and alone; else the frames are allowed above it."""
    rule = row.rule
    delete = ["vswitch", "acl", "delete", at.name, "--rule", str(row.id)]
    same = [other.rule for other in at.row.rules if other.rule.direction == rule.direction]
    narrow = rule.model_dump(
        exclude_defaults=True, exclude={"direction", "action", "weight", "comment", "vlan"}
    )
    lower = any(other.action == "deny" and other.weight < rule.weight for other in same)
    taken = {other.weight for other in same}
    weight = next((weight for weight in range(rule.weight + 1, 65536) if weight not in taken), None)
    if (narrow and not lower) or weight is None:
        return delete
    match = _allowed(facts.question, probe, at is facts.b)
    if match is None:
        return delete
    allow = ["--direction", rule.direction, "--action", "allow", "--weight", str(weight)]
    return ["vswitch", "acl", "add", at.name, *allow, *match]


def _allowed(question: Question, probe: Probe, is_b: bool) -> list[str] | None:
    """What a rule has to say to allow this probe; None: there are no words for it."""
    if probe.protocol is None:
        return ["--ethertype", "arp"] if question.version == 4 else None
    side = "--local-port" if is_b else "--remote-port"
    ports = [side, str(question.port)] if question.port is not None else []
    return ["--protocol", question.protocol, *ports]


def _vlan(facts: Facts) -> Cause:
    """Two ports without a VLAN in common. The one that was changed last is put right."""
    side = _later(facts, "vlan")
    other = facts.other(side)
    texts = [f"{one.name} ({vlan_text(one.port.vlan)})" for one in (facts.a, facts.b)]
    vid = next(iter(sends(other.port.vlan)), UNTAGGED)
    return Cause(
        kind="vlan",
        port=side.name,
        reason="vlan_not_member",
        sentence=f"{' and '.join(texts)} have no VLAN in common",
        since=_since(facts, side, "vlan"),
        mend=_set(side.name, *_join_vlan(side.port.vlan, vid)),
    )


def _join_vlan(vlan: Vlan, vid: int) -> list[str]:
    """The options that make a port with this mode a member of a VLAN."""
    if vid == UNTAGGED:
        return ["--vlan-mode", "untagged"]
    if not isinstance(vlan, VlanTrunk):
        return ["--vlan", str(vid)]
    native = ["--native-vlan", str(vlan.native_vid)] if vlan.native_vid is not None else []
    return ["--trunk", f"{vlan.allowed},{vid}", *native]


def _spoofing(facts: Facts, at: Side, way: Way | None, sentence: str, certain: bool = True) -> Cause:
    return Cause(
        kind="spoof_guard",
        port=at.name,
        way=way,
        reason="spoofed_mac",
        sentence=f"{sentence}, and {at.name} may send from {at.port.mac} only",
        since=_since(facts, at, "allow_spoofing") or _since(facts, at, "mac"),
        mend=_set(at.name, "--allow-spoofing"),
        certain=certain,
    )


def _mtu(facts: Facts, at: Side, way: Way | None, size: int, certain: bool = True) -> Cause:
    lost = (
        f"{at.grown('mtu_exceeded')} packets were larger than"
        if not certain
        else f"{size} bytes are more than"
    )
    return Cause(
        kind="mtu",
        port=at.name,
        way=way,
        reason="mtu_exceeded",
        sentence=f"{lost} the MTU of {at.name}, {at.port.mtu}",
        since=_since(facts, at, "mtu"),
        mend=_set(at.name, "--mtu", str(size)),
        certain=certain,
    )


def _fdb(facts: Facts, probe: Probe, walk: Walk) -> Cause:
    """Nobody dropped it, and it did not come: the switch does not know its address, or knows wrong."""
    receiver = facts.side(probe.receiver)
    switch = receiver.port.switch or ""
    mac = (
        (facts.question.to_mac if receiver is facts.b else facts.question.from_mac) or receiver.port.mac or ""
    )
    known = [step for step in walk.trace.steps if step.kind == "fdb"]
    vid = common_vid(facts.side(probe.sender).port.vlan, receiver.port.vlan) or UNTAGGED
    vlan = ["--vlan", str(vid)] if vid else []
    if known:
        return Cause(
            kind="fdb_elsewhere",
            port=known[-1].port or "",
            way=probe.way,
            sentence=f"switch {switch} believes {mac} behind {known[-1].port}, not behind {receiver.name}",
            mend=[["vswitch", "fdb", "delete", switch, mac, *vlan]],
        )
    own = mac == receiver.port.mac
    # What answers from that address must be allowed to; a port that may spoof gets unknown addresses, too.
    mend = _set(receiver.name, "--allow-spoofing")
    if own or receiver.port.allow_spoofing:
        mend = [["vswitch", "fdb", "add", switch, mac, receiver.name, *vlan]]
    return Cause(
        kind="no_fdb_entry",
        port=receiver.name,
        way=probe.way,
        reason="no_destination",
        sentence=f"switch {switch} does not know {mac} behind {receiver.name}, "
        f"whose own MAC is {receiver.port.mac}",
        mend=mend,
    )


# ---- what was counted ----


def _counted(facts: Facts) -> Iterator[Cause]:
    for side in (facts.a, facts.b):
        way: Way = "there" if side is facts.a else "back"
        for reason in side.after.stats.drops:
            grown = side.grown(reason)
            if grown <= 0:
                continue
            if reason == "acl_deny":
                yield from _denied(facts, side)
            else:
                yield from _growing(facts, side, way, reason)


def _growing(facts: Facts, side: Side, way: Way, reason: str) -> Iterator[Cause]:
    grown = side.grown(reason)
    name, seconds = side.name, f"{facts.question.seconds:g} s"
    if reason == "spoofed_mac":
        text = f"{grown} frames in {seconds} came from {name} with another MAC than its own"
        yield _spoofing(facts, side, way, text, certain=False)
    elif reason == "mtu_exceeded":
        yield _mtu(facts, side, None, 1500 if side.port.mtu < 1500 else _MTU_MAX, certain=False)
    elif reason == "storm_limit":
        limit = side.port.storm_limit
        better = STORM_LIMIT_DEFAULT if limit < STORM_LIMIT_DEFAULT else min(limit * 10, 0xFFFFFFFF)
        yield Cause(
            kind="storm_limit",
            port=name,
            way=way,
            reason=reason,
            sentence=f"{name} sends more broadcasts and the like than its storm limit, {limit} packets/s: "
            f"{grown} were lost in {seconds}, and ARP is among them",
            since=_since(facts, side, "storm_limit"),
            mend=_set(name, "--storm-limit", str(better)),
            certain=False,
        )
    elif reason == "rx_full":
        yield _full(side, way="back" if side is facts.a else "there", seconds=seconds)
    elif reason not in ("port_down", "vlan_not_member"):
        # Those two are told better by other evidence: a link that is down, VLANs that differ.
        yield _other(facts, side, way, reason)


def _full(side: Side, way: Way, seconds: str) -> Cause:
    taken = side.after.stats.to_packets - side.before.stats.to_packets
    lost = side.grown("rx_full")
    stuck = not taken
    how = "its guest takes none" if stuck else f"its guest took {taken} and had no room for more"
    restart = _restart(side.vm.name) if stuck and side.vm else []
    return Cause(
        kind="rx_full",
        port=side.name,
        way=way,
        reason="rx_full",
        sentence=f"the receive ring of {side.name} is full, {how}: {lost} frames were lost in {seconds}",
        mend=restart,
        advice="" if restart else "its guest hangs or is too slow: look at it, or reset its driver",
        certain=stuck,
    )


def _denied(facts: Facts, side: Side) -> Iterator[Cause]:
    """Rules that name addresses, which the probes could not know, and that denied something meanwhile."""
    question = facts.question
    if question.addresses_known:
        return
    for row in side.row.rules:
        rule = row.rule
        grown = side.after.rules.get(row.id, 0) - side.before.rules.get(row.id, 0)
        names = rule.local_ip is not None or rule.remote_ip is not None
        fits = rule.protocol_number in (None, question.protocol_number)
        if rule.action == "deny" and grown > 0 and names and fits:
            yield Cause(
                kind="acl",
                port=side.name,
                rule=row.id,
                reason="acl_deny",
                sentence=f"rule {row.id} of {side.name} dropped {grown} frames in {question.seconds:g} s: "
                f"{rule_text(rule)}",
                since=_since_rule(facts, row.id),
                mend=[["vswitch", "acl", "delete", side.name, "--rule", str(row.id)]],
                certain=False,
            )


def _other(facts: Facts, side: Side, way: Way, reason: str) -> Cause:
    known = _REASONS.get(reason)
    advice = known.way_out.replace("PORT", side.name) if known else ""
    if reason == "no_destination":
        advice = "name the MAC that it sends to: --to-mac"
    lost = f"{side.grown(reason)} frames were lost at {side.name} in {facts.question.seconds:g} s"
    return Cause(
        kind="vlan" if reason in _VLAN_REASONS else "no_fdb_entry" if reason == "no_destination" else "other",
        port=side.name,
        way=way,
        reason=reason,
        sentence=f"{lost}, because {known.sentence if known else reason}",
        advice=advice,
        certain=False,
    )


# ---- the answer ----


def _naming_addresses(facts: Facts) -> Iterator[str]:
    """The rules that name an IP address and may be about the packets that are asked about."""
    for side in (facts.a, facts.b):
        for row in side.row.rules:
            fits = row.rule.protocol_number in (None, facts.question.protocol_number)
            if fits and (row.rule.local_ip is not None or row.rule.remote_ip is not None):
                yield f"rule {row.id} of {side.name}"


def _unique(causes: Iterator[Cause]) -> Iterator[Cause]:
    """Each cause once: what stops a packet stops ARP, too, and shows in the counters."""
    seen: set[tuple[str, str, int | None]] = set()
    for cause in causes:
        key = (cause.kind, cause.port, cause.rule)
        if key not in seen:
            seen.add(key)
            yield cause


def _causes(facts: Facts) -> Iterator[Cause]:
    standing = [*_standing(facts, facts.a), *_standing(facts, facts.b), *_other_switch(facts)]
    yield from standing
    for cause in _pipeline(facts):
        # A port without a link or switch drops everything: that is said already.
        if not (standing and cause.reason in ("port_down", "no_destination", "not_configured")):
            yield cause
    yield from _counted(facts)


def judge(facts: Facts) -> Why:
    """The answer."""
    causes = sorted(_unique(_causes(facts)), key=lambda cause: not cause.certain)
    said = list(remarks(facts.a.port, facts.b.port))
    certain = any(cause.certain for cause in causes)
    if not facts.question.addresses_known and (rules := list(_naming_addresses(facts))):
        said.append(f"IP addresses are not known (--from-ip, --to-ip), and {', '.join(rules)} names some")
    silent = [s.name for s in (facts.a, facts.b) if s.after.stats.from_packets == s.before.stats.from_packets]
    if silent and facts.question.seconds and not certain:
        said.append(
            f"{' and '.join(silent)} sent nothing in {facts.question.seconds:g} s: what guests really send "
            "is seen while it is being tried"
        )
    question = facts.question
    return Why(
        from_port=facts.a.name,
        to_port=facts.b.name,
        subject=question.protocol + (f"/{question.port}" if question.port is not None else ""),
        ok=not causes,
        causes=causes,
        walks=list(facts.walks),
        remarks=said,
    )
