"""A process that may outlive us: started or found again, watched through a pidfd, never mistaken for another.

A pid alone may have been given to a stranger since; pid and start time together name one process.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Self


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), field 22); None when it does not run.

    A zombie counts as ended: it waits only for its parent to look.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name in field 2 may contain anything
    return None if fields[0] in "ZX" else int(fields[19])


def command_line(pid: int) -> list[str]:
    """The process's arguments; none when it does not run."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


class WatchedProcess:
    """A running process. Made inside an event loop; `close()` ends the watching, not the process.

    Attributes:
        pid: its number.
        started: its start time, see `start_time()`.
    """

    def __init__(self, pid: int, started: int, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.started = started
        self._pidfd = pidfd
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_end)

    @classmethod
    def spawn(cls, argv: list[str], log: Path) -> Self:
        """Starts a process in a session of its own, so that no signal or terminal of ours ends it.

        Raises:
            OSError: it can't be started.
        """
        with log.open("ab") as output:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        # Until we look at its exit (Popen.poll), even an ended child keeps its pid and its start time.
        text = Path(f"/proc/{child.pid}/stat").read_text()
        return cls(child.pid, int(text.rpartition(")")[2].split()[19]), os.pidfd_open(child.pid), child)

    @classmethod
    def find(cls, pid: int, started: int) -> Self | None:
        """Watches a process that runs already; None when that one has ended."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if start_time(pid) != started:  # looked at after the pidfd was opened: from now on it can't change
            os.close(pidfd)
            return None
        return cls(pid, started, pidfd, None)

    @property
    def running(self) -> bool:
        """False once its end was noticed."""
        return not self._ended.done()

    async def wait(self) -> int | None:
        """Waits for the end.

        Returns: the exit status, or minus the signal's number; None when it was not our child, and not told.
        """
        return await asyncio.shield(self._ended)

    async def ends_within(self, seconds: float) -> bool:
        """Waits that long at most; True when it has ended."""
        await asyncio.wait([self._ended], timeout=seconds)
        return self._ended.done()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, to this process and to no other; nothing happens when it has ended."""
        if self.running:  # after the end, the pidfd's number may be another file's
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Stops watching."""
        if not self._ended.done():
            self._loop.remove_reader(self._pidfd)
            self._ended.cancel()
            os.close(self._pidfd)
            if self._child is not None:
                self._child.returncode = 0  # Popen would warn that it still runs; that is as it should be

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(self._child.wait() if self._child is not None else None)
