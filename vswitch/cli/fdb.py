"""`vswitch fdb`: the addresses that a switch knows."""

from typing import Annotated

import typer

from vswitch.cli.completion import PortArgument, SwitchArgument, port_names
from vswitch.cli.output import Column
from vswitch.cli.session import Session, build, command, noun
from vswitch.model import FdbEntry, FdbStatic

app = noun("fdb", "Show and change the addresses that a switch knows.")

MacArgument = Annotated[str, typer.Argument(metavar="MAC", help="The address, such as 52:54:00:12:34:56.")]
VlanOption = Annotated[int | None, typer.Option("--vlan", metavar="N", help="Only this VLAN; 0: untagged.")]
EntryVlan = Annotated[int, typer.Option("--vlan", metavar="N", help="The entry's VLAN; 0: untagged.")]
PortOption = Annotated[
    str | None,
    typer.Option(
        "--port", metavar="OWNER/PORT", help="Only addresses behind this port.", autocompletion=port_names
    ),
]


@command(app, "list", examples=["vswitch fdb list lab", "vswitch fdb list lab --vlan 100 --json"])
def list_entries(
    session: Session, switch: SwitchArgument, port: PortOption = None, vlan: VlanOption = None
) -> None:
    """List addresses: VMs' own are static, those behind hosts and devices are learned."""
    entries = session.client.fdb(switch, port=port, vid=vlan)
    columns: list[Column | str] = ["MAC", "VLAN", "PORT", "HOW", Column("IDLE S", right=True)]
    rows = [(e.mac, _vlan_text(e), e.port, "static" if e.static else "learned", _idle(e)) for e in entries]

    def render() -> None:
        if not rows:
            session.out.hint(f"Switch {switch} knows no such address.")
        else:
            session.out.table(columns, rows)

    session.out.show(entries, render)


@command(app, "add", examples=["vswitch fdb add lab 02:00:00:00:00:01 lab/db --vlan 100"])
def add(
    session: Session, switch: SwitchArgument, mac: MacArgument, port: PortArgument, vlan: EntryVlan = 0
) -> None:
    """Add a static entry: this address is behind this port."""
    entry = build(f"address {mac}", FdbStatic, mac=mac, port=port, vid=vlan)
    session.client.add_fdb(switch, entry)
    session.out.done(entry, f"{entry.mac} is behind {entry.port}.")


@command(app, "delete", examples=["vswitch fdb delete lab 02:00:00:00:00:01 --vlan 100"])
def delete(session: Session, switch: SwitchArgument, mac: MacArgument, vlan: EntryVlan = 0) -> None:
    """Delete one entry, static or learned."""
    session.client.delete_fdb(switch, mac, vlan)
    session.out.done({"deleted": mac, "vid": vlan}, f"{mac} is deleted.")


@command(app, "flush", examples=["vswitch fdb flush lab", "vswitch fdb flush lab --port lab/host"])
def flush(session: Session, switch: SwitchArgument, port: PortOption = None, vlan: VlanOption = None) -> None:
    """Forget what was learned; static entries stay."""
    session.client.flush_fdb(switch, port=port, vid=vlan)
    session.out.done(
        {"flushed": switch, "port": port, "vid": vlan}, f"Switch {switch} forgot what it had learned."
    )


def _vlan_text(entry: FdbEntry) -> str:
    if entry.vid is None:
        return "all"
    return str(entry.vid) if entry.vid else "untagged"


def _idle(entry: FdbEntry) -> object:
    return "-" if entry.static else entry.idle_s
