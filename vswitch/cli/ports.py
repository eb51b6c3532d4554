"""`vswitch port`: the ports of switches and VMs, their settings, state and counters."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vswitch import errors
from vswitch.cli import parse
from vswitch.cli.completion import PortArgument, choices, new_port_names, port_names, switch_names
from vswitch.cli.output import Column
from vswitch.cli.session import Session, build, command, noun
from vswitch.model import DropCount, Port, PortChange, PortInfo, PortStats, vlan_text
from vswitch.words import split_port_name

app = noun("port", "Add, show, change and delete ports; count what passes them.")

# virtio 1.2, 5.1.3 and 6: the bits that people ask about.
_FEATURES = {
    0: "csum",
    1: "guest_csum",
    7: "guest_tso4",
    8: "guest_tso6",
    11: "host_tso4",
    12: "host_tso6",
    15: "mrg_rxbuf",
    22: "mq",
    28: "indirect_desc",
    29: "event_idx",
    32: "version_1",
    34: "ring_packed",
    35: "in_order",
}

NewPort = Annotated[
    str,
    typer.Argument(
        metavar="SWITCH/NAME", help="The switch, and a new name on it.", autocompletion=new_port_names
    ),
]


@dataclass
class VlanOptions:
    """The VLAN mode; they exclude each other."""

    vlan: Annotated[
        int | None, typer.Option("--vlan", metavar="N", help="Access: the VM is in VLAN N, untagged.")
    ] = None
    trunk: Annotated[
        str | None,
        typer.Option(
            "--trunk", metavar="RANGES", help="Trunk: tagged frames of these VLANs, such as 1-10,20."
        ),
    ] = None
    native_vlan: Annotated[
        int | None,
        typer.Option(
            "--native-vlan",
            metavar="N",
            help="With --trunk: the VLAN of untagged frames; without it they drop.",
        ),
    ] = None
    vlan_mode: Annotated[
        str | None,
        typer.Option(
            "--vlan-mode",
            metavar="untagged|any",
            help="untagged: tagged frames drop (the default). any: everything passes as it is.",
            autocompletion=choices("untagged", "any"),
        ),
    ] = None


@dataclass
class SettingOptions:
    """What belongs to a port whatever it is made of."""

    mac: Annotated[
        str | None,
        typer.Option("--mac", metavar="MAC", help="Its address; one is made for a new port without it."),
    ] = None
    allow_spoofing: Annotated[
        bool | None,
        typer.Option(
            "--allow-spoofing/--no-allow-spoofing",
            help="May send from MACs other than its own (no by default).",
        ),
    ] = None
    mtu: Annotated[
        int | None,
        typer.Option(
            "--mtu", metavar="BYTES", help="The largest packet that passes, 68 to 9000 (the default)."
        ),
    ] = None
    storm_limit: Annotated[
        int | None,
        typer.Option(
            "--storm-limit",
            metavar="N",
            help="Broadcast, multicast and unknown unicast packets/s from the VM (10000; 0: no limit).",
        ),
    ] = None
    connection_limit: Annotated[
        int | None,
        typer.Option(
            "--connection-limit",
            metavar="N",
            help="Connections that its stateful rules may make, 1 to 262144 (10000).",
        ),
    ] = None
    trust_pcp: Annotated[
        bool | None,
        typer.Option(
            "--trust-pcp/--no-trust-pcp", help="Keep the VM's 802.1p priority instead of setting it to 0."
        ),
    ] = None


@dataclass
class PlaceOptions:
    """Where a port is plugged in, and whether frames pass."""

    switch: Annotated[
        str | None,
        typer.Option(
            "--switch",
            metavar="SWITCH",
            help="Plug it into this switch; it keeps its settings.",
            autocompletion=switch_names,
        ),
    ] = None
    unplug: Annotated[bool, typer.Option("--unplug", help="Plug it out of its switch.")] = False
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether frames pass.")] = None


@dataclass
class DeviceOptions:
    """What a new port is made of."""

    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="vhost-user|tap|pcap|netdev",
            help="vhost-user: a VM that somebody else starts. tap: a kernel interface. pcap: files. "
            "netdev: a kernel device that is there, such as a container's veth.",
            autocompletion=choices("vhost-user", "tap", "pcap", "netdev"),
        ),
    ]
    socket: Annotated[
        Path | None,
        typer.Option(
            "--socket", metavar="PATH", help="vhost-user: the socket; one is made when none is given."
        ),
    ] = None
    listen: Annotated[
        bool | None,
        typer.Option(
            "--listen", help="vhost-user: vswitch listens and QEMU connects; the other way round without it."
        ),
    ] = None
    queues: Annotated[
        int | None, typer.Option("--queues", metavar="N", help="Queue pairs at most, 1 (the default) to 16.")
    ] = None
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="tap: an existing interface; one is made without it. netdev: the device. Without --mac, "
            "the addresses behind it are learned.",
        ),
    ] = None
    replay: Annotated[
        Path | None,
        typer.Option("--replay", metavar="FILE", help="pcap: the file whose frames the port sends."),
    ] = None
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="pcap: the file for the frames that the port gets."),
    ] = None
    timed: Annotated[
        bool | None,
        typer.Option("--timed", help="pcap: replay with the file's own gaps instead of at full speed."),
    ] = None


@command(
    app,
    "add",
    examples=[
        "vswitch port add lab/db --kind vhost-user --listen --socket /tmp/db.sock",
        "vswitch port add lab/box --kind tap --vlan 100",
        "vswitch port add lab/rec --kind pcap --write /tmp/all.pcap --vlan-mode any",
        "vswitch port add lab/web --kind netdev --device veth-web",
    ],
    socket_option=False,
)
def add(
    session: Session, port: NewPort, device: DeviceOptions, vlan: VlanOptions, settings: SettingOptions
) -> None:
    """Add a port for a VM, a device or a file that others bring.

    --socket is the port's here; the daemon's goes before the command: vswitch --socket PATH port add ...
    """
    fields = _settings(vlan, settings) | {
        "kind": device.kind,
        "socket": _absolute(device.socket),
        "listen": device.listen,
        "queues": device.queues,
        "device": device.device,
        "replay": _absolute(device.replay),
        "write": _absolute(device.write),
        "timed": device.timed,
    }
    switch = _owner(port)
    made = session.client.add_port(build(f"port {port}", Port, name=port, switch=switch, **fields))
    where = f", its socket is {made.socket}" if made.socket else ""
    session.out.done(made, f"Port {made.name} is there: MAC {made.mac or '-'}{where}.")


@command(app, "list", examples=["vswitch port list", "vswitch port list --switch lab --json"])
def list_ports(
    session: Session,
    switch: Annotated[
        str | None,
        typer.Option(
            "--switch", metavar="SWITCH", help="Only ports on this switch.", autocompletion=switch_names
        ),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option("--owner", metavar="NAME", help="Only ports of this VM, or owned by this switch."),
    ] = None,
) -> None:
    """List ports, with their VLAN and link."""
    ports = session.client.ports(owner=owner, switch=switch)
    rows = [(p.name, p.switch, p.kind, p.mac, vlan_text(p.vlan), link_text(p)) for p in ports]

    def render() -> None:
        if not rows:
            session.out.hint("There is no such port. VMs bring theirs; vswitch port add makes others.")
        else:
            session.out.table(["NAME", "SWITCH", "KIND", "MAC", "VLAN", "LINK"], rows)

    session.out.show(ports, render)


@command(
    app,
    "show",
    examples=[
        "vswitch port show web/eth0",
        "qemu-system-x86_64 $(vswitch port show lab/db --qemu-args) db.qcow2",
    ],
)
def show(
    session: Session,
    port: PortArgument,
    qemu_args: Annotated[
        bool,
        typer.Option(
            "--qemu-args", help="Print the arguments for a QEMU of one's own, right for its version."
        ),
    ] = False,
    qemu: Annotated[
        str | None,
        typer.Option(
            "--qemu", metavar="PROGRAM", help="With --qemu-args: that QEMU (qemu-system-x86_64 by default)."
        ),
    ] = None,
) -> None:
    """Show a port: its settings, state, counters and drops."""
    if qemu_args:
        answer = session.client.qemu_args(port, qemu)
        session.out.show(answer, lambda: session.out.line(shlex.join(answer.args)))
        return
    if qemu is not None:
        raise errors.UserError(
            "--qemu only makes sense with --qemu-args", f"vswitch port show {port} --qemu-args --qemu {qemu}"
        )
    info = session.client.port(port)
    stats = session.client.port_stats(port)
    drops = session.client.drops(port)
    value = {**info.model_dump(mode="json"), "stats": stats, "drops": drops}
    session.out.show(value, lambda: _render(session, info, stats, drops))


@command(
    app,
    "set",
    examples=[
        "vswitch port set web/eth0 --vlan 100",
        "vswitch port set fw/eth0 --trunk 1-10,20 --native-vlan 1 --trust-pcp",
        "vswitch port set web/eth0 --switch office",
    ],
)
def set_(
    session: Session, port: PortArgument, vlan: VlanOptions, settings: SettingOptions, place: PlaceOptions
) -> None:
    """Change a port's settings; what is not given stays as it is."""
    if place.unplug and place.switch is not None:
        raise errors.UserError("--switch and --unplug exclude each other", "one of them")
    fields = _settings(vlan, settings) | {"switch": place.switch, "enabled": place.enabled}
    change = build(f"port {port}", PortChange, **fields)
    if place.unplug:
        change = PortChange(**change.model_dump(exclude_unset=True) | {"switch": None})
    if not change.model_fields_set:
        raise errors.UserError(f"there is nothing to change of port {port}", "vswitch port set --help")
    info = session.client.set_port(port, change)
    session.out.done(info, f"Port {info.name}: {', '.join(_settings_text(info))}.")


@command(app, "delete", examples=["vswitch port delete lab/db"])
def delete(session: Session, port: PortArgument) -> None:
    """Delete a port that was added; those of VMs and hosts go with their owner."""
    session.client.delete_port(port)
    session.out.done({"deleted": port}, f"Port {port} is deleted.")


@command(
    app,
    "stats",
    examples=["vswitch port stats web/eth0", "vswitch port stats --json | jq '.[].from_packets'"],
)
def stats_(
    session: Session,
    port: Annotated[
        str | None,
        typer.Argument(metavar="[OWNER/PORT]", help="One port; all without it.", autocompletion=port_names),
    ] = None,
) -> None:
    """Count packets and bytes, from the VM and to it."""
    client = session.client
    names = [port] if port is not None else [info.name for info in client.ports()]
    counters = [client.port_stats(name) for name in names]
    rows = [
        (s.name, s.from_packets, s.from_bytes, s.to_packets, s.to_bytes, sum(s.drops.values()))
        for s in counters
    ]
    titles = ("FROM VM", "BYTES", "TO VM", "BYTES", "DROPPED")
    columns: list[Column | str] = ["PORT", *(Column(title, right=True) for title in titles)]
    session.out.show(counters, lambda: session.out.table(columns, rows))


def link_text(port: PortInfo) -> str:
    """A port's link in a word."""
    if not port.enabled:
        return "disabled"
    if port.state is None:
        return "unknown"
    if port.state.fault is not None:
        return "fault"
    return "up" if port.state.link else "down"


def _settings(vlan: VlanOptions, settings: SettingOptions) -> dict[str, Any]:
    return {
        "vlan": parse.vlan(vlan.vlan, vlan.trunk, vlan.native_vlan, vlan.vlan_mode),
        "mac": settings.mac,
        "allow_spoofing": settings.allow_spoofing,
        "mtu": settings.mtu,
        "storm_limit": settings.storm_limit,
        "connection_limit": settings.connection_limit,
        "trust_pcp": settings.trust_pcp,
    }


def _owner(port: str) -> str:
    try:
        return split_port_name(port)[0]
    except ValueError as error:
        raise errors.InvalidInputError(str(error), "vswitch port add SWITCH/NAME --kind …") from None


def _absolute(path: Path | None) -> str | None:
    # The daemon has another working directory.
    return None if path is None else str(path.absolute())


def _settings_text(port: PortInfo) -> list[str]:
    words = [
        f"switch {port.switch}" if port.switch else "unplugged",
        f"VLAN {vlan_text(port.vlan)}",
        f"MAC {port.mac}",
        f"MTU {port.mtu}",
        f"storm limit {port.storm_limit} packets/s" if port.storm_limit else "no storm limit",
    ]
    words += ["may spoof"] if port.allow_spoofing else []
    words += ["PCP trusted"] if port.trust_pcp else []
    return words if port.enabled else [*words, "disabled"]


def _render(session: Session, port: PortInfo, stats: PortStats, drops: list[DropCount]) -> None:
    rows: list[tuple[str, object]] = [("name", port.name), ("kind", port.kind)]
    rows += [("settings", ", ".join(_settings_text(port)))]
    details = {"socket": port.socket, "device": port.device, "replays": port.replay, "writes": port.write}
    details["host kept off by"] = port.isolation
    rows += [(name, value) for name, value in details.items() if value is not None]
    if port.kind == "vhost-user":
        rows.append(("listens", "vswitch" if port.listen else "the front end (QEMU)"))
    rows.append(("link", link_text(port)))
    if port.state is not None:
        rows += _state_rows(port)
    rows.append(
        (
            "from VM",
            f"{stats.from_packets} packets, {stats.from_bytes} bytes, {stats.from_group_packets} to groups",
        )
    )
    rows.append(
        ("to VM", f"{stats.to_packets} packets, {stats.to_bytes} bytes, {stats.to_group_packets} to groups")
    )
    rows += [("dropped", f"{d.packets} {d.reason}: {d.sentence}") for d in drops] or [("dropped", "nothing")]
    session.out.fields(rows)


def _state_rows(port: PortInfo) -> list[tuple[str, object]]:
    state = port.state
    assert state is not None
    rows: list[tuple[str, object]] = []
    if state.fault is not None:
        rows.append(("fault", state.fault))
    if port.kind == "vhost-user":
        rows.append(("connected", state.connected))
        rows.append(
            ("queues", f"{state.queues} of {port.queues}, {'packed' if state.packed else 'split'} rings")
        )
        rows.append(
            ("features", " ".join(name for bit, name in _FEATURES.items() if state.features >> bit & 1))
        )
        rows.append(("reconnects", state.reconnects))
    if port.replay is not None and state.fault is None:
        rows.append(("replay", "has ended" if state.replay_ended else "has frames left"))
    if state.file_error is not None:
        rows.append(("error", state.file_error))
    if state.learned:
        rows.append(("learned", f"{state.learned} addresses"))
    return rows
