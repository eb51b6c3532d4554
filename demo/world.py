"""The demo's own small world: a daemon of its own, guests with consoles, and the way back."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.report import Report, StepContext
from vm.console import GuestConsole, GuestResult
from vm.image import GuestImage
from vswitch import launch
from vswitch.client import Client
from vswitch.errors import VswitchError
from vswitch.model import Nic, VmCreate

GUEST_MEMORY_BYTES = 192 << 20
BOOT_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0
_RECEIVED = re.compile(r"(\d+) packets transmitted, (\d+) (?:packets )?received")


@dataclass(frozen=True)
class Ping:
    """What a ping showed: probes sent, answers received, and its raw output."""

    sent: int
    received: int
    output: str

    @property
    def works(self) -> bool:
        """True when every probe was answered."""
        return self.sent > 0 and self.received == self.sent

    @property
    def stopped(self) -> bool:
        """True when probes were sent and none was answered."""
        return self.sent > 0 and self.received == 0

    def __str__(self) -> str:
        return f"{self.received} of {self.sent} answered"


def parse_ping(output: str) -> Ping:
    """Reads the last lines of ping (iputils and busybox). Nothing readable: nothing was sent."""
    match = _RECEIVED.search(output)
    return Ping(int(match[1]), int(match[2]), output) if match else Ping(0, 0, output)


class Guest:
    """A running guest: its name on the switch and its shell."""

    def __init__(self, name: str, console: GuestConsole) -> None:
        self.name = name
        self.console = console

    async def run(self, command: str, timeout: float = 20.0) -> GuestResult:  # noqa: ASYNC109 - the console's own
        """Runs a command in the guest's shell."""
        return await self.console.run(command, timeout=timeout)

    async def ping(self, address: str, count: int = 3) -> Ping:
        """Pings from the guest; waits one second at most for the last answer."""
        result = await self.run(f"ping -c {count} -i 0.2 -W 1 {address}", timeout=count + 15.0)
        return parse_ping(result.output)


class World:
    """The daemon and all that the demo makes. Leaving the context removes it, whatever happened.

    Args:
        report: where raw outputs go and what is going on is said.
        image: the guests' kernel and initramfs.
    """

    def __init__(self, report: Report, image: GuestImage) -> None:
        self._report = report
        self._image = image
        # Short: a unix socket's path has 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="vswitch-demo-"))
        self.client = Client(self.folder / "api.sock")
        self._guests: list[Guest] = []
        self._daemon_pid: int | None = None

    async def __aenter__(self) -> Self:
        self._report.say("starting vswitchd and the data plane")
        status, _ = await asyncio.to_thread(launch.up, self.folder / "state", self.folder / "api.sock")
        self._daemon_pid = status.pid
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report.say("removing guests, switches and the daemon")
        for guest in self._guests:
            with contextlib.suppress(Exception):
                await guest.console.close()
        try:
            await asyncio.to_thread(self.client.stop, force=True)
            await self._daemon_gone()
        except (VswitchError, TimeoutError) as problem:
            self._report.say(f"the daemon did not end by itself ({problem}); it is killed")
            self._kill_rest()
        self.client.close()
        self._keep_logs()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _daemon_gone(self) -> None:
        """Waits for the daemon's end; it is our child."""
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while not self._daemon_ended():  # noqa: ASYNC110 - a process's end is no event of this loop
                await asyncio.sleep(0.02)

    def _daemon_ended(self) -> bool:
        if self._daemon_pid is None:
            return True
        try:
            return os.waitpid(self._daemon_pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return not Path(f"/proc/{self._daemon_pid}").exists()

    def _kill_rest(self) -> None:
        """Ends processes that carry our folder in their command line: the daemon, the data plane and QEMU."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)

    def _keep_logs(self) -> None:
        logs = self._report.folder / "logs"
        logs.mkdir(exist_ok=True)
        for log in self.folder.rglob("*.log"):
            with contextlib.suppress(OSError):
                shutil.copy(log, logs / f"{log.parent.name}-{log.name}")

    def boot(self, name: str, nics: tuple[Nic, ...], addresses: str) -> None:
        """Makes a guest and starts it; `shell()` waits for it. `addresses`: such as eth0=10.0.0.1/24."""
        self.client.create_vm(
            VmCreate(
                name=name,
                memory_bytes=GUEST_MEMORY_BYTES,
                kernel=str(self._image.kernel),
                initrd=str(self._image.initrd),
                cmdline=f"{self._image.command_line} vswitch.hostname={name} vswitch.ip={addresses}",
                nics=nics,
            )
        )
        info = self.client.start_vm(name)
        self._report.accelerator = info.accelerator or self._report.accelerator

    async def shell(self, name: str) -> Guest:
        """The guest's shell, when it answers."""
        transcript = self._report.folder / "raw" / f"console-{name}.txt"
        console = await GuestConsole.connect(Path(self.client.vm_console(name).socket), transcript)
        guest = Guest(name, console)
        self._guests.append(guest)
        await console.wait_ready(BOOT_TIMEOUT_S)
        return guest

    def counters(self) -> dict[str, object]:
        """All counters of all ports and rules, as they are now."""
        ports = [port.name for port in self.client.ports()]
        return {
            "ports": {name: self.client.port_stats(name).model_dump() for name in ports},
            "rules": {name: [rule.model_dump() for rule in self.client.acls(name)] for name in ports},
        }

    def keep_counters(self, step: StepContext, when: str) -> None:
        """Stores all counters beside the raw outputs. `when`: before or after."""
        step.keep(f"counters-{when}", json.dumps(self.counters(), indent=2))

    def dropped(self, port: str, reason: str) -> int:
        """Frames lost at a port for a reason."""
        return self.client.port_stats(port).drops.get(reason, 0)
