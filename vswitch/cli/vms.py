"""`vswitch vm`: virtual machines whose NICs are ports of a switch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vswitch.cli import console, parse
from vswitch.cli.completion import VmArgument, nic_texts
from vswitch.cli.output import Column
from vswitch.cli.session import Session, build, command, noun
from vswitch.model import PortInfo, VmCreate, VmInfo, vlan_text
from vswitch.words import size

app = noun("vm", "Make, start, stop, watch and delete VMs.")

NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name that no VM and no switch has.")]
NicOption = Annotated[
    list[str] | None,
    typer.Option(
        "--nic",
        metavar="SWITCH[,KEY=VALUE...]",
        help="A NIC on this switch; once per NIC. Keys: " + ", ".join(parse.NIC_KEYS) + ".",
        autocompletion=nic_texts,
    ),
]


@dataclass
class MachineOptions:
    """What a VM has."""

    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Such as 512M or 2G.")] = "512M"
    cpus: Annotated[int, typer.Option("--cpus", metavar="N", help="Virtual CPUs, 1 to 64.")] = 1


@dataclass
class BootOptions:
    """What a VM boots."""

    disk: Annotated[
        list[Path] | None,
        typer.Option("--disk", metavar="FILE", help="A disk image; once per disk, the first one is booted."),
    ] = None
    kernel: Annotated[
        Path | None, typer.Option("--kernel", metavar="FILE", help="A Linux to boot directly.")
    ] = None
    initrd: Annotated[
        Path | None, typer.Option("--initrd", metavar="FILE", help="With --kernel: its initramfs.")
    ] = None
    cmdline: Annotated[
        str | None, typer.Option("--cmdline", metavar="TEXT", help="With --kernel: its command line.")
    ] = None


@command(
    app,
    "create",
    examples=[
        "vswitch vm create web --memory 512M --disk debian.qcow2 --nic lab",
        "vswitch vm create fw --disk fw.qcow2 --nic lab,trunk=1-10,20 --nic office",
        "vswitch vm create t1 --kernel vmlinuz --initrd t1.img --nic lab,vlan=100",
    ],
)
def create(
    session: Session, name: NewName, machine: MachineOptions, boot: BootOptions, nic: NicOption = None
) -> None:
    """Make a VM, stopped. Its NICs are the ports NAME/eth0, NAME/eth1, ..."""
    vm = build(
        f"VM {name}",
        VmCreate,
        name=name,
        memory_bytes=parse.memory_bytes(machine.memory),
        cpus=machine.cpus,
        kernel=_absolute(boot.kernel),
        initrd=_absolute(boot.initrd),
        cmdline=boot.cmdline,
        disks=tuple(str(disk.absolute()) for disk in boot.disk or ()),
        nics=tuple(parse.nic(text) for text in nic or ()),
    )
    made = session.client.create_vm(vm)
    ports = f" Its ports: {', '.join(made.ports)}." if made.ports else " It has no NIC."
    session.out.done(made, f"VM {made.name} is there, stopped.{ports}")


@command(app, "start", examples=["vswitch vm start web"])
def start(session: Session, name: VmArgument) -> None:
    """Start a VM; returns when it runs (its guest goes on booting)."""
    with session.out.progress(f"Starting VM {name} …"):
        vm = session.client.start_vm(name)
    how = f" with {vm.accelerator}" if vm.accelerator else ""
    session.out.done(vm, f"VM {vm.name} is {vm.state}{how}.")
    if vm.accelerator == "tcg":
        session.out.hint("tcg emulates the processor: guests are slow. `vswitch doctor` says why.")


@command(app, "stop", examples=["vswitch vm stop web", "vswitch vm stop web --force"])
def stop(
    session: Session,
    name: VmArgument,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long the guest may take to power off.")
    ] = 30.0,
    force: Annotated[bool, typer.Option("--force", help="Kill it at once, as if the power went.")] = False,
) -> None:
    """Stop a VM: its guest is asked to power off, and killed when it does not in time."""
    with session.out.progress(f"Stopping VM {name} …"):
        vm = session.client.stop_vm(name, timeout_s=timeout, force=force)
    session.out.done(vm, f"VM {vm.name} is {vm.state}.{_reason(vm)}")


@command(app, "list", examples=["vswitch vm list", "vswitch vm list --json"])
def list_vms(session: Session) -> None:
    """List the VMs and what they are doing."""
    vms = session.client.vms()
    rows = [
        (v.name, v.state, v.cpus, size(v.memory_bytes), v.accelerator, ", ".join(v.ports), v.reason)
        for v in vms
    ]

    def render() -> None:
        if not rows:
            session.out.hint("There is no VM yet: vswitch vm create NAME --disk FILE --nic SWITCH")
            return
        columns: list[Column | str] = [
            "NAME",
            "STATE",
            Column("CPUS", right=True),
            Column("MEMORY", right=True),
        ]
        session.out.table([*columns, "ACCELERATOR", "PORTS", "REASON"], rows)

    session.out.show(vms, render)


@command(app, "show", examples=["vswitch vm show web", "vswitch vm show web --json"])
def show(session: Session, name: VmArgument) -> None:
    """Show a VM: its state, what it boots, its NICs."""
    vm = session.client.vm(name)
    ports = session.client.ports(owner=name)
    value = {**vm.model_dump(mode="json"), "nics": ports}
    session.out.show(value, lambda: _render(session, vm, ports))


@command(app, "console", examples=["vswitch vm console web", "echo uptime | vswitch vm console web"])
def console_(session: Session, name: VmArgument) -> None:
    """Attach this terminal to a VM's serial console; Ctrl-] leaves it.

    On pipes: standard input goes to the VM; it ends when the input has ended and the VM has been silent for a
    second. With --json, only says where the console is.
    """
    where = session.client.vm_console(name)
    if session.out.as_json:
        session.out.json(where)
        return
    session.out.hint(f"Console of {name}. Ctrl-] leaves it.")
    console.attach(where.socket)


@command(app, "delete", examples=["vswitch vm delete web"])
def delete(session: Session, name: VmArgument) -> None:
    """Delete a stopped VM and its ports; its disks stay. One that runs is refused."""
    session.client.delete_vm(name)
    session.out.done({"deleted": name}, f"VM {name} is deleted; its disks stay.")


def _absolute(path: Path | None) -> str | None:
    # The daemon has another working directory.
    return None if path is None else str(path.absolute())


def _reason(vm: VmInfo) -> str:
    return f" {vm.reason}" if vm.reason else ""


def _render(session: Session, vm: VmInfo, ports: list[PortInfo]) -> None:
    rows: list[tuple[str, object]] = [("name", vm.name), ("state", vm.state)]
    more = {"reason": vm.reason, "process": vm.pid, "accelerator": vm.accelerator}
    rows += [(name, value) for name, value in more.items() if value]
    rows += [("memory", size(vm.memory_bytes)), ("cpus", vm.cpus)]
    boots = {"kernel": vm.kernel, "initrd": vm.initrd, "command line": vm.cmdline}
    rows += [(name, value) for name, value in boots.items() if value]
    rows += [("disk", disk) for disk in vm.disks]
    for port in ports:
        where = f"switch {port.switch}" if port.switch else "unplugged"
        rows.append((port.name.partition("/")[2], f"{where}, {port.mac}, VLAN {vlan_text(port.vlan)}"))
    session.out.fields(rows)
