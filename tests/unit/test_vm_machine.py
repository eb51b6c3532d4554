"""A machine's life with stand-ins for QEMU: refusals before the start, and finding machines again."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vm.accelerator import Accelerator
from vm.errors import FileMissingError, LaunchError, NotEnoughMemoryError, NotRunningError, VmError
from vm.host import Host, listening
from vm.machine import Machine, VmState, find_process
from vm.process import WatchedProcess, start_time
from vm.qemu import QemuVersion, VmPaths
from vm.spec import NicSpec, VmSpec


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because unix sockets' paths are."""
    with tempfile.TemporaryDirectory(prefix="vst-") as name:
        yield Path(name)


def host(program: str = "/bin/false") -> Host:
    return Host(QemuVersion(7, 2), Accelerator(name="tcg", reason="for the test"), program)


def machine(folder: Path, program: str = "/bin/false", **changes: Any) -> Machine:
    kernel = folder / "kernel"
    kernel.touch()
    return Machine(VmSpec(**{"name": "web", "kernel": kernel} | changes), folder / "web", host(program))


def script(folder: Path, body: str) -> str:
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def refused(made: Machine, kind: type[VmError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        asyncio.run(made.start())
    assert caught.value.code != VmError.code
    assert made.status.state in (VmState.STOPPED, VmState.CRASHED)


def test_missing_kernel_is_named(folder: Path) -> None:
    refused(machine(folder, kernel=folder / "none"), FileMissingError, "VM web needs .*none")


def test_missing_folder_of_a_socket_is_named(folder: Path) -> None:
    nic = NicSpec(name="eth0", mac="52:54:00:00:00:01", socket_path=folder / "none/a.sock")
    refused(machine(folder, nics=(nic,)), FileMissingError, "folder of the socket .*none/a.sock")


def test_more_memory_than_there_is_is_refused_with_both_numbers(folder: Path) -> None:
    refused(
        machine(folder, memory_bytes=1 << 44), NotEnoughMemoryError, r"wants 16777216 MiB; \d+ MiB are free"
    )


def test_socket_that_another_process_listens_on_is_refused(folder: Path) -> None:
    path = folder / "a.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        nic = NicSpec(name="eth0", mac="52:54:00:00:00:01", socket_path=path)
        refused(machine(folder, nics=(nic,)), LaunchError, "a.sock of VM web is in use")
        assert listening([path]) == {path}


def test_qemu_that_ends_at_once_is_told_in_its_own_words(folder: Path) -> None:
    words = "echo 'qemu: info: waiting' >&2; echo 'qemu: no such machine' >&2"
    program = script(folder, f"{words}; exit 1")
    refused(machine(folder, program), LaunchError, "ended with status 1. QEMU said: qemu: no such machine")


def test_qemu_that_is_not_there_is_told(folder: Path) -> None:
    refused(machine(folder, str(folder / "none")), LaunchError, "none can't be started")


def test_stopping_what_does_not_run_is_refused(folder: Path) -> None:
    with pytest.raises(NotRunningError, match="VM web does not run"):
        asyncio.run(machine(folder).stop())


def test_folder_without_a_machine_holds_none(folder: Path) -> None:
    assert Machine.find(folder, host()) is None
    (folder / "vm.json").write_text("{nonsense")
    assert Machine.find(folder, host()) is None


def test_a_machine_whose_record_is_damaged_is_still_known_to_run(folder: Path) -> None:
    pidfile = VmPaths(folder).pidfile

    async def found_pid() -> int | None:
        assert Machine.find(folder, host()) is None
        found = find_process(folder)
        if found is None:
            return None
        found.close()
        return found.pid

    qemu = subprocess.Popen(["/bin/sh", "-c", "read never", str(pidfile)], stdin=subprocess.PIPE)
    try:
        pidfile.write_text(f"{qemu.pid}\n")
        VmPaths(folder).record.write_text("{nonsense")
        assert asyncio.run(found_pid()) == qemu.pid
    finally:
        qemu.kill()
        qemu.wait()
    assert asyncio.run(found_pid()) is None


def test_pid_that_was_given_to_a_stranger_is_not_taken_for_the_machine(folder: Path) -> None:
    made = machine(folder, script(folder, "exit 0"))
    refused(made, LaunchError, "did not start")
    record = made.paths.record
    own = start_time(os.getpid())
    assert own is not None
    stranger = f'"pid": {os.getpid()}, "started": {own - 1}'
    record.write_text(record.read_text().rsplit('"pid"', 1)[0] + stranger + "}")

    async def body() -> None:
        found = Machine.find(made.paths.run_dir, host())
        assert found is not None
        assert found.status.state == VmState.STOPPED

    asyncio.run(body())


def test_machine_that_died_while_nobody_watched_is_found_as_crashed(folder: Path) -> None:
    made = machine(folder, script(folder, "exit 0"))
    refused(made, LaunchError, "did not start")
    made.paths.pidfile.write_text("1\n")  # QEMU removes it when it ends in order

    async def body() -> None:
        found = Machine.find(made.paths.run_dir, host())
        assert found is not None
        assert found.status.state == VmState.CRASHED
        assert "while nobody watched" in found.status.reason

    asyncio.run(body())


def test_process_that_is_not_ours_is_watched_to_its_end(folder: Path) -> None:
    # A grandchild whose parent has ended: nobody here can wait() for it.
    made = subprocess.run(
        ["sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    pid = int(made.stdout)

    async def body() -> None:
        started = start_time(pid)
        assert started is not None
        process = WatchedProcess.find(pid, started)
        assert process is not None
        assert process.running
        assert not await process.ends_within(0.01)
        process.send(signal.SIGTERM)
        assert await process.ends_within(5)
        assert await process.wait() is None
        process.send(signal.SIGTERM)  # nothing to send it to; no error

    asyncio.run(body())


def test_child_tells_its_exit_status(folder: Path) -> None:
    async def body() -> None:
        process = WatchedProcess.spawn(["sh", "-c", "echo said; exit 7"], folder / "log")
        assert await process.wait() == 7
        assert (folder / "log").read_text() == "said\n"

    asyncio.run(body())
