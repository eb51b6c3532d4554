"""The policy compiler: from a port's settings to the entries of its tables, and from a change to flow mods.

Pure: settings come checked from the model (what still contradicts itself is a `PolicyError`), flow mods go
out as values; nothing is sent here. `compile_port()` gives all entries of a port, `changes()` the flow mods
that lead from one set of entries to another and leave alone, with their counters, those that stay.

Each port has tables for what its VM sends (`from_port`) and for what it gets (`to_port`). A frame is accepted
when the walk ends without a drop; every table has an entry of priority 0, so that every frame is counted:

    from_port   0 guard    1 VLAN in      2 neighbours         3 neighbour rules    4 ACL
    to_port     0 member   1 neighbours   2 neighbour rules    3 ACL                4 VLAN out

**VLANs.** Between VLAN in and VLAN out every frame carries its VLAN as on a trunk: an outermost tag of either
kind (802.1Q or 802.1ad) with its VID, or none for what untagged ports send. An ACL rule on a VLAN means that
one. Only the outermost tag is ever looked at or changed. Where taking a tag off would bare another one, and
so move the frame to a VLAN that its sender chose (double tagging), it is not taken off: an untagged or access
port may not send a priority tag around another tag, and a native VLAN's tag stays on a frame with two.

`controller/acl.py` says what the ACL's rules mean for neighbours, fragments, cut headers and connections.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

from controller.acl import AclTables, acl_entries, sorted_rules
from controller.entry import (
    PRIORITY_TAGGED,
    TAGGED,
    TPIDS,
    UNTAGGED,
    Kind,
    Note,
    cookie_of,
    eth_type,
    mac_field,
    simple_entry,
    tagged,
)
from controller.messages import (
    VID_PRESENT,
    Action,
    Command,
    Drop,
    DropReason,
    Field,
    FlowMod,
    Match,
    Oxm,
    PopVlan,
    PushVlan,
    SetField,
)
from controller.settings import Direction, PolicyError, PortPolicy, VlanMode, VlanPolicy

VID_MAX = 4094


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """All entries of a port's tables, or the flow mods that change them: each tuple is one transaction."""

    from_port: tuple[FlowMod, ...]
    to_port: tuple[FlowMod, ...]


class From(IntEnum):
    """The tables for what the VM sends."""

    GUARD = 0
    VLAN = 1
    NEIGHBOUR = 2
    NEIGHBOUR_RULES = 3
    ACL = 4


class To(IntEnum):
    """The tables for what the VM gets."""

    MEMBER = 0
    NEIGHBOUR = 1
    NEIGHBOUR_RULES = 2
    ACL = 3
    VLAN = 4


def vid_prefixes(first: int, last: int) -> Iterator[Field]:
    """The VIDs first..last (inclusive) as the fewest fields with a mask; at most 22."""
    while first <= last:
        size = first & -first
        while first + size - 1 > last:
            size >>= 1
        if size == 1:
            yield tagged(first)
        else:
            yield Field(Oxm.VLAN_VID, VID_PRESENT | first, VID_PRESENT | (VID_PRESENT - size))
        first += size


def _set_vid(vid: int) -> Action:
    return SetField(tagged(vid))


# ---- the guard ----


def _guard(policy: PortPolicy) -> Iterator[FlowMod]:
    group = Field(Oxm.ETH_SRC, 1 << 40, 1 << 40)
    bad = Drop(DropReason.BAD_SOURCE_MAC)
    yield simple_entry(From.GUARD, 3, Match((group,)), (Kind.GUARD, Note.GROUP_MAC), bad)
    yield simple_entry(From.GUARD, 3, Match((Field(Oxm.ETH_SRC, 0),)), (Kind.GUARD, Note.ZERO_MAC), bad)
    own = Match((mac_field(Oxm.ETH_SRC, policy.mac),))
    yield simple_entry(From.GUARD, 2, own, (Kind.GUARD, Note.OWN_MAC), From.VLAN)
    if policy.allow_spoofing:
        yield simple_entry(From.GUARD, 0, Match(), (Kind.GUARD, Note.ANY_MAC), From.VLAN)
    else:
        spoofed = Drop(DropReason.SPOOFED_MAC)
        yield simple_entry(From.GUARD, 0, Match(), (Kind.GUARD, Note.OTHER_MAC), spoofed)


# ---- VLANs ----


class _VlanIn:
    """Makes the entries of the VLAN in table."""

    def __init__(self, policy: PortPolicy) -> None:
        self.vlan = policy.vlan
        # A tag's PCP is the VM's word; without trust it is taken back.
        self.reset: tuple[Action, ...] = () if policy.trust_pcp else (SetField(Field(Oxm.VLAN_PCP, 0)),)

    def take(self, priority: int, field: Field, note: Note, actions: tuple[Action, ...]) -> FlowMod:
        cookie = cookie_of(Kind.VLAN_IN, note)
        return FlowMod(From.VLAN, priority, Match((field,)), cookie, actions, From.NEIGHBOUR)

    @staticmethod
    def refuse(priority: int, match: Match, note: Note, reason: DropReason) -> FlowMod:
        return simple_entry(From.VLAN, priority, match, (Kind.VLAN_IN, note), Drop(reason))

    def untagged_side(self, vid: int | None) -> Iterator[FlowMod]:
        """What carries no VID gets `vid`, or none."""
        push: tuple[Action, ...] = () if vid is None else (PushVlan(), _set_vid(vid))
        untag: tuple[Action, ...] = (PopVlan(),) if vid is None else (_set_vid(vid), *self.reset)
        yield self.take(2, UNTAGGED, Note.TAKES_UNTAGGED, push)
        yield self.take(2, PRIORITY_TAGGED, Note.TAKES_PRIORITY, untag)

    def stacked(self, *outer: Field) -> Iterator[FlowMod]:
        """Refuses another tag behind `outer`. Without a tag outside, that other is one cut short."""
        for field in outer:
            for tpid in TPIDS:
                match = Match((eth_type(tpid), field))
                yield self.refuse(3, match, Note.REFUSES_STACKED, DropReason.VLAN_TAGGED)

    def trunk(self) -> Iterator[FlowMod]:
        for first, last in self.vlan.allowed:
            for field in vid_prefixes(first, last):
                yield self.take(1, field, Note.TAKES_TAGGED, self.reset)
        if self.vlan.native is not None:
            yield from self.untagged_side(self.vlan.native)
            yield from self.stacked(UNTAGGED)
        else:
            reason = DropReason.VLAN_UNTAGGED
            for field in (UNTAGGED, PRIORITY_TAGGED):
                yield self.refuse(2, Match((field,)), Note.REFUSES_UNTAGGED, reason)
        yield self.refuse(0, Match(), Note.REFUSES_VLAN, DropReason.VLAN_NOT_ALLOWED)

    def entries(self) -> Iterator[FlowMod]:
        """All entries of the table."""
        if self.vlan.mode is VlanMode.TRUNK:
            yield from self.trunk()
        elif self.vlan.mode is VlanMode.ANY:
            if self.reset:
                yield self.take(1, TAGGED, Note.TAKES_ALL, self.reset)
            yield simple_entry(From.VLAN, 0, Match(), (Kind.VLAN_IN, Note.TAKES_ALL), From.NEIGHBOUR)
        else:
            yield from self.untagged_side(self.vlan.vid)
            yield from self.stacked(UNTAGGED, PRIORITY_TAGGED)
            yield self.refuse(0, Match(), Note.REFUSES_TAGGED, DropReason.VLAN_TAGGED)


def _members(vlan: VlanPolicy) -> Iterator[FlowMod]:
    fields: list[Field] = []
    if vlan.mode is VlanMode.UNTAGGED:
        # A priority tag, from a port of mode any, says nothing about a VLAN.
        fields = [UNTAGGED, PRIORITY_TAGGED]
    elif vlan.mode is VlanMode.ACCESS and vlan.vid is not None:
        fields = [tagged(vlan.vid)]
    elif vlan.mode is VlanMode.TRUNK:
        fields = [field for first, last in vlan.allowed for field in vid_prefixes(first, last)]
        if vlan.native is not None and not any(first <= vlan.native <= last for first, last in vlan.allowed):
            fields.append(tagged(vlan.native))
    member = (Kind.MEMBER, Note.IS_MEMBER)
    for field in fields:
        yield simple_entry(To.MEMBER, 1, Match((field,)), member, To.NEIGHBOUR)
    if vlan.mode is VlanMode.ANY:
        yield simple_entry(To.MEMBER, 0, Match(), member, To.NEIGHBOUR)
        return
    refused = Drop(DropReason.VLAN_NOT_MEMBER)
    if vlan.mode is VlanMode.UNTAGGED:
        for tpid in TPIDS:
            match = Match((eth_type(tpid), PRIORITY_TAGGED))
            yield simple_entry(To.MEMBER, 2, match, (Kind.MEMBER, Note.NO_MEMBER), refused)
    yield simple_entry(To.MEMBER, 0, Match(), (Kind.MEMBER, Note.NO_MEMBER), refused)


def _vlan_out(vlan: VlanPolicy) -> Iterator[FlowMod]:
    untag = {VlanMode.UNTAGGED: 0, VlanMode.ACCESS: vlan.vid, VlanMode.TRUNK: vlan.native}.get(vlan.mode)
    if untag is not None:
        yield simple_entry(
            To.VLAN, 1, Match((tagged(untag),)), (Kind.VLAN_OUT, Note.GIVES_UNTAGGED), PopVlan()
        )
    if vlan.mode is VlanMode.TRUNK and untag is not None:
        for tpid in TPIDS:
            match = Match((eth_type(tpid), tagged(untag)))
            yield simple_entry(To.VLAN, 2, match, (Kind.VLAN_OUT, Note.GIVES_STACKED), None)
    yield simple_entry(To.VLAN, 0, Match(), (Kind.VLAN_OUT, Note.GIVES_AS_IS), None)


# ---- a port ----


def _check_vlan(vlan: VlanPolicy) -> None:
    vids = [vid for vid in (vlan.vid, vlan.native) if vid is not None]
    vids += [vid for bounds in vlan.allowed for vid in bounds]
    for vid in vids:
        if not 1 <= vid <= VID_MAX:
            raise PolicyError(f"VLAN {vid} does not exist; VLANs are 1..{VID_MAX}")
    for first, last in vlan.allowed:
        if first > last:
            raise PolicyError(f"VLANs {first}-{last} are no range")
    for low, high in pairwise(sorted(vlan.allowed)):
        if low[1] >= high[0]:
            raise PolicyError(f"VLANs {low[0]}-{low[1]} and {high[0]}-{high[1]} overlap")
    if (vlan.mode is VlanMode.ACCESS) != (vlan.vid is not None):
        raise PolicyError("a port of mode access, and no other, has one VLAN of its own")
    if vlan.mode is not VlanMode.TRUNK and (vlan.allowed or vlan.native is not None):
        raise PolicyError("only a port of mode trunk has a list of VLANs or a native VLAN")


def compile_port(policy: PortPolicy) -> CompiledPolicy:
    """All entries of a port's tables.

    Raises:
        PolicyError: where the settings contradict themselves; nothing is half done then.
    """
    if len(policy.mac) != 6 or policy.mac[0] & 1 or not any(policy.mac):
        raise PolicyError(f"{policy.mac.hex(':')} is no MAC that a port can have")
    _check_vlan(policy.vlan)
    outgoing = sorted_rules(policy.rules, Direction.OUT)
    incoming = sorted_rules(policy.rules, Direction.IN)
    stateful = any(rule.idle_timeout_s is not None for rule in policy.rules)
    from_port = (
        *_guard(policy),
        *_VlanIn(policy).entries(),
        *acl_entries(outgoing, AclTables(From.NEIGHBOUR, From.NEIGHBOUR_RULES, From.ACL), None, stateful),
    )
    to_port = (
        *_members(policy.vlan),
        *acl_entries(incoming, AclTables(To.NEIGHBOUR, To.NEIGHBOUR_RULES, To.ACL), To.VLAN, stateful),
        *_vlan_out(policy.vlan),
    )
    return CompiledPolicy(from_port, to_port)


def _change(old: tuple[FlowMod, ...], new: tuple[FlowMod, ...]) -> Iterator[FlowMod]:
    before = {(mod.table, mod.priority, mod.match): mod for mod in old}
    added = []
    for mod in new:
        if before.pop((mod.table, mod.priority, mod.match), None) != mod:
            added.append(mod)
    for mod in before.values():
        yield replace(mod, command=Command.DELETE_STRICT, actions=(), goto=None)
    yield from added


def changes(old: CompiledPolicy | None, new: CompiledPolicy) -> CompiledPolicy:
    """The flow mods that lead from the entries of `old` (None: empty tables) to those of `new`.

    Entries that stay as they are are not touched, so their counters go on. Deletions come first; each tuple
    is meant to be one transaction.
    """
    if old is None:
        return new
    return CompiledPolicy(
        tuple(_change(old.from_port, new.from_port)), tuple(_change(old.to_port, new.to_port))
    )
