"""From what is wanted to orders: pure functions from values to values.

`target(state)` says what the data plane shall hold, in its own numbers; `plan(target, actual)` lists the
orders that lead from what it holds to that. Ports are added dark, get their rules, and are put on the air
last; what goes, goes the other way round. Carrying the orders out is the business of `apply.py`.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from controller import settings
from controller.messages import FlowMod
from controller.policy import CompiledPolicy, changes, compile_port
from vswitch import errors, orders
from vswitch.model import AclRule, Port, VlanAccess, VlanTrunk
from vswitch.wanted import PortRow, RuleRow, State
from vswitch.words import parse_vlan_ranges

_KINDS = {
    "vhost-user": orders.KIND_VHOST,
    "tap": orders.KIND_TAP,
    "host": orders.KIND_TAP,
    "pcap": orders.KIND_PCAP,
    "netdev": orders.KIND_PACKET,
    "uplink": orders.KIND_PACKET,
}
_FDB_SHARE_MAX = 1024


@dataclass(frozen=True)
class TargetPort:
    """A port as the data plane knows it. `row` is what it was made from; policy None: it has no rules yet."""

    add: orders.PortAdd
    set: orders.PortSet
    row: PortRow | None = None
    policy: CompiledPolicy | None = None


@dataclass(frozen=True)
class Target:
    """What the data plane holds, or shall hold.

    `statics`: (switch, vid, mac) to port, as numbers and bytes.
    """

    switches: Mapping[int, orders.SwitchAdd] = field(default_factory=dict)
    ports: Mapping[int, TargetPort] = field(default_factory=dict)
    statics: Mapping[tuple[int, int, bytes], int] = field(default_factory=dict)


def vm_socket(run_dir: Path, port: str) -> Path:
    """Where the QEMU of a VM listens for the switch: one socket per NIC, in the VM's run folder."""
    owner, _, name = port.partition("/")
    return run_dir / "vms" / owner / f"{name}.sock"


def port_socket(run_dir: Path, port: Port) -> Path:
    """The socket of a vhost-user port: its own, or the one that is made for it."""
    if port.socket is not None:
        return Path(port.socket)
    return run_dir / "ports" / (port.name.replace("/", ".") + ".sock")


# ---- a port's policy ----


def _bounds(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _rule(row: RuleRow) -> settings.AclRule:
    rule: AclRule = row.rule
    return settings.AclRule(
        id=row.id,
        direction=settings.Direction(rule.direction),
        verdict=settings.Verdict(rule.action),
        weight=rule.weight,
        local_mac=orders.mac_bytes(rule.local_mac) if rule.local_mac else None,
        remote_mac=orders.mac_bytes(rule.remote_mac) if rule.remote_mac else None,
        local_prefix=ipaddress.ip_network(rule.local_ip) if rule.local_ip else None,
        remote_prefix=ipaddress.ip_network(rule.remote_ip) if rule.remote_ip else None,
        protocol=rule.protocol_number,
        local_ports=_bounds(rule.local_port) if rule.local_port else None,
        remote_ports=_bounds(rule.remote_port) if rule.remote_port else None,
        icmp_type=rule.icmp_type,
        icmp_code=rule.icmp_code,
        ethertype=rule.ethertype,
        vlan=rule.vlan,
        idle_timeout_s=rule.idle_timeout if rule.stateful else None,
    )


def policy_of(row: PortRow) -> settings.PortPolicy:
    """A port's settings as the policy compiler takes them."""
    port = row.port
    if isinstance(port.vlan, VlanAccess):
        vlan = settings.VlanPolicy(settings.VlanMode.ACCESS, vid=port.vlan.vid)
    elif isinstance(port.vlan, VlanTrunk):
        allowed = parse_vlan_ranges(port.vlan.allowed)
        vlan = settings.VlanPolicy(settings.VlanMode.TRUNK, allowed=allowed, native=port.vlan.native_vid)
    else:
        vlan = settings.VlanPolicy(settings.VlanMode(port.vlan.mode))
    return settings.PortPolicy(
        mac=orders.mac_bytes(port.mac),
        allow_spoofing=port.allow_spoofing,
        vlan=vlan,
        trust_pcp=port.trust_pcp,
        rules=tuple(_rule(rule) for rule in row.rules),
    )


# ---- what shall be ----


def _port_add(row: PortRow, state: State, run_dir: Path) -> orders.PortAdd:
    port = row.port
    owned_by_vm = port.owner in state.vms
    flags, address = 0, b""
    if port.kind == "vhost-user" and port.listen:
        flags = orders.ADD_LISTEN
    elif port.kind == "vhost-user":
        path = vm_socket(run_dir, port.name) if owned_by_vm else port_socket(run_dir, port)
        try:
            address = orders.sockaddr_path(str(path))
        except ValueError as error:
            way_out = "give it a shorter name, or vswitchd a shorter --socket path"
            raise errors.InvalidInputError(f"port {port.name}: {error}", way_out) from error
    if port.replay:
        flags |= orders.ADD_PCAP_REPLAY
    if port.write:
        flags |= orders.ADD_PCAP_WRITE
    if port.timed:
        flags |= orders.ADD_PCAP_TIMED
    return orders.PortAdd(row.id, _KINDS[port.kind], port.queues, flags, _fdb_limit(port, state), address)


def _fdb_limit(port: Port, state: State) -> int:
    """Learned addresses at most; 0: the data plane's default."""
    if port.kind == "uplink":
        # Behind an uplink is a whole network: it may fill the table, where other ports have a share of it.
        return state.switches[port.owner].switch.fdb_size
    if port.switch is None:
        return 0
    return min(_FDB_SHARE_MAX, max(1, state.switches[port.switch].switch.fdb_size // 4))


def _port_set(state: State, row: PortRow) -> orders.PortSet:
    port = row.port
    flags = (orders.FLAG_LEARN if port.allow_spoofing else 0) | (orders.FLAG_UP if port.enabled else 0)
    return orders.PortSet(
        row.id,
        state.switches[port.switch].id if port.switch is not None else 0,
        flags,
        port.storm_limit,
        port.mtu,
        orders.mac_bytes(port.mac),
        port.connection_limit,
    )


def target(state: State, run_dir: Path, before: Target | None = None) -> Target:
    """What the data plane shall hold; what has not changed since `before`, an earlier target, is as there."""
    known = {} if before is None else before.ports
    ports: dict[int, TargetPort] = {}
    for row in state.ports.values():
        old = known.get(row.id)
        if old is not None and old.row is row:
            ports[row.id] = old
            continue
        if old is not None and old.policy is not None and old.row is not None and _same_policy(old.row, row):
            policy = old.policy
        else:
            policy = _compiled(row)
        ports[row.id] = TargetPort(_port_add(row, state, run_dir), _port_set(state, row), row, policy)
    return Target(
        switches={
            row.id: orders.SwitchAdd(row.id, row.switch.fdb_size, row.switch.ageing_s)
            for row in state.switches.values()
        },
        ports=ports,
        statics={
            (state.switches[switch].id, vid, orders.mac_bytes(mac)): state.ports[port].id
            for (switch, vid, mac), port in state.statics.items()
        },
    )


def _compiled(row: PortRow) -> CompiledPolicy:
    try:
        return compile_port(policy_of(row))
    except settings.PolicyError as error:
        raise errors.InvalidInputError(f"port {row.port.name}: {error}") from error


def _same_policy(old: PortRow, new: PortRow) -> bool:
    one, other = old.port, new.port
    return (
        old.rules is new.rules
        and (one.mac, one.vlan) == (other.mac, other.vlan)
        and (one.allow_spoofing, one.trust_pcp) == (other.allow_spoofing, other.trust_pcp)
    )


# ---- how to get there ----


def _flow_mods(port_id: int, pipeline: int, mods: tuple[FlowMod, ...]) -> Iterator[orders.Order]:
    if mods:
        yield orders.OpenFlow(port_id, pipeline, b"".join(mod.pack(0) for mod in mods))


def _policy_orders(
    port_id: int, old: CompiledPolicy | None, new: CompiledPolicy | None
) -> Iterator[orders.Order]:
    if new is None or old is new:
        return
    change = changes(old, new)
    yield from _flow_mods(port_id, orders.FROM_PORT, change.from_port)
    yield from _flow_mods(port_id, orders.TO_PORT, change.to_port)


def _settings_orders(old: TargetPort | None, new: TargetPort) -> Iterator[orders.Order]:
    if old is not None and old.set == new.set:
        return
    yield new.set
    if (
        old is not None
        and old.set.switch_id == new.set.switch_id
        and old.set.flags & ~new.set.flags & orders.FLAG_LEARN
    ):
        # What was learned while the port might spoof would outlive the permission.
        yield orders.FdbFlush(new.set.switch_id, new.set.port_id)


def _may_stay(old: TargetPort, new: TargetPort) -> bool:
    """Whether a port need not be made anew.

    Its share of the table, given when it is made, is no reason: a NIC that moves to another switch would be
    taken from its guest.
    """
    return old.add == replace(new.add, fdb_limit=old.add.fdb_limit)


def plan(wanted: Target, actual: Target) -> list[orders.Order]:
    """The orders that make `wanted` of `actual`. Empty when they are the same."""
    gone = {
        number
        for number, port in actual.ports.items()
        if number not in wanted.ports or not _may_stay(port, wanted.ports[number])
    }
    kept = {number: port for number, port in actual.ports.items() if number not in gone}
    out: list[orders.Order] = []
    for (switch, vid, mac), port in actual.statics.items():
        stays = wanted.statics.get((switch, vid, mac)) == port and port not in gone
        # Those of ports that go or move go with them.
        if not stays and port in kept and kept[port].set.switch_id == wanted.ports[port].set.switch_id:
            out.append(orders.FdbDelete(switch, port, vid, mac))
    out += [orders.PortDelete(number) for number in sorted(gone, reverse=True)]
    for number, switch_add in sorted(wanted.switches.items()):
        if number not in actual.switches:
            out.append(switch_add)
        elif actual.switches[number] != switch_add:
            out.append(orders.SwitchSet(number, switch_add.fdb_size, switch_add.ageing_s))
    new_ports = sorted(wanted.ports.items())
    out += [port.add for number, port in new_ports if number not in kept]
    for number, wanted_port in new_ports:
        old = kept.get(number)
        out += _policy_orders(number, old.policy if old else None, wanted_port.policy)
    for number, wanted_port in new_ports:
        out += _settings_orders(kept.get(number), wanted_port)
    for (switch, vid, mac), port in wanted.statics.items():
        moved = port not in kept or kept[port].set.switch_id != wanted.ports[port].set.switch_id
        if moved or actual.statics.get((switch, vid, mac)) != port:
            out.append(orders.FdbAdd(switch, port, vid, mac))
    out += [
        orders.SwitchDelete(number) for number in sorted(actual.switches) if number not in wanted.switches
    ]
    return out
