"""`vswitch connections`: what stateful rules have accepted."""

from typing import Annotated

import typer

from vswitch.cli.acls import DIRECTIONS
from vswitch.cli.completion import port_names
from vswitch.cli.output import Column
from vswitch.cli.session import Session, command, noun
from vswitch.connections import Connection

app = noun("connections", "Show and end the connections that stateful rules have made.")

PortOption = Annotated[
    str | None,
    typer.Option("--port", metavar="OWNER/PORT", help="Only those of this port.", autocompletion=port_names),
]


@command(
    app, "list", examples=["vswitch connections list", "vswitch connections list --port web/eth0 --json"]
)
def list_connections(session: Session, port: PortOption = None) -> None:
    """List connections: whose rule accepted them, their ends, state, seconds and packets."""
    found = session.client.connections(port)
    columns: list[Column | str] = ["PORT", "RULE", "PROTOCOL", "FROM", "TO", "VLAN", "STATE"]
    columns += [Column(title, right=True) for title in ("IDLE S", "LEFT S", "SENT", "ANSWERED")]
    rows = [
        (
            one.port,
            DIRECTIONS[one.direction],
            one.protocol,
            _end(one, one.from_ip, one.from_port),
            _end(one, one.to_ip, one.to_port),
            one.vid or "untagged",
            one.state,
            one.idle_s,
            one.left_s,
            one.from_packets,
            one.to_packets,
        )
        for one in found
    ]

    def render() -> None:
        if not rows:
            session.out.hint("There are no connections: stateful rules (acl add --stateful) make them.")
        else:
            session.out.table(columns, rows)

    session.out.show(found, render)


@command(app, "flush", examples=["vswitch connections flush", "vswitch connections flush --port web/eth0"])
def flush(session: Session, port: PortOption = None) -> None:
    """End connections: the rules judge their frames again, and none begins in mid-stream."""
    ended = session.client.flush_connections(port)
    where = f"of {port} " if port else ""
    session.out.done({"ended": ended, "port": port}, f"{ended} connections {where}are ended.")


def _end(one: Connection, address: str, port: int) -> str:
    if one.protocol in ("tcp", "udp", "sctp"):
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return f"{address} id {port}" if one.protocol in ("icmp", "icmpv6") else address
