"""Starting the daemon in the background: `vswitch up`.

The daemon gets a session of its own, so that it outlives the terminal, and writes to a log file in its state
directory.
"""

import subprocess
import sys
import time
from pathlib import Path

from vswitch import errors, paths
from vswitch.client import Client
from vswitch.model import Status

_START_S = 20.0


def up(
    state_dir: Path | None = None, socket: Path | None = None, workers: str | None = None
) -> tuple[Status, bool]:
    """Starts vswitchd unless it runs, and waits until its API answers.

    Args:
        state_dir: The store and the log; by default /var/lib/vswitch, or below $XDG_STATE_HOME.
        socket: The API's socket; by default /run/vswitch/api.sock.
        workers: CPUs of the data plane's workers, such as `2,3`; by default one worker that is not pinned.

    Returns:
        The daemon's status, and True when it was started by this call.

    Raises:
        errors.UnavailableError: It ended at once or did not answer in time; the sentence has its last words.
    """
    socket = socket or paths.default_socket()
    state_dir = state_dir or paths.default_state_dir()
    with Client(socket) as client:
        try:
            return client.status(), False
        except errors.UnavailableError:
            pass
        log = state_dir / "vswitchd.log"
        process = _spawn(state_dir, socket, workers, log)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            try:
                return client.status(), True
            except errors.UnavailableError:
                if ended:
                    raise errors.UnavailableError(
                        f"vswitchd ended at once: {_last_words(log)}", f"its log is {log}"
                    ) from None
            time.sleep(0.05)
    process.terminate()
    raise errors.UnavailableError(
        f"vswitchd did not answer within {_START_S:.0f} s: {_last_words(log)}", f"its log is {log}"
    )


def _spawn(state_dir: Path, socket: Path, workers: str | None, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "vswitch.daemon", "--state", str(state_dir), "--socket", str(socket)]
    if workers:
        command += ["--workers", workers]
    try:
        state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        raise errors.HostError(
            f"cannot start vswitchd: {error.filename or ''} {error.strerror}".replace("  ", " ")
        ) from error


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"
