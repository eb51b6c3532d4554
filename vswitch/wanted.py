"""The wanted state: which switches, ports, rules and VMs there shall be; its changes as pure functions.

A `State` is a value. A change takes one and returns another, or raises an error that names what is in the
way; nothing is half-done. Numbers (`id`) are what the data plane knows things by: the lowest that is free,
and not reused while in use.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from vswitch import errors
from vswitch.devices import interface_name, is_ours
from vswitch.model import (
    AclRule,
    Direction,
    FdbStatic,
    Nic,
    Port,
    PortChange,
    PortSettings,
    Switch,
    SwitchChange,
    VlanAny,
    Vm,
    VmCreate,
)

SWITCH_IDS = range(1, 1024)
PORT_IDS = range(1, 4096)
RULES_PER_PORT_MAX = 65535
HOST_PORT, UPLINK_PORT = "host", "uplink"
NICS_PER_VM_MAX = 16

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class SwitchRow:
    """A switch and its number."""

    id: int
    switch: Switch


@dataclass(frozen=True)
class RuleRow:
    """A rule and its number, unique among all rules."""

    id: int
    rule: AclRule


@dataclass(frozen=True)
class PortRow:
    """A port, its number, and its rules in the order in which they were made."""

    id: int
    port: Port
    rules: tuple[RuleRow, ...] = ()


def _empty() -> Mapping[K, V]:
    return MappingProxyType({})


@dataclass(frozen=True)
class State:
    """All that is wanted. Keys are names; static FDB entries are keyed by (switch, vid, mac)."""

    switches: Mapping[str, SwitchRow] = field(default_factory=_empty)
    ports: Mapping[str, PortRow] = field(default_factory=_empty)
    vms: Mapping[str, Vm] = field(default_factory=_empty)
    statics: Mapping[tuple[str, int, str], str] = field(default_factory=_empty)
    next_rule_id: int = 1


def _with(mapping: Mapping[K, V], key: K, value: V) -> Mapping[K, V]:
    return MappingProxyType({**mapping, key: value})


def _without(mapping: Mapping[K, V], keys: Iterable[K]) -> Mapping[K, V]:
    gone = set(keys)
    return MappingProxyType({key: value for key, value in mapping.items() if key not in gone})


def _free(ids: range, used: Iterable[int], what: str) -> int:
    taken = set(used)
    for number in ids:
        if number not in taken:
            return number
    raise errors.ConflictError(f"there are {len(ids)} {what} already, and no more are possible")


def _suggest(name: str, names: Iterable[str], what: str) -> str:
    known = sorted(names)
    if not known:
        return f"there is no {what} yet"
    return f"there are: {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"


# ---- looking things up ----


def switch_row(state: State, name: str) -> SwitchRow:
    """The switch with this name."""
    if name not in state.switches:
        raise errors.NotFoundError(f"no switch is named {name}", _suggest(name, state.switches, "switch"))
    return state.switches[name]


def port_row(state: State, name: str) -> PortRow:
    """The port with this name."""
    if name not in state.ports:
        owner = name.partition("/")[0]
        if owner not in state.switches and owner not in state.vms:
            way_out = f"there is no VM or switch named {owner}"
        else:
            own = [port for port in state.ports if port.startswith(f"{owner}/")]
            way_out = f"{owner} has " + (", ".join(sorted(own)) if own else "no ports")
        raise errors.NotFoundError(f"no port is named {name}", way_out)
    return state.ports[name]


def vm(state: State, name: str) -> Vm:
    """The VM with this name."""
    if name not in state.vms:
        raise errors.NotFoundError(f"no VM is named {name}", _suggest(name, state.vms, "VM"))
    return state.vms[name]


def ports_of(state: State, owner: str) -> list[PortRow]:
    """The ports that a VM or switch owns, by number."""
    rows = [row for row in state.ports.values() if row.port.owner == owner]
    return sorted(rows, key=lambda row: row.id)


def ports_on(state: State, switch: str) -> list[PortRow]:
    """The ports that are connected to a switch, by number."""
    rows = [row for row in state.ports.values() if row.port.switch == switch]
    return sorted(rows, key=lambda row: row.id)


def check_owner_is_free(state: State, name: str) -> None:
    """Raises errors.AlreadyExistsError when a switch or a VM has this name."""
    if name in state.switches:
        raise errors.AlreadyExistsError(
            f"a switch is named {name} already", "VMs and switches share one namespace"
        )
    if name in state.vms:
        raise errors.AlreadyExistsError(
            f"a VM is named {name} already", "VMs and switches share one namespace"
        )


# ---- MACs ----


def make_mac(state: State) -> str:
    """A MAC that no port has: 52:54:00, as QEMU's own, and three random bytes."""
    used = {row.port.mac for row in state.ports.values()}
    while True:
        tail = secrets.token_bytes(3)
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail)
        if mac not in used:
            return mac


def _check_mac(state: State, port: Port) -> None:
    """One MAC, one port, on each switch: two would take turns in the FDB."""
    if port.switch is None or port.mac is None:
        return
    for row in ports_on(state, port.switch):
        if row.port.mac == port.mac and row.port.name != port.name:
            raise errors.AlreadyExistsError(
                f"{port.name} cannot have the MAC {port.mac}: {row.port.name} on switch {port.switch} has it",
                "leave the MAC out and one is made",
            )


# ---- switches ----


def add_switch(state: State, switch: Switch) -> State:
    """With one more switch; an internal one comes with its host port, an external one with its uplink too."""
    check_owner_is_free(state, switch.name)
    number = _free(SWITCH_IDS, (row.id for row in state.switches.values()), "switches")
    state = replace(state, switches=_with(state.switches, switch.name, SwitchRow(number, switch)))
    if switch.type != "private":
        # The host is trusted: bridges and containers behind it may have addresses of their own. Its interface
        # has an MTU.
        host = Port(
            name=f"{switch.name}/{HOST_PORT}",
            kind="host",
            switch=switch.name,
            allow_spoofing=True,
            mtu=1500,
            storm_limit=0,
        )
        state = _add_port(state, host)
    if switch.uplink is not None:
        _check_device(state, switch.uplink)
        # What comes from the wire has its own addresses, VLANs and priorities.
        uplink = Port(
            name=f"{switch.name}/{UPLINK_PORT}",
            kind="uplink",
            switch=switch.name,
            device=switch.uplink,
            vlan=VlanAny(),
            allow_spoofing=True,
            storm_limit=0,
            trust_pcp=True,
        )
        state = _add_port(state, uplink)
    return state


def set_switch(state: State, name: str, change: SwitchChange) -> State:
    """With the switch changed."""
    row = switch_row(state, name)
    new = row.switch.model_copy(update=change.model_dump(exclude_unset=True, exclude_none=True))
    return replace(state, switches=_with(state.switches, name, replace(row, switch=new)))


def delete_switch(state: State, name: str) -> State:
    """Without the switch, its host and uplink ports and its static entries."""
    switch_row(state, name)
    own = {row.port.name for row in ports_of(state, name) if _is_part(row.port)}
    others = {row.port.name for row in ports_on(state, name) + ports_of(state, name)} - own
    if others:
        raise errors.ConflictError(
            f"switch {name} has ports: {', '.join(sorted(others))}",
            "delete them, or connect them to another switch, first",
        )
    return replace(
        state,
        switches=_without(state.switches, [name]),
        ports=_without(state.ports, own),
        statics=_without(state.statics, [key for key in state.statics if key[0] == name]),
    )


# ---- ports ----


def _is_part(port: Port) -> bool:
    """Whether it comes and goes with its switch."""
    return port.kind in ("host", "uplink")


def _check_device(state: State, device: str) -> None:
    for row in state.ports.values():
        other = interface_name(row.port) if is_ours(row.port) else row.port.device
        if other == device:
            raise errors.AlreadyExistsError(f"port {row.port.name} uses the device {device} already")


def _check_kind(row: SwitchRow, port: Port) -> None:
    switch = row.switch
    if port.kind == "uplink" and switch.uplink is not None:
        raise errors.ConflictError(
            f"switch {switch.name} has its uplink, {switch.uplink}, already; a team of several comes later",
            "--kind netdev connects a device as any other",
        )
    if port.kind == "uplink":
        raise errors.ConflictError(
            f"switch {switch.name} is {switch.type} and has no uplink",
            f"`vswitch switch create NAME --type external --uplink {port.device}`",
        )
    if port.kind == "host" or port.name == f"{port.owner}/{HOST_PORT}":
        raise errors.ConflictError(
            f"{port.owner}/{HOST_PORT} is the host's own port",
            "internal and external switches have one; private ones never do",
        )


def _add_port(state: State, port: Port) -> State:
    if port.name in state.ports:
        raise errors.AlreadyExistsError(f"there is a port named {port.name} already")
    if port.mac is None:
        port = port.model_copy(update={"mac": make_mac(state)})
    _check_mac(state, port)
    number = _free(PORT_IDS, (row.id for row in state.ports.values()), "ports")
    return replace(state, ports=_with(state.ports, port.name, PortRow(number, port)))


def add_port(state: State, port: Port) -> State:
    """With one more port that belongs to a switch."""
    if port.owner in state.vms:
        raise errors.ConflictError(
            f"{port.owner} is a VM: its ports are made with it",
            "name the port SWITCH/NAME for a VM that others start",
        )
    row = switch_row(state, port.owner)
    _check_kind(row, port)
    if port.switch not in (None, port.owner):
        raise errors.ConflictError(
            f"{port.name} belongs to switch {port.owner} and cannot be made on {port.switch}"
        )
    if port.kind == "tap" and row.switch.type == "private" and port.device is None:
        # A private switch has VMs only; a tap that somebody else made is that somebody's VM.
        raise errors.ConflictError(
            f"switch {port.owner} is private: a tap of the host's own cannot be on it",
            "name the tap of your VM with --device, or use an internal switch",
        )
    given = port.model_fields_set
    update: dict[str, object] = {"switch": port.owner}
    if port.kind == "pcap" and "allow_spoofing" not in given:
        update["allow_spoofing"] = True  # a recording has many senders
    if port.kind == "netdev" and port.mac is None and "allow_spoofing" not in given:
        update["allow_spoofing"] = True  # nobody has said who is behind the device: that is learned
    for other in state.ports.values():
        if port.socket and other.port.socket == port.socket:
            raise errors.AlreadyExistsError(f"port {other.port.name} uses the socket {port.socket} already")
    if port.device is not None:
        _check_device(state, port.device)
    return _add_port(state, port.model_copy(update=update))


def set_port(state: State, name: str, change: PortChange) -> State:
    """With the port changed in the fields that were given."""
    row = port_row(state, name)
    update: dict[str, object] = {field: getattr(change, field) for field in change.model_fields_set}
    missing = [field for field, value in update.items() if value is None and field != "switch"]
    if missing:
        raise errors.InvalidInputError(f"{name}: {missing[0].replace('_', ' ')} cannot be nothing")
    if "switch" in update:
        _check_connection(state, row, change.switch)
    port = row.port.model_copy(update=update)
    _check_mac(state, port)
    if _is_part(row.port) and port.switch is None:
        raise errors.ConflictError(
            f"{name} is part of its switch", "set it to enabled=false to take it off the air"
        )
    statics = state.statics
    if port.switch != row.port.switch:
        statics = _without(statics, [key for key, owner in statics.items() if owner == name])
    return replace(state, ports=_with(state.ports, name, replace(row, port=port)), statics=statics)


def _check_connection(state: State, row: PortRow, switch: str | None) -> None:
    if switch is None:
        return
    switch_row(state, switch)
    if row.port.owner in state.switches and row.port.owner != switch:
        raise errors.ConflictError(
            f"{row.port.name} belongs to switch {row.port.owner}", "only NICs of VMs can move"
        )


def delete_port(state: State, name: str) -> State:
    """Without a port that belongs to a switch."""
    row = port_row(state, name)
    if _is_part(row.port):
        what = "host's port" if row.port.kind == "host" else "uplink"
        raise errors.ConflictError(
            f"{name} is the {what} of its switch and goes with it",
            f"`vswitch port set {name} --disable` takes it off the air",
        )
    if row.port.owner in state.vms:
        raise errors.ConflictError(
            f"{name} is a NIC of VM {row.port.owner}",
            f"`vswitch nic detach {name}`; it also goes when the VM is deleted",
        )
    return _drop_ports(state, [name])


def _drop_ports(state: State, names: list[str]) -> State:
    statics = _without(state.statics, [key for key, port in state.statics.items() if port in names])
    return replace(state, ports=_without(state.ports, names), statics=statics)


# ---- rules ----


_WAYS: dict[Direction, str] = {"in": "to VM", "out": "from VM"}


def add_rules(state: State, port: str, rules: list[AclRule]) -> State:
    """With more rules on a port: all of them, or an error that names the rule in the way."""
    row = port_row(state, port)
    taken: dict[tuple[Direction, int], int] = {(r.rule.direction, r.rule.weight): r.id for r in row.rules}
    if len(row.rules) + len(rules) > RULES_PER_PORT_MAX:
        raise errors.ConflictError(f"{port} cannot have more than {RULES_PER_PORT_MAX} rules")
    number = state.next_rule_id
    new: list[RuleRow] = []
    for rule in rules:
        key = (rule.direction, rule.weight)
        if key in taken:
            raise errors.AlreadyExistsError(
                f"{port} has a rule {_WAYS[rule.direction]} with weight {rule.weight}: rule {taken[key]}",
                "choose another weight, or delete that rule first",
            )
        taken[key] = number
        new.append(RuleRow(number, rule))
        number += 1
    ports = _with(state.ports, port, replace(row, rules=(*row.rules, *new)))
    return replace(state, ports=ports, next_rule_id=number)


def delete_rules(state: State, port: str, ids: set[int]) -> State:
    """Without these rules of a port."""
    row = port_row(state, port)
    missing = ids - {r.id for r in row.rules}
    if missing:
        raise errors.NotFoundError(
            f"{port} has no rule {min(missing)}", f"`vswitch acl list {port}` shows its rules"
        )
    rules = tuple(r for r in row.rules if r.id not in ids)
    return replace(state, ports=_with(state.ports, port, replace(row, rules=rules)))


def rule_of_weight(row: PortRow, direction: Direction, weight: int) -> RuleRow:
    """The rule of a port that has this weight."""
    for rule in row.rules:
        if rule.rule.direction == direction and rule.rule.weight == weight:
            return rule
    name = row.port.name
    raise errors.NotFoundError(
        f"{name} has no rule {_WAYS[direction]} with weight {weight}",
        f"`vswitch acl list {name}` shows its rules",
    )


# ---- static addresses ----


def add_static(state: State, switch: str, entry: FdbStatic) -> State:
    """With one more static entry."""
    switch_row(state, switch)
    row = port_row(state, entry.port)
    if row.port.switch != switch:
        raise errors.ConflictError(f"{entry.port} is not connected to switch {switch}")
    key = (switch, entry.vid, entry.mac)
    if state.statics.get(key, entry.port) != entry.port:
        raise errors.AlreadyExistsError(
            f"{entry.mac} is static on switch {switch} already, behind {state.statics[key]}"
        )
    return replace(state, statics=_with(state.statics, key, entry.port))


def delete_static(state: State, switch: str, vid: int, mac: str) -> State:
    """Without a static entry; unchanged when there is none."""
    switch_row(state, switch)
    key = (switch, vid, mac)
    return replace(state, statics=_without(state.statics, [key])) if key in state.statics else state


# ---- VMs ----


def add_vm(state: State, create: VmCreate) -> State:
    """With one more VM and its ports NAME/eth0, NAME/eth1, … ."""
    check_owner_is_free(state, create.name)
    fields = {name: getattr(create, name) for name in Vm.model_fields}
    state = replace(state, vms=_with(state.vms, create.name, Vm(**fields)))
    for index, nic in enumerate(create.nics):
        state = _add_port(state, _port_of_nic(state, f"{create.name}/eth{index}", nic))
    return state


def _port_of_nic(state: State, name: str, nic: Nic) -> Port:
    if nic.switch is not None:
        switch_row(state, nic.switch)
    settings = {field: getattr(nic, field) for field in PortSettings.model_fields}
    return Port(name=name, kind="vhost-user", switch=nic.switch, mac=nic.mac, queues=nic.queues, **settings)


def free_nic_name(state: State, name: str) -> str:
    """The port's name of a VM's next NIC: the lowest NAME/ethN that is free."""
    taken = {row.port.name for row in ports_of(state, name)}
    number = 0
    while f"{name}/eth{number}" in taken:
        number += 1
    return f"{name}/eth{number}"


def add_nic(state: State, name: str, port: str, nic: Nic) -> State:
    """With one more NIC of a VM, whose port has this name."""
    vm(state, name)
    if len(ports_of(state, name)) >= NICS_PER_VM_MAX:
        raise errors.ConflictError(f"VM {name} cannot have more than {NICS_PER_VM_MAX} NICs")
    return _add_port(state, _port_of_nic(state, port, nic))


def nic_row(state: State, name: str) -> PortRow:
    """The port with this name, which must be a NIC of a VM."""
    row = port_row(state, name)
    if row.port.owner not in state.vms:
        raise errors.ConflictError(
            f"{name} is no NIC of a VM: it belongs to switch {row.port.owner}",
            f"`vswitch port delete {name}`, or `vswitch port set {name} --disable`",
        )
    return row


def delete_nic(state: State, name: str) -> State:
    """Without a NIC of a VM, and its port."""
    nic_row(state, name)
    return _drop_ports(state, [name])


def delete_vm(state: State, name: str) -> State:
    """Without a VM and its ports."""
    vm(state, name)
    state = _drop_ports(state, [row.port.name for row in ports_of(state, name)])
    return replace(state, vms=_without(state.vms, [name]))
