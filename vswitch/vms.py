"""The VMs of this daemon: which run, starting and stopping them, finding them again after a restart of ours.

Runs on vswitchd's event loop, over the package `vm`, which knows QEMU and nothing of switches. A VM is a
process of its own and outlives us; what it is doing is asked of its process, never stored.
"""

import asyncio
import contextlib
import grp
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from pydantic import ValidationError

from vm.errors import AlreadyRunningError, NotRunningError
from vm.errors import VmError as LauncherError
from vm.host import Host
from vm.machine import Machine, find_process
from vm.machine import VmState as MachineState
from vm.process import WatchedProcess
from vm.qemu import VmPaths
from vm.spec import DiskSpec, NicSpec, VmSpec
from vswitch import errors
from vswitch.devices import GROUP
from vswitch.model import Console, Vm, VmInfo, VmState
from vswitch.reconcile import vm_socket
from vswitch.wanted import PortRow

log = logging.getLogger("vswitch.vms")

_STATES: dict[MachineState, VmState] = {
    MachineState.STOPPED: "stopped",
    MachineState.STARTING: "starting",
    MachineState.RUNNING: "running",
    MachineState.STOPPING: "stopping",
    MachineState.CRASHED: "crashed",
}
ACTIVE = ("starting", "running", "stopping", "unknown")
_STOP_S = 5.0


@contextmanager
def _translated() -> Iterator[None]:
    """The launcher's errors as ours."""
    try:
        yield
    except LauncherError as error:
        kind = (
            errors.ConflictError
            if isinstance(error, AlreadyRunningError | NotRunningError)
            else errors.VmError
        )
        raise kind(error.sentence.rstrip("."), error.way_out.rstrip(".")) from error


def spec_of(vm: Vm, ports: Sequence[PortRow], run_dir: Path) -> VmSpec:
    """A VM and its ports as the launcher takes them."""
    try:
        return VmSpec(
            name=vm.name,
            memory_bytes=vm.memory_bytes,
            cpus=vm.cpus,
            kernel=Path(vm.kernel) if vm.kernel else None,
            initrd=Path(vm.initrd) if vm.initrd else None,
            command_line=vm.cmdline,
            disks=tuple(DiskSpec(path=Path(disk), format=_format(disk)) for disk in vm.disks),
            nics=tuple(_nic_spec(row, run_dir) for row in ports),
        )
    except ValidationError as error:
        raise errors.invalid(error, f"VM {vm.name}") from error


def _nic_spec(row: PortRow, run_dir: Path) -> NicSpec:
    return NicSpec(
        name=row.port.name.partition("/")[2],
        mac=row.port.mac or "",
        socket_path=vm_socket(run_dir, row.port.name),
        queues=row.port.queues,
    )


def _format(disk: str) -> str:
    # By its name, never by its content, into which a guest could write another format's header.
    return "qcow2" if disk.endswith(".qcow2") else "raw"


async def _end(process: WatchedProcess) -> None:
    """Ends a QEMU that cannot be asked: its guest loses its power."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send(number)
        if await process.ends_within(_STOP_S):
            return


class Vms:
    """The machines.

    Args:
        run_dir: Where each has a folder.
        on_change: Called after each change of a machine's state, or of its NICs by its guest, with its name.
    """

    def __init__(self, run_dir: Path, on_change: Callable[[str], None] | None = None) -> None:
        self._run_dir = run_dir
        self.on_change = on_change
        self._machines: dict[str, Machine] = {}
        # QEMUs whose records cannot be read: they run, and can be stopped.
        self._strays: dict[str, WatchedProcess] = {}
        self._busy: set[str] = set()
        self._changes: dict[str, asyncio.Lock] = {}
        self._host: Host | None = None

    def _folder(self, name: str) -> Path:
        return self._run_dir / "vms" / name

    async def host(self) -> Host:
        """QEMU and the accelerator here, asked once."""
        if self._host is None:
            with _translated():
                self._host = await Host.detect()
            log.info("VMs run with %s: %s", self._host.accelerator.name, self._host.accelerator.reason)
        return self._host

    def _changed(self, machine: Machine) -> None:
        status = machine.status
        log.info("VM %s is %s %s", machine.spec.name, status.state, status.reason)
        if self.on_change is not None:
            self.on_change(machine.spec.name)

    async def find(self, names: Sequence[str]) -> None:
        """Looks for machines that an earlier daemon has started."""
        if not any(self._folder(name).exists() for name in names):
            return
        host = await self.host()
        for name in names:
            machine = Machine.find(self._folder(name), host, self._changed)
            if machine is not None:
                self._machines[name] = machine
            elif (process := find_process(self._folder(name))) is not None:
                self._strays[name] = process
                log.warning("VM %s: %s", name, self.reason(name))

    @property
    def accelerator(self) -> str:
        """What VMs run with here, and why; empty before it was asked."""
        return f"{self._host.accelerator.name}: {self._host.accelerator.reason}" if self._host else ""

    def state(self, name: str) -> VmState:
        """One of model.VmState. `unknown`: it runs, and no more than that is known."""
        if self._stray(name) is not None:
            return "unknown"
        machine = self._machines.get(name)
        return _STATES[machine.status.state] if machine else "stopped"

    def _stray(self, name: str) -> WatchedProcess | None:
        process = self._strays.get(name)
        return process if process is not None and process.running else None

    def reason(self, name: str) -> str:
        """Why it is in its state; may be empty."""
        if (stray := self._stray(name)) is not None:
            record = VmPaths(self._folder(name)).record
            return f"its QEMU runs (pid {stray.pid}), but {record} cannot be read: it can only be stopped"
        machine = self._machines.get(name)
        return machine.status.reason if machine is not None else ""

    def is_active(self, name: str) -> bool:
        """Whether it has a process, or is about to get one."""
        return name in self._busy or self.state(name) in ACTIVE

    def info(self, vm: Vm, ports: Sequence[PortRow]) -> VmInfo:
        """A VM and what it is doing."""
        machine = self._machines.get(vm.name)
        status = machine.status if machine else None
        stray = self._stray(vm.name)
        active = self.state(vm.name) in ACTIVE
        accelerator = self._host.accelerator.name if self._host and active else None
        return VmInfo(
            **{field: getattr(vm, field) for field in Vm.model_fields},
            state=self.state(vm.name),
            reason=self.reason(vm.name),
            pid=stray.pid if stray else status.pid if status else None,
            accelerator=accelerator,
            ports=[row.port.name for row in ports],
        )

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """One start, stop or change of a VM at a time."""
        if name in self._busy:
            raise errors.ConflictError(
                f"VM {name} is being started, stopped or changed by somebody else", "try again"
            )
        self._busy.add(name)
        try:
            yield
        finally:
            self._busy.discard(name)

    @asynccontextmanager
    async def changing(self, name: str) -> AsyncIterator[None]:
        """One change of a VM's NICs after the other; it is neither started nor stopped meanwhile."""
        async with self._changes.setdefault(name, asyncio.Lock()), self._alone(name):
            yield

    async def wait_running(self, name: str) -> None:
        """Waits until a VM that was found again answers, and says which NICs it has."""
        if self._stray(name) is not None:
            raise errors.VmError(f"VM {name}: {self.reason(name)}")
        with _translated():
            await self._machines[name].wait_running()
            await self._machines[name].check_nics()

    def has_nic(self, name: str, nic: str) -> bool:
        """Whether a VM that runs has this NIC in its machine."""
        return any(spec.name == nic for spec in self._machines[name].spec.nics)

    def check_room(self, name: str) -> None:
        """Raises errors.ConflictError when a running VM has no free slot for one more NIC."""
        machine = self._machines[name]
        if not machine.has_free_slot:
            raise errors.ConflictError(
                f"VM {name} has no free slot for one more NIC while it runs",
                "detach one, or stop it, attach the NIC, and start it",
            )

    async def plug(self, name: str, row: PortRow) -> None:
        """Plugs a NIC into a running VM; the data plane must be connecting to its socket."""
        with _translated():
            await self._machines[name].plug_nic(_nic_spec(row, self._run_dir))

    async def unplug(self, name: str, nic: str) -> None:
        """Takes a NIC out of a running VM, when it has it; its guest has to let go of it."""
        if self.has_nic(name, nic):
            with _translated():
                await self._machines[name].unplug_nic(nic)

    async def set_carrier(self, name: str, nic: str, up: bool) -> None:
        """Lets the guest of a running VM see the carrier of a NIC, or see it gone."""
        with _translated():
            await self._machines[name].set_carrier(nic, up)

    async def start(self, vm: Vm, ports: Sequence[PortRow]) -> None:
        """Starts a VM; returns when its guest's processors run.

        The data plane must be connecting to its sockets.
        """
        async with self._alone(vm.name):
            if self.state(vm.name) in ACTIVE:
                raise errors.ConflictError(
                    f"VM {vm.name} runs already", f"`vswitch vm stop {vm.name}` stops it"
                )
            spec = spec_of(vm, ports, self._run_dir)
            machine = Machine(spec, self._folder(vm.name), await self.host(), self._changed)
            with _translated():
                self._folder(vm.name).mkdir(mode=0o750, parents=True, exist_ok=True)
                await machine.start()
                self._machines[vm.name] = machine
                self._share_console(machine)
                try:
                    await machine.wait_running()
                except (LauncherError, asyncio.CancelledError):
                    with contextlib.suppress(NotRunningError):
                        await machine.stop(0)
                    raise

    def _share_console(self, machine: Machine) -> None:
        """Members of the group that may ask for everything may also sit at the console."""
        with contextlib.suppress(OSError, KeyError):
            group = grp.getgrnam(GROUP).gr_gid
            os.chown(machine.paths.run_dir, -1, group)
            machine.paths.run_dir.chmod(0o750)
            os.chown(machine.paths.console, -1, group)
            machine.paths.console.chmod(0o660)

    async def stop(self, name: str, timeout_s: float) -> None:
        """Stops a VM: asked first, for `timeout_s`; 0: at once."""
        if (stray := self._stray(name)) is not None:
            async with self._alone(name):
                await _end(stray)
            return
        machine = self._machines.get(name)
        if machine is None or self.state(name) not in ACTIVE:
            raise errors.ConflictError(f"VM {name} does not run")
        async with self._alone(name):
            with _translated():
                await machine.stop(timeout_s)

    async def forget(self, name: str) -> None:
        """Removes what a stopped VM has left in its run folder."""
        self._strays.pop(name, None)
        machine = self._machines.pop(name, None)
        if machine is not None:
            await machine.close()
        shutil.rmtree(self._folder(name), ignore_errors=True)

    async def close(self) -> None:
        """Lets go of all machines; those that run go on."""
        for machine in self._machines.values():
            await machine.close()
        for process in self._strays.values():
            process.close()

    def console(self, name: str) -> Console:
        """Where a running VM's serial console is."""
        if self._stray(name) is not None:
            found = VmPaths(self._folder(name))
            return Console(socket=str(found.console), log=str(found.console_log))
        machine = self._machines.get(name)
        if machine is None or self.state(name) not in ACTIVE:
            raise errors.ConflictError(f"VM {name} does not run", f"`vswitch vm start {name}` starts it")
        return Console(socket=str(machine.paths.console), log=str(machine.paths.console_log))
