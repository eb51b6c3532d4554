"""Real guests under the launcher alone: no switch, at most a stub at the other end of a NIC's socket."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.system.vhost_stub import VhostStub
from vm.errors import ConsoleTimeoutError, LaunchError, NotRunningError
from vm.host import Host
from vm.machine import Machine, StopWay, VmState
from vm.spec import DiskSpec, NicSpec, VmSpec

pytestmark = pytest.mark.system

MakeSpec = Callable[..., VmSpec]


def run_and_stop(machine: Machine, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test's body in an event loop, and leaves no QEMU behind whatever happens."""

    async def whole() -> None:
        try:
            await body()
        finally:
            with contextlib.suppress(NotRunningError):
                await machine.stop(0)

    asyncio.run(whole())


def nic(run_dir: Path, name: str = "eth0", last: int = 1) -> NicSpec:
    return NicSpec(name=name, mac=f"52:54:00:00:00:{last:02x}", socket_path=run_dir / f"{name}.sock")


def test_guest_boots_runs_commands_and_shuts_down_when_asked(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    machine = Machine(guest_spec("web"), run_dir / "web", vm_host)

    async def body() -> None:
        begin = time.monotonic()
        await machine.start()
        await machine.wait_running()
        async with await machine.console(run_dir / "transcript") as console:
            await console.wait_ready(30)
            print(f"boot to shell: {time.monotonic() - begin:.2f} s")
            assert (await console.run("hostname")).output == "web\n"
            assert (await console.run("exit 7")).status == 7
            assert (await console.run("printf 'a\\nb'; echo ' it'\"'s\"")).output == "a\nb it's\n"
            assert len((await console.run("seq 1 20000")).output) == 108_894
            assert (await console.run("lsmod | grep -c -e virtio_net -e 8021q")).ok
        assert machine.status.pid is not None
        assert "web" in (run_dir / "transcript").read_text()

        assert await machine.stop() == StopWay.GUEST

        assert machine.status.state == VmState.STOPPED
        assert machine.status.reason == "The guest shut down when asked."
        with pytest.raises(NotRunningError):
            await machine.stop()

    run_and_stop(machine, body)


def test_console_survives_a_command_that_hangs(guest_spec: MakeSpec, run_dir: Path, vm_host: Host) -> None:
    machine = Machine(guest_spec("web"), run_dir / "web", vm_host)

    async def body() -> None:
        await machine.start()
        async with await machine.console() as console:
            await console.wait_ready(30)
            with pytest.raises(ConsoleTimeoutError, match="'echo so far; sleep 60' did not end") as caught:
                await console.run("echo so far; sleep 60", timeout=1)
            assert "so far" in caught.value.output
            assert (await console.run("pidof sleep")).status == 1
            assert (await console.run("echo again")).output == "again\n"

    run_and_stop(machine, body)


def test_guest_with_a_nic_runs_once_the_other_end_connects(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    spec = guest_spec("web", nics=(nic(run_dir),), arguments="vswitch.ip=10.0.0.1/24")
    machine = Machine(spec, run_dir / "web", vm_host)

    async def body() -> None:
        await machine.start()
        with pytest.raises(LaunchError, match="did not begin to run"):
            await machine.wait_running(0.5)
        async with VhostStub(run_dir / "eth0.sock"):
            await machine.wait_running()
            async with await machine.console() as console:
                await console.wait_ready(30)
                shown = (await console.run("ip addr show eth0")).output
                assert "52:54:00:00:00:01" in shown
                assert "inet 10.0.0.1/24" in shown
                assert (await console.run("vconfig add eth0 5 && ip link show eth0.5")).ok
                assert (await console.run("ip link set eth0 address 52:54:00:00:00:99")).ok
            assert await machine.stop() == StopWay.GUEST

    run_and_stop(machine, body)


def test_nic_is_plugged_into_and_out_of_a_running_guest(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    machine = Machine(guest_spec("web"), run_dir / "web", vm_host)

    async def connect_when_it_listens(path: Path) -> VhostStub:
        async with asyncio.timeout(10):
            while True:
                try:
                    return await VhostStub(path).__aenter__()
                except OSError:
                    await asyncio.sleep(0.01)

    async def body() -> None:
        await machine.start()
        async with await machine.console() as console:
            await console.wait_ready(30)
            connecting = asyncio.create_task(connect_when_it_listens(run_dir / "eth0.sock"))
            await machine.plug_nic(nic(run_dir))
            stub = await connecting
            appears = (
                "until [ -e /sys/class/net/eth0 ]; do usleep 50000; done; cat /sys/class/net/eth0/address"
            )
            assert (await console.run(appears)).output == "52:54:00:00:00:01\n"

            await machine.unplug_nic("eth0")

            assert machine.spec.nics == ()
            assert (await console.run("ls /sys/class/net")).output == "lo\n"
            await stub.__aexit__(None, None, None)

    run_and_stop(machine, body)


def test_plugging_a_nic_to_which_nothing_connects_leaves_nothing_behind(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    machine = Machine(guest_spec("web"), run_dir / "web", vm_host)

    async def body() -> None:
        await machine.start()
        await machine.wait_running()
        for _ in range(2):  # the second one would fail on what the first one left
            with pytest.raises(Exception, match="Nothing connected to the new NIC of VM web"):
                await machine.plug_nic(nic(run_dir), timeout_s=0.2)
        assert machine.status.state == VmState.RUNNING

    run_and_stop(machine, body)


def test_running_machine_is_found_again_after_its_launcher_let_go(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    machine = Machine(guest_spec("web"), run_dir / "web", vm_host)

    async def body() -> None:
        await machine.start()
        await machine.wait_running()
        pid = machine.status.pid
        await machine.close()

        found = Machine.find(run_dir / "web", vm_host)

        assert found is not None
        try:
            await found.wait_running()
            assert found.status.pid == pid
            assert found.spec == machine.spec
            async with await found.console() as console:
                await console.wait_ready(30)
        finally:
            way = await found.stop()
        assert way == StopWay.GUEST
        again = Machine.find(run_dir / "web", vm_host)
        assert again is not None
        assert again.status.state == VmState.STOPPED

    run_and_stop(machine, body)


def test_crash_is_noticed_with_its_signal_and_is_still_known_later(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    seen: list[VmState] = []
    machine = Machine(guest_spec("web"), run_dir / "web", vm_host, lambda m: seen.append(m.status.state))

    async def body() -> None:
        await machine.start()
        await machine.wait_running()
        assert machine.status.pid is not None
        os.kill(machine.status.pid, signal.SIGKILL)

        status = await machine.wait_ended()

        assert status.state == VmState.CRASHED
        assert "signal 9 (SIGKILL)" in status.reason
        assert seen == [VmState.STARTING, VmState.RUNNING, VmState.CRASHED]
        found = Machine.find(run_dir / "web", vm_host)
        assert found is not None
        assert found.status.state == VmState.CRASHED

    run_and_stop(machine, body)


def test_guest_reads_and_writes_its_disks_and_not_the_read_only_one(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    raw = run_dir / "raw.img"
    raw.write_bytes(b"from the host".ljust(1 << 20, b"."))
    qcow2 = run_dir / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, "8M"], check=True)
    disks = (DiskSpec(path=raw, format="raw", read_only=True), DiskSpec(path=qcow2))
    machine = Machine(guest_spec("web").model_copy(update={"disks": disks}), run_dir / "web", vm_host)

    async def body() -> None:
        await machine.start()
        async with await machine.console() as console:
            await console.wait_ready(30)
            assert (await console.run("head -c 13 /dev/vda")).output == "from the host"
            assert not (await console.run("echo x >/dev/vda")).ok
            assert (await console.run("echo kept | dd of=/dev/vdb conv=fsync 2>/dev/null")).ok
        assert await machine.stop() == StopWay.GUEST

    run_and_stop(machine, body)
    copy = run_dir / "copy.img"
    subprocess.run(["qemu-img", "convert", "-O", "raw", qcow2, copy], check=True)
    assert copy.read_bytes()[:5] == b"kept\n"


def test_machine_without_a_kernel_boots_its_disk(run_dir: Path, vm_host: Host) -> None:
    writes_b_to_the_serial_port = bytes.fromhex(
        "ba f8 03  b0 42  ee  f4  eb fd"
    )  # mov dx; mov al; out; hlt; jmp
    disk = run_dir / "boot.img"
    disk.write_bytes((writes_b_to_the_serial_port.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    spec = VmSpec(name="old", memory_bytes=64 << 20, disks=(DiskSpec(path=disk, format="raw"),))
    machine = Machine(spec, run_dir / "old", vm_host)

    async def body() -> None:
        await machine.start()
        await machine.wait_running()
        async with asyncio.timeout(20):
            while machine.paths.console_log.read_bytes() != b"B":
                await asyncio.sleep(0.02)

    run_and_stop(machine, body)


def test_machine_that_waits_for_its_switch_can_be_stopped(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    machine = Machine(guest_spec("web", nics=(nic(run_dir),)), run_dir / "web", vm_host)

    async def body() -> None:
        await machine.start()
        assert await machine.stop(0) in (StopWay.TERMINATED, StopWay.KILLED)
        assert machine.status.state == VmState.STOPPED

    run_and_stop(machine, body)


def test_guest_that_ignores_the_power_button_is_quit(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    machine = Machine(guest_spec("web"), run_dir / "web", vm_host)

    async def body() -> None:
        await machine.start()
        async with await machine.console() as console:
            await console.wait_ready(30)
            assert (await console.run("killall acpid")).ok

        assert await machine.stop(grace_s=0.5) == StopWay.QUIT

    run_and_stop(machine, body)


def test_socket_in_use_is_refused_and_its_owner_keeps_it(
    guest_spec: MakeSpec, run_dir: Path, vm_host: Host
) -> None:
    first = Machine(guest_spec("web", nics=(nic(run_dir),)), run_dir / "web", vm_host)
    second = Machine(guest_spec("db", nics=(nic(run_dir),)), run_dir / "db", vm_host)

    async def body() -> None:
        await first.start()
        with pytest.raises(LaunchError, match=r"eth0.sock of VM db is in use"):
            await second.start()
        assert second.status.state == VmState.STOPPED
        async with VhostStub(run_dir / "eth0.sock"):
            await first.wait_running()

    run_and_stop(first, body)
