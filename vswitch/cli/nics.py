"""`vswitch nic`: the NICs of VMs, running or not: more of them, fewer, and their cables."""

from typing import Annotated

import typer

from vswitch.cli import parse
from vswitch.cli.completion import PortArgument, SwitchArgument, VmArgument, nic_texts
from vswitch.cli.session import Session, command, noun

app = noun("nic", "Attach and detach NICs of VMs while they run; pull and plug their cables.")

NicText = Annotated[
    str,
    typer.Argument(
        metavar="SWITCH[,KEY=VALUE...]",
        help="Its switch and settings, as in vm create --nic. Keys: " + ", ".join(parse.NIC_KEYS) + ".",
        autocompletion=nic_texts,
    ),
]


@command(
    app,
    "attach",
    examples=["vswitch nic attach web lab", "vswitch nic attach web office,vlan=100,mtu=1500"],
)
def attach(session: Session, vm: VmArgument, nic: NicText) -> None:
    """Give a VM one more NIC. One that runs gets it at once; its guest sees a new device."""
    wanted = parse.nic(nic, where="")
    with session.out.progress(f"Plugging a NIC into VM {vm} …"):
        port = session.client.attach_nic(vm, wanted)
    where = f" on switch {port.switch}" if port.switch else ", its cable is out"
    session.out.done(port, f"NIC {port.name} is there{where}: MAC {port.mac}.")


@command(app, "detach", examples=["vswitch nic detach web/eth1"])
def detach(session: Session, port: PortArgument) -> None:
    """Take a NIC away from a VM, with its settings, rules and counters.

    The guest of a VM that runs has to let go of it.
    """
    with session.out.progress(f"Taking {port} out …"):
        session.client.detach_nic(port)
    session.out.done({"detached": port}, f"NIC {port} is gone.")


@command(app, "connect", examples=["vswitch nic connect web/eth0 lab"])
def connect(session: Session, port: PortArgument, switch: SwitchArgument) -> None:
    """Plug a NIC's cable into a switch: its guest sees a carrier; settings, rules and counters stay."""
    info = session.client.connect_nic(port, switch)
    session.out.done(info, f"NIC {info.name} is connected to switch {info.switch}.")


@command(app, "disconnect", examples=["vswitch nic disconnect web/eth0"])
def disconnect(session: Session, port: PortArgument) -> None:
    """Pull a NIC's cable: its guest sees no carrier; settings, rules and counters stay with the port."""
    info = session.client.disconnect_nic(port)
    session.out.done(info, f"The cable of {info.name} is out.")
