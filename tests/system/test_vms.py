"""VMs of the daemon: real guests on a switch, which outlive vswitchd and whose crash is shown."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, alive, wait_for
from vm.console import GuestConsole
from vm.image import GuestImage
from vswitch import errors
from vswitch.model import Nic, PortChange, Switch, VlanAccess, VmCreate

pytestmark = pytest.mark.system


@pytest.fixture
def daemon(image: GuestImage) -> Iterator[Daemon]:
    """Two guests on a private switch, 10.0.0.1 and 10.0.0.2, running."""
    made = Daemon()
    made.start()
    try:
        made.client.create_switch(Switch(name="lab", type="private"))
        for number in (1, 2):
            name, command_line = f"vm{number}", f"{image.command_line} vswitch.ip=10.0.0.{number}/24"
            nics = [Nic(switch="lab", vlan=VlanAccess(vid=100))]
            vm = VmCreate(name=name, memory_bytes=192 << 20, kernel=str(image.kernel), nics=nics)
            vm = vm.model_copy(update={"initrd": str(image.initrd), "cmdline": command_line})
            made.client.create_vm(vm)
            assert made.client.start_vm(name).state == "running"
        yield made
    finally:
        made.close()


def ping(daemon: Daemon, count: int = 1) -> bool:
    """Whether vm1 reaches vm2."""

    async def run() -> bool:
        console = await GuestConsole.connect(Path(daemon.client.vm_console("vm1").socket))
        try:
            await console.wait_ready(60)
            return (await console.run(f"ping -c {count} -W 1 10.0.0.2", timeout=30)).ok
        finally:
            await console.close()

    return asyncio.run(run())


def test_guests_survive_the_death_of_daemon_and_data_plane(daemon: Daemon) -> None:
    wait_for(lambda: ping(daemon), 60)
    before = daemon.client.vm("vm1")
    status = daemon.client.status()
    os.kill(status.dataplane_pid or 0, signal.SIGKILL)
    wait_for(lambda: ping(daemon), 30)
    assert daemon.client.status().dataplane_restarts == 1
    os.kill(status.pid, signal.SIGKILL)
    wait_for(lambda: not alive(status.pid))
    daemon.start()
    found = daemon.client.vm("vm1")
    assert (found.state in ("starting", "running"), found.pid) == (True, before.pid)
    wait_for(lambda: ping(daemon), 30)


def test_a_guest_is_moved_to_another_vlan_while_it_runs(daemon: Daemon) -> None:
    wait_for(lambda: ping(daemon), 60)
    daemon.client.set_port("vm2/eth0", PortChange(vlan=VlanAccess(vid=200)))
    assert not ping(daemon)
    assert "vlan_not_member" in {drop.reason for drop in daemon.client.drops("vm2/eth0")}
    daemon.client.set_port("vm2/eth0", PortChange(vlan=VlanAccess(vid=100)))
    assert ping(daemon)


def test_a_crash_is_shown_and_the_vm_starts_again(daemon: Daemon) -> None:
    pid = daemon.client.vm("vm2").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.client.vm("vm2").state == "crashed")
    assert daemon.client.vm("vm2").reason
    with pytest.raises(errors.ConflictError, match="VM vm2 does not run"):
        daemon.client.vm_console("vm2")
    assert daemon.client.start_vm("vm2").state == "running"
    wait_for(lambda: ping(daemon), 60)


def test_running_vms_are_in_the_way_of_what_would_end_them(daemon: Daemon) -> None:
    with pytest.raises(errors.ConflictError, match="VMs run: vm1, vm2"):
        daemon.client.stop()
    with pytest.raises(errors.ConflictError, match="VM vm1 runs"):
        daemon.client.delete_vm("vm1")
    with pytest.raises(errors.ConflictError, match="VM vm1 runs already"):
        daemon.client.start_vm("vm1")
    assert daemon.client.stop_vm("vm1", force=True).state == "stopped"
    daemon.client.delete_vm("vm1")
    assert [vm.name for vm in daemon.client.vms()] == ["vm2"]
