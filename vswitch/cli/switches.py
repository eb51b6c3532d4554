"""`vswitch switch`: making, showing, changing and deleting switches."""

from dataclasses import dataclass
from typing import Annotated

import typer

from vswitch import errors
from vswitch.cli.completion import SwitchArgument, choices
from vswitch.cli.output import Column
from vswitch.cli.session import Session, build, command, noun
from vswitch.client import Client
from vswitch.model import PortChange, Switch, SwitchChange, SwitchInfo

app = noun("switch", "Make, show, change and delete switches.")

NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name that no switch and no VM has.")]
TypeOption = Annotated[
    str,
    typer.Option(
        "--type",
        metavar="internal|private|external",
        help="private: VMs only. internal: the host too, through the port NAME/host. "
        "external: also what is behind --uplink.",
        autocompletion=choices("internal", "private", "external"),
    ),
]
UplinkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--uplink",
        metavar="DEVICE",
        help="external: the device that leads outside, such as eth1; the port NAME/uplink. Its frames are "
        "the switch's alone: the host's own stack sees them through NAME/host only.",
    ),
]
AgeingOption = Annotated[
    int | None,
    typer.Option(
        "--ageing", metavar="SECONDS", help="When a learned address is forgotten (300 by default; 0: never)."
    ),
]


@dataclass
class TableOptions:
    """The table of addresses."""

    ageing: AgeingOption = None
    fdb_size: Annotated[
        int | None,
        typer.Option("--fdb-size", metavar="N", help="Addresses remembered at most (16384 by default)."),
    ] = None


ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Take its ports away first: VMs' NICs are unplugged, other ports deleted."),
]


@command(
    app,
    "create",
    examples=[
        "vswitch switch create lab --type private",
        "vswitch switch create office --type internal",
        "vswitch switch create lan --type external --uplink eth1",
    ],
)
def create(
    session: Session,
    name: NewName,
    type_: TypeOption,
    table: TableOptions,
    uplink: UplinkOption = None,
) -> None:
    """Make a switch."""
    if uplink is not None and len(uplink) > 1:
        raise errors.UserError(
            f"switch {name} can have one uplink, not {len(uplink)}: a team of several comes later",
            "one --uplink",
        )
    device = uplink[0] if uplink else None
    fields = {"type": type_, "uplink": device, "ageing_s": table.ageing, "fdb_size": table.fdb_size}
    made = session.client.create_switch(build(f"switch {name}", Switch, name=name, **fields))
    more = f" The host's port is {made.name}/host." if made.type != "private" else ""
    more += f" {made.uplink} is {made.name}/uplink." if made.uplink is not None else ""
    session.out.done(made, f"Switch {made.name} ({made.type}) is there.{more}")


@command(app, "list", examples=["vswitch switch list", "vswitch switch list --json"])
def list_switches(session: Session) -> None:
    """List the switches."""
    switches = session.client.switches()
    rows = [(s.name, s.type, len(s.ports), s.ageing_s) for s in switches]

    def render() -> None:
        if not rows:
            session.out.hint("There is no switch yet: vswitch switch create NAME --type private")
        else:
            session.out.table(
                ["NAME", "TYPE", Column("PORTS", right=True), Column("AGEING S", right=True)], rows
            )

    session.out.show(switches, render)


@command(app, "show", examples=["vswitch switch show lab"])
def show(session: Session, name: SwitchArgument) -> None:
    """Show a switch and its ports."""
    switch = session.client.switch(name)
    session.out.show(switch, lambda: _render(session, switch))


@command(app, "set", examples=["vswitch switch set lab --ageing 60"])
def set_(session: Session, name: SwitchArgument, ageing: AgeingOption = None) -> None:
    """Change a switch."""
    if ageing is None:
        raise errors.UserError(f"there is nothing to change of switch {name}", "--ageing SECONDS")
    switch = session.client.set_switch(name, build(f"switch {name}", SwitchChange, ageing_s=ageing))
    session.out.done(switch, f"Switch {name} is changed.")


@command(app, "delete", examples=["vswitch switch delete lab", "vswitch switch delete lab --force"])
def delete(session: Session, name: SwitchArgument, force: ForceOption = False) -> None:
    """Delete a switch; one with ports is refused unless --force.

    The host's own port goes with it, and an uplink's device goes back to the host.
    """
    if force:
        _take_ports_away(session.client, name)
    session.client.delete_switch(name)
    session.out.done({"deleted": name}, f"Switch {name} is deleted.")


def _take_ports_away(client: Client, name: str) -> None:
    """Deletes the ports that others own the far end of, and unplugs VMs' NICs: those belong to their VMs."""
    for port in client.ports(switch=name):
        if port.kind in ("host", "uplink"):
            continue
        if port.owner == name:
            client.delete_port(port.name)
        else:
            client.set_port(port.name, PortChange(switch=None))


def _render(session: Session, switch: SwitchInfo) -> None:
    session.out.fields(
        [
            ("name", switch.name),
            ("type", switch.type),
            *([("uplink", switch.uplink)] if switch.uplink is not None else []),
            ("ageing", f"{switch.ageing_s} s" if switch.ageing_s else "never"),
            ("addresses", f"{switch.fdb_size} at most"),
            ("ports", ", ".join(switch.ports)),
        ]
    )
