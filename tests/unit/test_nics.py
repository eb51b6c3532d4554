"""NICs attached, detached, connected: wanted state and guest go together, or nothing changes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.unit.control import ROOT, FakeDataplane, with_fake
from vswitch import errors, orders
from vswitch.model import AclRule, Nic, Port, PortChange, Switch, VlanAccess, VmCreate, VmState
from vswitch.nics import Nics
from vswitch.service import Service
from vswitch.vms import Vms
from vswitch.wanted import PortRow


class FakeVms(Vms):
    """Machines that say what they were told, in a state that the test chooses."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.told: list[str] = []
        self.now: VmState = "running"
        self.room = True
        self.refuse: set[str] = set()

    def state(self, name: str) -> VmState:
        return self.now

    def check_room(self, name: str) -> None:
        if not self.room:
            raise errors.ConflictError(f"VM {name} has no free slot")

    async def plug(self, name: str, row: PortRow) -> None:
        await self._say(f"plug {row.port.name}")

    async def unplug(self, name: str, nic: str) -> None:
        await self._say(f"unplug {name}/{nic}")

    async def set_carrier(self, name: str, nic: str, up: bool) -> None:
        await self._say(f"carrier {name}/{nic} {'up' if up else 'down'}")

    async def _say(self, what: str) -> None:
        await asyncio.sleep(0)
        if what.partition(" ")[0] in self.refuse:
            raise errors.VmError(f"QEMU refused: {what}")
        self.told.append(what)


Test = Callable[[Service, FakeVms, FakeDataplane], Awaitable[None]]


def with_vm(folder: Path, test: Test) -> None:
    """A service with the switches lab and office and the VM web, whose eth0 is on lab."""

    async def run(service: Service, fake: FakeDataplane) -> None:
        vms = FakeVms(folder / "run")
        service._vms = vms
        service.nics = Nics(vms, lambda: service.state, service._change)
        for name in ("lab", "office"):
            await service.create_switch(ROOT, Switch(name=name, type="private"))
        kernel = folder / "kernel"
        kernel.touch()
        await service.create_vm(ROOT, VmCreate(name="web", kernel=str(kernel), nics=[Nic(switch="lab")]))
        fake.kinds()
        await test(service, vms, fake)

    with_fake(folder, run)


def test_a_running_vm_gets_its_port_first_and_then_its_device(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, fake: FakeDataplane) -> None:
        name = await service.nics.attach(ROOT, "web", Nic(switch="office", vlan=VlanAccess(vid=5)))
        assert name == "web/eth1"
        assert vms.told == ["plug web/eth1", "carrier web/eth1 up"]
        assert fake.kinds()[0] == "PortAdd"
        assert service.state.ports[name].port.vlan == VlanAccess(vid=5)
        assert service.changes(1)[0].what == "nic attach web office"

    with_vm(tmp_path, test)


def test_a_stopped_vm_gets_its_port_only(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        vms.now = "stopped"
        assert await service.nics.attach(ROOT, "web", Nic(switch="lab")) == "web/eth1"
        await service.nics.connect(ROOT, "web/eth1", None)
        await service.nics.detach(ROOT, "web/eth0")
        assert vms.told == []
        assert list(service.state.ports) == ["web/eth1"]

    with_vm(tmp_path, test)


def test_a_device_that_cannot_be_plugged_in_leaves_no_port(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        before = service.state
        vms.refuse = {"plug"}
        with pytest.raises(errors.VmError, match="QEMU refused: plug web/eth1"):
            await service.nics.attach(ROOT, "web", Nic(switch="lab"))
        assert service.state == before
        assert service.changes(1)[0].what == "taken back: nic attach web lab"

    with_vm(tmp_path, test)


def test_a_vm_without_a_free_slot_is_told_before_anything_changes(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, fake: FakeDataplane) -> None:
        before = service.state
        vms.room = False
        with pytest.raises(errors.ConflictError, match="VM web has no free slot"):
            await service.nics.attach(ROOT, "web", Nic(switch="lab"))
        assert service.state == before
        assert fake.kinds() == []

    with_vm(tmp_path, test)


def test_two_attachments_at_once_get_two_names(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        one, other = (service.nics.attach(ROOT, "web", Nic(switch="lab")) for _ in range(2))
        assert sorted(await asyncio.gather(one, other)) == ["web/eth1", "web/eth2"]
        assert [told for told in vms.told if "plug" in told] == ["plug web/eth1", "plug web/eth2"]

    with_vm(tmp_path, test)


def test_a_guest_that_does_not_let_go_keeps_its_port(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        before = service.state
        vms.refuse = {"unplug"}
        with pytest.raises(errors.VmError):
            await service.nics.detach(ROOT, "web/eth0")
        assert service.state == before

    with_vm(tmp_path, test)


def test_a_name_that_is_free_again_is_used_again(tmp_path: Path) -> None:
    async def test(service: Service, _vms: FakeVms, _fake: FakeDataplane) -> None:
        await service.nics.attach(ROOT, "web", Nic(switch="lab"))
        await service.nics.detach(ROOT, "web/eth0")
        assert await service.nics.attach(ROOT, "web", Nic(switch="lab")) == "web/eth0"

    with_vm(tmp_path, test)


@pytest.mark.parametrize("by", ["nic", "port"])
def test_the_cable_takes_the_carrier_along_and_leaves_settings_and_rules(tmp_path: Path, by: str) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        async def plug(switch: str | None) -> None:
            if by == "nic":
                await service.nics.connect(ROOT, "web/eth0", switch)
            else:
                await service.set_port(ROOT, "web/eth0", PortChange(switch=switch))

        await service.set_port(ROOT, "web/eth0", PortChange(mtu=1400))
        await service.add_rules(ROOT, "web/eth0", [AclRule(direction="in", action="deny", weight=1)])
        before = service.state.ports["web/eth0"]
        await plug(None)
        assert service.state.ports["web/eth0"].port.switch is None
        await plug("office")
        after = service.state.ports["web/eth0"]
        assert vms.told == ["carrier web/eth0 down", "carrier web/eth0 up"]
        assert (after.id, after.rules, after.port.mtu) == (before.id, before.rules, 1400)

    with_vm(tmp_path, test)


def test_of_many_who_move_a_cable_at_once_the_last_one_is_seen_by_the_guest(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        where = ["office", None, "lab", None, "office", None, "lab"]
        for last in range(1, len(where) + 1):
            vms.told.clear()
            await asyncio.gather(*(service.nics.connect(ROOT, "web/eth0", to) for to in where[:last]))
            plugged = service.state.ports["web/eth0"].port.switch is not None
            assert vms.told[-1] == f"carrier web/eth0 {'up' if plugged else 'down'}"

    with_vm(tmp_path, test)


def test_a_nic_that_goes_while_others_use_it_is_an_error_for_them(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        results = await asyncio.gather(
            service.nics.detach(ROOT, "web/eth0"),
            service.nics.detach(ROOT, "web/eth0"),
            service.nics.connect(ROOT, "web/eth0", "office"),
            service.delete_vm(ROOT, "web"),
            return_exceptions=True,
        )
        assert results[0] is None
        assert isinstance(results[1], errors.NotFoundError)
        assert results[2] is None or isinstance(results[2], errors.NotFoundError)
        assert isinstance(results[3], errors.ConflictError)
        assert vms.told.count("unplug web/eth0") == 1
        assert service.state.ports == {}
        assert list(service.state.vms) == ["web"]

    with_vm(tmp_path, test)


def test_a_connection_that_begins_anew_does_not_put_the_carrier_up(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        await service.nics.connect(ROOT, "web/eth0", None)
        vms.told.clear()
        number = service.state.ports["web/eth0"].id
        up = orders.PortStateRecord(number, 0, True, True, 1, False, 0, 0, 0, 0)
        service.nics.port_changed(up)
        await asyncio.sleep(0.01)
        assert vms.told == ["carrier web/eth0 down"]
        await service.nics.connect(ROOT, "web/eth0", "lab")
        vms.told.clear()
        service.nics.port_changed(up)
        await asyncio.sleep(0.01)
        assert vms.told == []

    with_vm(tmp_path, test)


def test_what_is_no_nic_is_refused_by_name(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        await service.add_port(ROOT, Port(name="lab/db", kind="vhost-user"))
        with pytest.raises(errors.ConflictError, match="lab/db is no NIC of a VM"):
            await service.nics.detach(ROOT, "lab/db")
        with pytest.raises(errors.NotFoundError, match="no switch is named nowhere"):
            await service.nics.connect(ROOT, "web/eth0", "nowhere")
        with pytest.raises(errors.NotFoundError, match="no VM is named db"):
            await service.nics.attach(ROOT, "db", Nic(switch="lab"))
        with pytest.raises(errors.NotFoundError, match="no port is named web/eth7"):
            await service.nics.detach(ROOT, "web/eth7")
        vms.now = "stopping"
        with pytest.raises(errors.ConflictError, match="VM web is stopping"):
            await service.nics.attach(ROOT, "web", Nic(switch="lab"))
        assert vms.told == []

    with_vm(tmp_path, test)


def test_sixteen_nics_are_a_vms_most(tmp_path: Path) -> None:
    async def test(service: Service, vms: FakeVms, _fake: FakeDataplane) -> None:
        vms.now = "stopped"
        for _ in range(15):
            await service.nics.attach(ROOT, "web", Nic())
        with pytest.raises(errors.ConflictError, match="cannot have more than 16 NICs"):
            await service.nics.attach(ROOT, "web", Nic())

    with_vm(tmp_path, test)
