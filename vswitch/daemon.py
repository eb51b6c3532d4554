"""vswitchd: the process. Arguments, the lock that makes it the only one, its sockets, signals, the end.

SIGTERM ends vswitchd alone: the data plane and the VMs go on. SIGINT (Ctrl-C in a foreground run) and
`vswitch down` end everything but the VMs, which `down --force` stops too.
"""

import argparse
import asyncio
import contextlib
import fcntl
import grp
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import uvicorn

from vswitch import devices, errors, paths
from vswitch.api import PeerProtocol, make_app
from vswitch.apply import start_process
from vswitch.service import Places, Service
from vswitch.store import Store
from vswitch.vms import Vms
from vswitch.words import SOCKET_PATH_MAX

log = logging.getLogger("vswitch.daemon")

WORKERS_MAX = 8


def parse_workers(text: str) -> tuple[int, ...]:
    """`2,3` or `2-3` as CPU numbers; -1 alone: one worker that is not pinned.

    Raises:
        errors.InvalidInputError: It is no such list, or a CPU is not there.
    """
    if text == "-1":
        return (-1,)
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise errors.InvalidInputError(f"--workers {text} is not a list of CPUs such as 2,3 or 2-3")
        cpus += range(int(first), int(last or first) + 1)
    usable = os.sched_getaffinity(0)
    missing = [cpu for cpu in cpus if cpu not in usable]
    if missing:
        known = ", ".join(map(str, sorted(usable)))
        raise errors.InvalidInputError(
            f"--workers {text}: CPU {missing[0]} cannot be used here", f"these can: {known}"
        )
    if not cpus or len(set(cpus)) != len(cpus) or len(cpus) > WORKERS_MAX:
        raise errors.InvalidInputError(f"--workers {text}: 1 to {WORKERS_MAX} different CPUs are possible")
    return tuple(cpus)


def _make_group() -> None:
    """The group whose members may use the switch."""
    with contextlib.suppress(KeyError):
        grp.getgrnam(devices.GROUP)
        return
    if os.geteuid() != 0:
        return
    program = shutil.which("groupadd") or "/usr/sbin/groupadd"
    try:
        subprocess.run([program, "--system", devices.GROUP], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("no group %s could be made (%s): only root can use the switch", devices.GROUP, error)


def _is_made(path: Path, mode: int) -> bool:
    """Makes a directory; False: it was there."""
    try:
        path.mkdir(mode=mode, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    return True


def _make_dir(path: Path, mode: int, group: bool) -> None:
    """A directory of ours. Who may enter one that was there is said by whoever made it, not by us."""
    try:
        made = _is_made(path, mode)
        if os.geteuid() not in (0, path.stat().st_uid):
            # In /tmp, anybody may have been there first.
            raise errors.NotPermittedError(
                f"{path} belongs to another user", "give --state and --socket of your own"
            )
        # Members of the group must reach the sockets in it.
        if group and made:
            with contextlib.suppress(KeyError, PermissionError):
                os.chown(path, -1, grp.getgrnam(devices.GROUP).gr_gid)
    except PermissionError as error:
        raise errors.NotPermittedError(
            f"this user may not make {path}",
            "run vswitchd as root, or give it --state and --socket of your own",
        ) from error
    except OSError as error:
        raise errors.HostError(f"cannot make {path}: {error.strerror}") from error


@contextlib.contextmanager
def _only_one(path: Path, sentence: str, way_out: str) -> Iterator[None]:
    """Holds a lock file; where another daemon holds it, raises errors.ConflictError with this sentence."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.NotPermittedError(f"cannot write in {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise errors.ConflictError(sentence, way_out) from None
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone(state_dir: Path, run_dir: Path) -> Iterator[None]:
    """One daemon per state directory, and one per directory of sockets, where its data plane and VMs are."""
    with (
        _only_one(
            state_dir / "lock",
            f"a vswitchd with the state directory {state_dir} runs already",
            "`vswitch down` ends it",
        ),
        _only_one(
            run_dir / "vswitchd.lock",
            f"another vswitchd uses {run_dir}",
            "give this one a --socket in a directory of its own, or end the other with `vswitch down`",
        ),
    ):
        yield


class _Server(uvicorn.Server):
    """uvicorn, without its own signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the daemon's."""
        yield


async def _serve(service: Service, places: Places) -> None:
    app = make_app(service)
    listener = devices.listen(places.socket, "the API")
    config = uvicorn.Config(
        app, http=PeerProtocol, log_config=None, access_log=False, lifespan="off", ws="none"
    )
    server = _Server(config)
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, leaving.set)
    loop.add_signal_handler(signal.SIGINT, service.ended.set)
    try:
        await service.start()
        log.info("vswitchd serves on %s", places.socket)
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="API")
        ends = [asyncio.create_task(event.wait()) for event in (service.ended, leaving)]
        await asyncio.wait([serving, *ends], return_when=asyncio.FIRST_COMPLETED)
        if service.ended.is_set():
            await service.end()
        # Captures have no end of their own.
        server.should_exit = True
        done, _ = await asyncio.wait([serving], timeout=2)
        if not done:
            server.force_exit = True
            await asyncio.wait([serving], timeout=2)
    finally:
        listener.close()
        places.socket.unlink(missing_ok=True)
        await service.leave()
        log.info("vswitchd has ended")


def run(state_dir: Path, socket: Path, workers: Sequence[int]) -> None:
    """Runs the daemon until it is told to end.

    Raises:
        errors.VswitchError: It cannot start.
    """
    if len(os.fsencode(socket)) > SOCKET_PATH_MAX:
        raise errors.InvalidInputError(f"the socket path {socket} is longer than {SOCKET_PATH_MAX} bytes")
    _make_group()
    run_dir = socket.parent
    _make_dir(state_dir, 0o750, group=False)
    _make_dir(run_dir, 0o750, group=True)
    _make_dir(run_dir / "vms", 0o750, group=True)
    with _alone(state_dir, run_dir):
        store = Store(state_dir / "state.db")
        places = Places(state_dir, run_dir, socket)
        start = partial(start_process, workers, state_dir / "dataplane.log")
        service = Service(places, store, start, Vms(run_dir))
        asyncio.run(_serve(service, places))


def main() -> None:
    """The command `vswitchd`."""
    parser = argparse.ArgumentParser(
        prog="vswitchd", description="The switch's daemon; `vswitch up` starts it."
    )
    parser.add_argument(
        "--state", type=Path, default=paths.default_state_dir(), metavar="DIR", help="where its store is"
    )
    parser.add_argument(
        "--socket", type=Path, default=paths.default_socket(), metavar="PATH", help="the API's socket"
    )
    parser.add_argument(
        "--workers", default="-1", metavar="CPULIST", help="CPUs of the data plane's workers, such as 2,3"
    )
    arguments = parser.parse_args()
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr
    )
    try:
        run(arguments.state.absolute(), arguments.socket.absolute(), parse_workers(arguments.workers))
    except errors.VswitchError as error:
        print(f"vswitchd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
