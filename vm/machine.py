"""The life of one virtual machine's process: start, watch, stop, find again after we were restarted.

QEMU runs in a session of its own and outlives us. What must be known to find it again lies in its run folder.
All of it runs in one event loop; a watching task per running machine waits for QEMU's end and for its events.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from vm.console import GuestConsole
from vm.errors import (
    AlreadyRunningError,
    FileMissingError,
    LaunchError,
    NotEnoughMemoryError,
    NotRunningError,
    QmpCommandError,
)
from vm.host import Host, listening, memory_available_bytes
from vm.process import WatchedProcess, command_line, start_time
from vm.qemu import SPARE_NIC_SLOTS, VmPaths, device_options, netdev_options, qemu_argv
from vm.qmp import Event, Monitor
from vm.spec import NicSpec, VmSpec

SOCKETS_TIMEOUT_S = 10.0
QUIT_TIMEOUT_S = 3.0
GRACE_S = 10.0
_LOG_TAIL_LINES = 5


class VmState(StrEnum):
    """Where a machine stands in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"


class StopWay(StrEnum):
    """What it took to stop a machine, from the kindest to the last."""

    GUEST = "guest"
    QUIT = "quit"
    TERMINATED = "terminated"
    KILLED = "killed"


class VmStatus(BaseModel):
    """A machine's state, with its reason in words where there is something to say, and its process."""

    model_config = ConfigDict(frozen=True)

    state: VmState
    reason: str = ""
    pid: int | None = None


class _Record(BaseModel):
    """The file by which a running machine is found again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: VmSpec
    slots: dict[str, int]
    slot_count: int
    pid: int | None = None
    started: int | None = None


def find_process(run_dir: Path) -> WatchedProcess | None:
    """The QEMU that has written its pid into a run folder and still runs; call it in the event loop."""
    pidfile = VmPaths(run_dir).pidfile
    try:
        pid = int(pidfile.read_text())
    except (OSError, ValueError):
        return None
    started = start_time(pid)
    if started is None or str(pidfile) not in command_line(pid):
        return None
    return WatchedProcess.find(pid, started)


class Machine:
    """One virtual machine in one run folder.

    Args:
        spec: what it is.
        run_dir: its own folder (made when missing, mode 0700). Its path must leave room for socket names.
        host: what QEMU and accelerator to use.
        on_change: called with the machine after each change of `status`, and when its guest let go of a NIC
            that nobody waits for any more, from the event loop.
    """

    def __init__(
        self, spec: VmSpec, run_dir: Path, host: Host, on_change: Callable[["Machine"], None] | None = None
    ) -> None:
        self.spec = spec
        self.paths = VmPaths(run_dir)
        self._host = host
        self._on_change = on_change
        self._status = VmStatus(state=VmState.STOPPED)
        self._assign_slots()
        self._process: WatchedProcess | None = None
        self._monitor: Monitor | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._answers = asyncio.Event()
        self._stop_way: StopWay | None = None
        self._shutdown_cause = ""
        self._unplugging: set[str] = set()

    @classmethod
    def find(
        cls, run_dir: Path, host: Host, on_change: Callable[["Machine"], None] | None = None
    ) -> Self | None:
        """Finds the machine of a run folder again, whether it still runs or not; call it in the event loop.

        Returns: the machine, watched from now on when it runs; None when the folder holds none, or its record
        can't be read: then `find_process()` tells whether its QEMU runs.
        """
        try:
            record = _Record.model_validate_json(VmPaths(run_dir).record.read_bytes())
        except (OSError, ValidationError):
            return None
        machine = cls(record.spec, run_dir, host, on_change)
        machine._slots = dict(record.slots)
        machine._slot_count = record.slot_count
        process = machine._find_process(record)
        if process is not None:
            machine._watch(process)
        elif machine.paths.pidfile.exists():
            machine._status = VmStatus(
                state=VmState.CRASHED,
                reason=f"QEMU ended while nobody watched, not in order. {machine._log_tail()}",
            )
        return machine

    @property
    def status(self) -> VmStatus:
        """State, reason and pid, as of now."""
        return self._status

    async def start(self) -> None:
        """Starts QEMU and returns when all its sockets listen: the switch can connect now.

        The machine answers QMP, and its guest runs, only after something has connected to each NIC's socket:
        see `wait_running()`.

        Raises:
            AlreadyRunningError: it runs.
            FileMissingError: a kernel, initrd, disk or folder of the description isn't there.
            NotEnoughMemoryError: the host has too little.
            LaunchError: QEMU ended, with its words; or a socket is in use.
        """
        if self._process is not None:
            raise AlreadyRunningError(f"VM {self.spec.name} runs already.", "Stop it first.")
        sockets = [nic.socket_path for nic in self.spec.nics]
        self._check_before_start(sockets)
        self._make_run_dir()
        argv = qemu_argv(
            self.spec, self.paths, self._host.accelerator.name, self._host.version, self._host.program
        )
        self._assign_slots()
        self._write_record(None)
        try:
            process = WatchedProcess.spawn(argv, self.paths.log)
        except OSError as error:
            raise LaunchError(f"{self._host.program} can't be started: {error.strerror}.") from error
        self._watch(process)
        self._write_record(process)
        await self._wait_for_sockets({*sockets, self.paths.qmp, self.paths.console})

    async def wait_running(self, timeout_s: float = 20.0) -> None:
        """Waits until QEMU answers QMP: the guest's processors run.

        Raises:
            LaunchError: QEMU ended instead, or does not answer in time.
        """
        if self._watcher is None:
            raise NotRunningError(f"VM {self.spec.name} does not run.", "Start it first.")
        answers = asyncio.create_task(self._answers.wait())
        try:
            await asyncio.wait(
                [answers, self._watcher], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            answers.cancel()
        if self._status.state in (VmState.CRASHED, VmState.STOPPED):
            raise LaunchError(f"VM {self.spec.name} ended while it was starting: {self._status.reason}")
        if not self._answers.is_set():
            raise LaunchError(
                f"VM {self.spec.name} did not begin to run within {timeout_s:g} s.",
                "QEMU waits until the switch has connected to the socket of each NIC.",
            )

    async def stop(self, grace_s: float = GRACE_S) -> StopWay:
        """Stops the machine: presses its power button, and when that does not help, takes harder means.

        Args:
            grace_s: how long the guest may take to shut down; 0 does not ask it.

        Returns: what it took.

        Raises:
            NotRunningError: it does not run.
        """
        process = self._process
        if process is None:
            raise NotRunningError(f"VM {self.spec.name} does not run.", "There is nothing to stop.")
        self._set_status(VmStatus(state=VmState.STOPPING, pid=process.pid))
        if self._monitor is None and grace_s > 0:
            with contextlib.suppress(TimeoutError):  # just found again, or just started
                await asyncio.wait_for(self._answers.wait(), 1)
        monitor = self._monitor
        if monitor is not None:
            if grace_s > 0 and await self._ask(monitor, "system_powerdown", StopWay.GUEST, grace_s):
                return await self._stopped(StopWay.GUEST)
            if await self._ask(monitor, "quit", StopWay.QUIT, QUIT_TIMEOUT_S):
                return await self._stopped(StopWay.QUIT)
        self._stop_way = StopWay.TERMINATED
        process.send(signal.SIGTERM)
        if await process.ends_within(QUIT_TIMEOUT_S if monitor is not None else 0.5):
            return await self._stopped(StopWay.TERMINATED)
        self._stop_way = StopWay.KILLED
        process.send(signal.SIGKILL)
        await process.ends_within(QUIT_TIMEOUT_S)
        return await self._stopped(StopWay.KILLED)

    async def wait_ended(self) -> VmStatus:
        """Waits until the machine does not run any more, and returns its status."""
        if self._watcher is not None:
            await asyncio.wait([self._watcher])
        return self._status

    async def console(self, transcript: Path | None = None) -> GuestConsole:
        """Connects to the serial console; see `GuestConsole`."""
        return await GuestConsole.connect(self.paths.console, transcript)

    async def close(self) -> None:
        """Lets go of the machine without stopping it: it can be found again from its run folder."""
        if self._watcher is not None and self._process is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._process.close()
            self._process = None

    async def plug_nic(self, nic: NicSpec, timeout_s: float = 10.0) -> None:
        """Plugs a NIC into the running machine.

        The socket listens at once; the switch must connect to it meanwhile, because QEMU would stop the whole
        machine to wait for it.

        Raises:
            NotRunningError: the machine does not run.
            LaunchError: no free slot, or a name that is taken.
            QmpCommandError: nothing connected in time, or QEMU refused; nothing is left of the NIC then.
        """
        monitor = self._running_monitor()
        slot = self._free_slot(nic)
        address = {"type": "unix", "data": {"path": str(nic.socket_path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        done: list[tuple[str, str]] = []
        await self._remove_leftovers(monitor, nic.name)
        try:
            await monitor.execute("chardev-add", {"id": f"{nic.name}-socket", "backend": backend})
            done.append(("chardev-remove", f"{nic.name}-socket"))
            await self._wait_for_peer(monitor, f"{nic.name}-socket", timeout_s)
            await monitor.execute("netdev_add", netdev_options(nic))
            done.append(("netdev_del", nic.name))
            device = device_options(nic, slot, self._host.accelerator.name)
            await monitor.execute("device_add", device)
        except QmpCommandError:
            for command, identity in reversed(done):
                with contextlib.suppress(QmpCommandError):
                    await monitor.execute(command, {"id": identity})
            raise
        self._slots[nic.name] = slot
        self.spec = self.spec.model_copy(update={"nics": (*self.spec.nics, nic)})
        self._write_record(self._process)

    @property
    def has_free_slot(self) -> bool:
        """Whether one more NIC can be plugged in while it runs."""
        return len(self._slots) < self._slot_count

    async def set_carrier(self, name: str, up: bool) -> None:
        """Lets the guest of the running machine see the carrier of a NIC, or see it gone.

        Said of the device, not of its back end: that one's link is QEMU's own word for whether the switch is
        connected. QEMU forgets ours when the switch connects anew, and must be told again then.

        Raises:
            NotRunningError: the machine does not run.
            QmpCommandError: it has no such NIC.
        """
        await self._running_monitor().execute("set_link", {"name": f"{name}-device", "up": up})

    async def unplug_nic(self, name: str, timeout_s: float = 10.0) -> None:
        """Takes a NIC out of the running machine; its guest has to let go of it.

        A guest that did not let go in time may do so later: asking again then goes on from there.

        Raises:
            NotRunningError: the machine does not run.
            QmpCommandError: it has no such NIC, or the guest did not let go in time.
        """
        monitor = self._running_monitor()
        self._unplugging.add(name)
        try:
            await monitor.execute_until_event(
                "device_del", {"id": f"{name}-device"}, "DEVICE_DELETED", timeout_s=timeout_s
            )
        except QmpCommandError as error:
            # The guest has let go after we had stopped waiting for it: the back end is left to remove.
            if name not in self._slots or "not found" not in error.sentence:
                raise
        finally:
            self._unplugging.discard(name)
        await monitor.execute("netdev_del", {"id": name})  # takes its chardev along
        self._forget_nic(name)

    def _forget_nic(self, name: str) -> None:
        self._slots.pop(name, None)
        nics = tuple(nic for nic in self.spec.nics if nic.name != name)
        self.spec = self.spec.model_copy(update={"nics": nics})
        self._write_record(self._process)

    async def check_nics(self) -> None:
        """Forgets NICs that the machine does not have: a launcher was killed while it unplugged them.

        Raises:
            NotRunningError: the machine does not run.
            QmpCommandError: QEMU does not answer.
        """
        answer = await self._running_monitor().execute("qom-list", {"path": "/machine/peripheral"})
        there = {item["name"] for item in cast(list[dict[str, str]], answer)}
        for nic in self.spec.nics:
            if f"{nic.name}-device" not in there:
                self._forget_nic(nic.name)

    async def _remove_leftovers(self, monitor: Monitor, name: str) -> None:
        """Takes away what a launcher that was killed while it plugged the NIC has left; usually nothing."""
        device: dict[str, object] = {"id": f"{name}-device"}
        with contextlib.suppress(QmpCommandError):
            await monitor.execute_until_event("device_del", device, "DEVICE_DELETED", timeout_s=5)
        for command, identity in (("netdev_del", name), ("chardev-remove", f"{name}-socket")):
            with contextlib.suppress(QmpCommandError):
                await monitor.execute(command, {"id": identity})

    # --- before the start ---

    def _assign_slots(self) -> None:
        """Each NIC of the description has the PCI Express port of its number; the spare ones come after."""
        self._slots = {nic.name: index for index, nic in enumerate(self.spec.nics)}
        self._slot_count = len(self._slots) + SPARE_NIC_SLOTS

    def _check_before_start(self, sockets: list[Path]) -> None:
        spec = self.spec
        files = [spec.kernel, spec.initrd, *(disk.path for disk in spec.disks)]
        for path in files:
            if path is not None and not os.access(path, os.R_OK):
                raise FileMissingError(f"VM {spec.name} needs {path}, which does not exist or can't be read.")
        for path in sockets:
            if not path.parent.is_dir():
                raise FileMissingError(f"The folder of the socket {path} of VM {spec.name} does not exist.")
        taken = listening(sockets)
        if taken:
            raise LaunchError(
                f"The socket {sorted(taken)[0]} of VM {spec.name} is in use by another process.",
                "Give the NIC another socket, or end that process.",
            )
        free = memory_available_bytes()
        if spec.memory_bytes > free:
            raise NotEnoughMemoryError(
                f"VM {spec.name} wants {spec.memory_bytes >> 20} MiB; {free >> 20} MiB are free here.",
                "Give it less memory, or stop another VM.",
            )

    def _make_run_dir(self) -> None:
        try:
            self.paths.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self.paths.pidfile, self.paths.log, self.paths.qmp, self.paths.console):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise LaunchError(
                f"The run folder {self.paths.run_dir} can't be used: {error.strerror}."
            ) from error

    async def _wait_for_sockets(self, wanted: set[Path]) -> None:
        try:
            async with asyncio.timeout(SOCKETS_TIMEOUT_S):
                while listening(wanted) != wanted:
                    if self._process is None:
                        raise LaunchError(f"VM {self.spec.name} did not start: {self._status.reason}")
                    await asyncio.sleep(0.005)
        except TimeoutError:
            await self.stop(0)
            raise LaunchError(
                f"QEMU of VM {self.spec.name} did not open its sockets within {SOCKETS_TIMEOUT_S:g} s.",
                f"See {self.paths.log}.",
            ) from None

    # --- the record ---

    def _write_record(self, process: WatchedProcess | None) -> None:
        record = _Record(spec=self.spec, slots=self._slots, slot_count=self._slot_count)
        if process is not None:
            record = record.model_copy(update={"pid": process.pid, "started": process.started})
        temporary = self.paths.record.with_suffix(".new")
        temporary.write_text(record.model_dump_json(indent=1))
        temporary.rename(self.paths.record)

    def _find_process(self, record: _Record) -> WatchedProcess | None:
        if record.pid is not None and record.started is not None:
            return WatchedProcess.find(record.pid, record.started)
        # We ended between starting QEMU and writing down its pid: QEMU has written it, and names this file.
        return find_process(self.paths.run_dir)

    # --- watching ---

    def _watch(self, process: WatchedProcess) -> None:
        self._process = process
        self._stop_way = None
        self._shutdown_cause = ""
        self._answers.clear()
        self._set_status(VmStatus(state=VmState.STARTING, pid=process.pid))
        self._watcher = asyncio.create_task(self._watch_to_the_end(process), name=f"vm {self.spec.name}")

    async def _watch_to_the_end(self, process: WatchedProcess) -> None:
        following = asyncio.create_task(self._follow_monitor(process))
        try:
            code = await process.wait()
        finally:
            following.cancel()
            await asyncio.wait([following])
            if self._monitor is not None:
                await self._monitor.close()
                self._monitor = None
        self._process = None
        self._set_status(self._end_status(code))

    async def _follow_monitor(self, process: WatchedProcess) -> None:
        while not listening([self.paths.qmp]):  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.005)
        try:
            monitor = await Monitor.connect(self.spec.name, self.paths.qmp)
        except QmpCommandError as error:
            reason = f"It runs, but can't be controlled: {error.sentence}"
            self._set_status(VmStatus(state=VmState.RUNNING, reason=reason, pid=process.pid))
            return
        self._monitor = monitor
        if self._status.state == VmState.STARTING:
            self._set_status(VmStatus(state=VmState.RUNNING, pid=process.pid))
        self._answers.set()
        await monitor.events(self._on_event)

    def _on_event(self, name: str, data: Event) -> None:
        if name == "SHUTDOWN":
            self._shutdown_cause = str(data.get("reason", ""))
        elif name == "GUEST_PANICKED":
            self._shutdown_cause = "guest-panic"
        elif name == "DEVICE_DELETED":
            self._device_gone(str(data.get("device", "")).removesuffix("-device"))

    def _device_gone(self, name: str) -> None:
        """The guest let go of a NIC that nobody waits for any more."""
        if name in self._slots and name not in self._unplugging:
            self._forget_nic(name)
            if self._on_change is not None:
                self._on_change(self)

    def _end_status(self, code: int | None) -> VmStatus:
        ours = self._stop_way in (StopWay.TERMINATED, StopWay.KILLED)
        if code is not None and code < 0 and not ours:
            name = signal.Signals(-code).name
            reason = f"QEMU was ended by signal {-code} ({name}). {self._log_tail()}"
            return VmStatus(state=VmState.CRASHED, reason=reason.strip())
        if self._stop_way is not None:
            words = {
                StopWay.GUEST: "The guest shut down when asked.",
                StopWay.QUIT: "QEMU was told to quit: the guest was not asked, or did not shut down in time.",
                StopWay.TERMINATED: "QEMU did not answer and was terminated.",
                StopWay.KILLED: "QEMU did not answer and was killed.",
            }
            return VmStatus(state=VmState.STOPPED, reason=words[self._stop_way])
        if code:
            reason = f"QEMU ended with status {code}."
        elif self._shutdown_cause == "guest-panic":
            reason = "The guest's kernel panicked."
        elif code is None and self.paths.pidfile.exists():
            reason = "QEMU ended without tidying up, as when it is killed."
        else:
            words_of_qemu = {
                "guest-shutdown": "The guest shut itself down.",
                "host-signal": "QEMU got a signal.",
            }
            return VmStatus(state=VmState.STOPPED, reason=words_of_qemu.get(self._shutdown_cause, ""))
        return VmStatus(state=VmState.CRASHED, reason=f"{reason} {self._log_tail()}".strip())

    def _log_tail(self) -> str:
        try:
            lines = self.paths.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        told = [line for line in lines if ": info: " not in line][-_LOG_TAIL_LINES:]
        return "QEMU said: " + " / ".join(told) if told else ""

    def _set_status(self, status: VmStatus) -> None:
        if status != self._status:
            self._status = status
            if self._on_change is not None:
                self._on_change(self)

    # --- while it runs ---

    def _running_monitor(self) -> Monitor:
        if self._monitor is None:
            raise NotRunningError(f"VM {self.spec.name} does not run yet or any more.", "Start it first.")
        return self._monitor

    async def _ask(self, monitor: Monitor, command: str, way: StopWay, seconds: float) -> bool:
        """Asks for the end by QMP; True when it came in time."""
        assert self._process is not None
        process = self._process
        self._stop_way = way
        with contextlib.suppress(QmpCommandError):  # also when QEMU ends before it has answered
            await monitor.execute(command)
        return await process.ends_within(seconds)

    async def _stopped(self, way: StopWay) -> StopWay:
        await self.wait_ended()
        return way

    async def _wait_for_peer(self, monitor: Monitor, chardev: str, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    answer = cast(list[dict[str, str]], await monitor.execute("query-chardev"))
                    states = {item["label"]: item["filename"] for item in answer}
                    if not states.get(chardev, "disconnected:").startswith("disconnected:"):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise QmpCommandError(
                f"Nothing connected to the new NIC of VM {self.spec.name} within {timeout_s:g} s.",
                "The switch has to connect to its socket.",
            ) from None

    def _free_slot(self, nic: NicSpec) -> int:
        if nic.name in self._slots:
            raise LaunchError(f"VM {self.spec.name} has a NIC {nic.name} already.")
        free = sorted(set(range(self._slot_count)) - set(self._slots.values()))
        if not free:
            raise LaunchError(f"VM {self.spec.name} has no free slot for a NIC.", "Restart it with the NIC.")
        return free[0]
