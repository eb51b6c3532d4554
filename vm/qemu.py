"""QEMU's command line: from values to a list of arguments. Pure, except for asking QEMU its version."""

import asyncio
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from vm.errors import LaunchError, ProgramMissingError
from vm.spec import DiskSpec, NicSpec, VmSpec

PROGRAM = "qemu-system-x86_64"
SPARE_NIC_SLOTS = 2
"""Empty PCI Express ports of a q35, into which a NIC can be plugged later."""


class QemuVersion(NamedTuple):
    """A version of QEMU; compares as tuples do."""

    major: int
    minor: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


@dataclass(frozen=True)
class VmPaths:
    """Where a VM's files and sockets lie: all in one folder of its own."""

    run_dir: Path

    @property
    def record(self) -> Path:
        """What runs here: the VM's description, process and start time."""
        return self.run_dir / "vm.json"

    @property
    def pidfile(self) -> Path:
        """Written by QEMU when it has started, removed by it when it ends in order."""
        return self.run_dir / "qemu.pid"

    @property
    def log(self) -> Path:
        """What QEMU itself says."""
        return self.run_dir / "qemu.log"

    @property
    def qmp(self) -> Path:
        """QEMU's control socket."""
        return self.run_dir / "qmp.sock"

    @property
    def console(self) -> Path:
        """The serial console's socket."""
        return self.run_dir / "console.sock"

    @property
    def console_log(self) -> Path:
        """All that the guest wrote on its serial console since it was started."""
        return self.run_dir / "console.log"


def parse_version(text: str) -> QemuVersion | None:
    """Reads the version out of what `qemu-system-x86_64 --version` prints; None when it isn't there."""
    found = re.search(r"\bversion (\d+)\.(\d+)(?:\.(\d+))?", text)
    return QemuVersion(int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


async def installed_version(program: str = PROGRAM) -> QemuVersion:
    """Asks the installed QEMU.

    Raises:
        ProgramMissingError: there is none.
        LaunchError: it does not say, or is older than 5.2.
    """
    if shutil.which(program) is None:
        raise ProgramMissingError(f"{program} is not installed.", "As root: apt-get install qemu-system-x86.")
    child = await asyncio.create_subprocess_exec(
        program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await child.communicate()
    version = parse_version(output.decode(errors="replace"))
    if version is None:
        raise LaunchError(f"{program} --version does not tell its version.")
    if version < (5, 2):
        raise LaunchError(f"QEMU {version} is too old.", "5.2 or newer is wanted; Debian 12 has 7.2.")
    return version


def qemu_argv(
    spec: VmSpec,
    paths: VmPaths,
    accelerator: Literal["kvm", "tcg"],
    version: QemuVersion,
    program: str = PROGRAM,
) -> list[str]:
    """The whole command line of a VM.

    QEMU listens on each NIC's socket and waits for the switch to connect; until then it answers no QMP.
    """
    argv = [program, "-name", f"guest={spec.name},debug-threads=on", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-sandbox", _sandbox(), "-pidfile", str(paths.pidfile)]
    argv += _processor_and_memory(spec, accelerator)
    argv += _control(paths)
    if spec.kernel is not None:
        argv += ["-kernel", str(spec.kernel)]
        argv += ["-initrd", str(spec.initrd)] if spec.initrd is not None else []
        argv += ["-append", spec.command_line] if spec.command_line else []
    for index, disk in enumerate(spec.disks):
        argv += _disk(index, disk)
    for index, nic in enumerate(spec.nics):
        argv += _slot(index) + _nic(index, nic, accelerator)
    for index in range(len(spec.nics), len(spec.nics) + SPARE_NIC_SLOTS):
        argv += _slot(index)
    return argv


@dataclass(frozen=True)
class PortPlug:
    """A vhost-user port of ours, as a QEMU that others start sees it.

    Attributes:
        socket: the port's socket.
        listen: our port listens and QEMU connects (and again, a second after a loss); else QEMU listens.
        mac: the port's MAC address.
        queues: receive/transmit pairs of the port.
    """

    socket: Path
    listen: bool
    mac: str
    queues: int = 1


def qemu_args_for_port(
    version: QemuVersion, port: PortPlug, accelerator: Literal["kvm", "tcg"] = "kvm"
) -> list[str]:
    """What a person adds to the command line of a QEMU of their own, to plug it into a port of ours.

    Args:
        version: of that QEMU.
        port: where to plug it.
        accelerator: how that QEMU runs its guest.

    Returns: arguments; the size of 512M is the VM's whole memory and may be changed in both places.
    """
    if port.listen:
        # QEMU 9.2 counts in milliseconds and calls the old word deprecated.
        again = "reconnect-ms=1000" if version >= (9, 2) else "reconnect=1"
        chardev = f"socket,id=vswitch0,path={_escaped(port.socket)},{again}"
    else:
        chardev = f"socket,id=vswitch0,path={_escaped(port.socket)},server=on,wait=off"
    device = f"virtio-net-pci,netdev=net0,mac={port.mac}"
    if port.queues > 1:
        device += ",mq=on"
    if port.queues > 1 or accelerator == "tcg":
        device += f",vectors={_vectors(port.queues, accelerator)}"
    return [
        *("-m", "512M", "-object", "memory-backend-memfd,id=mem0,size=512M,share=on"),
        *("-machine", "q35,memory-backend=mem0"),
        *("-chardev", chardev),
        *("-netdev", f"vhost-user,id=net0,chardev=vswitch0,queues={port.queues}"),
        *("-device", device),
    ]


def _sandbox() -> str:
    return "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def _processor_and_memory(spec: VmSpec, accelerator: Literal["kvm", "tcg"]) -> list[str]:
    machine = "q35,memory-backend=mem0,dump-guest-core=off"
    # Parts of a PC that no guest of ours looks at cost time at its boot.
    machine += ",smbus=off,sata=off,hpet=off,vmport=off"
    argv = ["-machine", machine]
    argv += ["-accel", "kvm", "-cpu", "host"] if accelerator == "kvm" else []
    argv += ["-accel", "tcg,thread=multi", "-cpu", "qemu64"] if accelerator == "tcg" else []
    argv += ["-smp", str(spec.cpus), "-m", f"{spec.memory_bytes >> 20}M"]
    # The switch maps the guest's memory: it must be a file that can be shared.
    argv += ["-object", f"memory-backend-memfd,id=mem0,size={spec.memory_bytes},share=on"]
    return argv


def _control(paths: VmPaths) -> list[str]:
    return [
        *("-chardev", f"socket,id=qmp,path={_escaped(paths.qmp)},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *(
            "-chardev",
            f"socket,id=console,path={_escaped(paths.console)},server=on,wait=off,"
            f"logfile={_escaped(paths.console_log)},logappend=off",
        ),
        *("-serial", "chardev:console"),
    ]


def _disk(index: int, disk: DiskSpec) -> list[str]:
    read_only = "on" if disk.read_only else "off"
    file = f"driver=file,node-name=file{index},filename={_escaped(disk.path)},read-only={read_only}"
    image = f"driver={disk.format},node-name=disk{index},file=file{index},read-only={read_only}"
    return [
        *("-blockdev", f"{file},discard=unmap"),
        *("-blockdev", f"{image},discard=unmap"),
        *("-device", f"virtio-blk-pci,drive=disk{index},bootindex={index + 1}"),
    ]


def _slot(index: int) -> list[str]:
    """A PCI Express port: only what sits in one of its own can be plugged out."""
    name = slot_name(index)
    return ["-device", f"pcie-root-port,id={name},chassis={index + 1},slot={index + 1}"]


def netdev_options(nic: NicSpec) -> dict[str, object]:
    """The NIC's back end, as QMP's netdev_add takes it."""
    return {"type": "vhost-user", "id": nic.name, "chardev": f"{nic.name}-socket", "queues": nic.queues}


def slot_name(index: int) -> str:
    """QEMU's id of a PCI Express port."""
    return f"slot{index}"


def device_options(nic: NicSpec, slot: int, accelerator: Literal["kvm", "tcg"]) -> dict[str, object]:
    """The NIC itself, as QMP's device_add takes it.

    Args:
        nic: the NIC.
        slot: the number of the PCI Express port it sits in.
        accelerator: how the guest runs.
    """
    options: dict[str, object] = {"driver": "virtio-net-pci", "id": f"{nic.name}-device", "netdev": nic.name}
    options |= {"mac": nic.mac, "bus": slot_name(slot), "romfile": ""}
    options |= {"vectors": _vectors(nic.queues, accelerator)}
    if nic.queues > 1:
        options["mq"] = True
    if nic.mtu is not None:
        options["host_mtu"] = nic.mtu
    if nic.packed:
        options["packed"] = True
    return options


def _vectors(queues: int, accelerator: Literal["kvm", "tcg"]) -> int:
    """MSI-X interrupts: for each queue, for configuration and for the control queue.

    None without KVM: QEMU 7.2 crashes when an emulated guest's driver starts a vhost-user NIC that has them
    (it takes the way of KVM's irqfds, which aren't there).
    """
    return 2 * queues + 2 if accelerator == "kvm" else 0


def _nic(index: int, nic: NicSpec, accelerator: Literal["kvm", "tcg"]) -> list[str]:
    return [
        *("-chardev", f"socket,id={nic.name}-socket,path={_escaped(nic.socket_path)},server=on,wait=off"),
        *("-netdev", _joined(netdev_options(nic), "type")),
        *("-device", _joined(device_options(nic, index, accelerator), "driver")),
    ]


def _joined(options: dict[str, object], first: str) -> str:
    words = {True: "on", False: "off"}
    rest = [
        f"{key}={words[value] if isinstance(value, bool) else value}"
        for key, value in options.items()
        if key != first
    ]
    return ",".join([str(options[first]), *rest])


def _escaped(path: Path) -> str:
    """A comma ends a value in QEMU's options unless it is doubled."""
    return str(path).replace(",", ",,")
