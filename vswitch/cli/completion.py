"""Names for the shell's completion: switches, ports and VMs, as the daemon knows them.

A shell waits while this runs, so it is quick, and silent when the daemon is not there: no names are better
than an error in the middle of a line.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vswitch import errors
from vswitch.client import Client

_PATIENCE_S = 0.5


def switch_names(context: typer.Context, incomplete: str) -> list[str]:
    """Switches."""
    return _matching(incomplete, _ask(context, lambda client: [switch.name for switch in client.switches()]))


def port_names(context: typer.Context, incomplete: str) -> list[str]:
    """Ports."""
    return _matching(incomplete, _ask(context, lambda client: [port.name for port in client.ports()]))


def vm_names(context: typer.Context, incomplete: str) -> list[str]:
    """VMs."""
    return _matching(incomplete, _ask(context, lambda client: [vm.name for vm in client.vms()]))


def place_names(context: typer.Context, incomplete: str) -> list[str]:
    """Ports, and VMs and switches by their own names."""
    ports = port_names(context, incomplete)
    return [*vm_names(context, incomplete), *switch_names(context, incomplete), *ports]


def nic_texts(context: typer.Context, incomplete: str) -> list[str]:
    """The switch of a --nic; nothing once its settings have begun."""
    return [] if "," in incomplete else switch_names(context, incomplete)


def new_port_names(context: typer.Context, incomplete: str) -> list[str]:
    """The owner's part of a port that is to be added."""
    return [] if "/" in incomplete else [f"{name}/" for name in switch_names(context, incomplete)]


def choices(*values: str) -> Callable[[str], list[str]]:
    """Completes one of a few words."""

    def complete(incomplete: str) -> list[str]:
        return _matching(incomplete, list(values))

    return complete


def _ask(context: typer.Context, question: Callable[[Client], list[str]]) -> list[str]:
    try:
        with Client(_socket(context), timeout_s=_PATIENCE_S) as client:
            return question(client)
    except errors.VswitchError:
        return []


def _socket(context: typer.Context) -> Path | None:
    """`--socket` where it was given, after the command's name or before it."""
    given = context.params.get("api_socket") or context.find_root().params.get("socket")
    return Path(given) if given else None


def _matching(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


SwitchArgument = Annotated[
    str, typer.Argument(metavar="SWITCH", help="The switch's name.", autocompletion=switch_names)
]
PortArgument = Annotated[
    str,
    typer.Argument(
        metavar="OWNER/PORT", help="The port's name, such as web/eth0.", autocompletion=port_names
    ),
]
VmArgument = Annotated[str, typer.Argument(metavar="VM", help="The VM's name.", autocompletion=vm_names)]
