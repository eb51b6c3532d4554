"""NICs that come and go while real guests run, and cables that are pulled and plugged."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.daemons import wait_for
from tests.system.guests import Guests, guests_on, pings, until
from vm.image import GuestImage
from vswitch import Client, errors
from vswitch.model import AclRule, Nic, PortChange, PortInfo, Switch, VlanAccess

pytestmark = pytest.mark.system


def connected(client: Client, port: str) -> bool:
    """Whether a VM's NIC is connected to the data plane."""
    state = client.port(port).state
    return state is not None and state.connected


async def attach(guests: Guests, vm: str) -> PortInfo:
    """Attaches a NIC, as one of several people at the same time."""

    def ask() -> PortInfo:
        with Client(guests.daemon.socket) as client:
            return client.attach_nic(vm, Nic(switch="lab"))

    return await asyncio.to_thread(ask)


@contextmanager
def paused(pid: int | None) -> Iterator[None]:
    """QEMU answers nobody, and its guest does nothing, inside this block."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


CARRIER = "cat /sys/class/net/eth0/carrier"


def test_pulling_the_cable_shows_in_the_guest_and_settings_stay(image: GuestImage) -> None:
    async def body() -> None:
        async with guests_on(image) as guests:
            client = guests.client
            client.create_switch(Switch(name="lab", type="private"))
            nic = Nic(switch="lab", vlan=VlanAccess(vid=7), mtu=1500)
            web = await guests.boot("web", (nic,), "eth0=10.0.0.1/24")
            await guests.boot("db", (nic,), "eth0=10.0.0.2/24")
            rule = client.add_acl("web/eth0", AclRule(direction="in", action="allow", weight=3))
            assert await pings(web, "10.0.0.2")
            assert (await web.run(CARRIER)).output == "1\n"
            before, counted = client.port("web/eth0"), client.port_stats("web/eth0").from_packets

            client.disconnect_nic("web/eth0")
            assert await until(web, '[ "$(cat /sys/class/net/eth0/carrier)" = 0 ]')
            assert not await pings(web, "10.0.0.2")

            client.set_port("db/eth0", PortChange(mtu=1400))
            client.connect_nic("web/eth0", "lab")
            assert await until(web, '[ "$(cat /sys/class/net/eth0/carrier)" = 1 ]')
            assert await pings(web, "10.0.0.2")
            after = client.port("web/eth0")
            same = {"id", "mac", "vlan", "mtu", "switch"}
            assert after.model_dump(include=same) == before.model_dump(include=same)
            assert [info.id for info in client.acls("web/eth0")] == [rule.id]
            assert client.port_stats("web/eth0").from_packets > counted
            assert [change.what for change in client.changes(3)] == [
                "nic connect web/eth0 lab",
                "port set db/eth0",
                "nic disconnect web/eth0",
            ]

    asyncio.run(body())


def test_a_cable_that_is_out_stays_out_for_a_guest_that_boots_and_over_a_new_data_plane(
    image: GuestImage,
) -> None:
    async def body() -> None:
        async with guests_on(image) as guests:
            client = guests.client
            web = await guests.boot("web", (Nic(),))
            assert (await web.run("ip link set eth0 up")).ok
            assert await until(web, '[ "$(cat /sys/class/net/eth0/carrier)" = 0 ]')
            pid = client.status().dataplane_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            # The new data plane connects anew, and QEMU puts the carrier up: it must not stay so.
            await asyncio.to_thread(wait_for, lambda: client.port("web/eth0").state is not None)
            assert client.status().dataplane_pid != pid
            await asyncio.to_thread(wait_for, lambda: connected(client, "web/eth0"))
            assert await until(web, '[ "$(cat /sys/class/net/eth0/carrier)" = 0 ]')

    asyncio.run(body())


def test_a_running_guest_gets_two_nics_at_once_and_loses_one(image: GuestImage) -> None:
    async def body() -> None:
        async with guests_on(image) as guests:
            client = guests.client
            client.create_switch(Switch(name="lab", type="private"))
            web = await guests.boot("web", (Nic(switch="lab"),), "eth0=10.0.0.1/24")
            db = await guests.boot("db", (Nic(switch="lab"),), "eth0=10.0.0.2/24")

            made = await asyncio.gather(attach(guests, "web"), attach(guests, "web"))
            assert sorted(port.name for port in made) == ["web/eth1", "web/eth2"]
            assert await until(web, "[ -e /sys/class/net/eth1 -a -e /sys/class/net/eth2 ]")
            shown = (
                await web.run("cat /sys/class/net/eth1/address /sys/class/net/eth2/address")
            ).output.split()
            assert set(shown) == {port.mac for port in made}

            with pytest.raises(errors.ConflictError, match="VM web has no free slot for one more NIC"):
                client.attach_nic("web", Nic(switch="lab"))
            assert len(client.vm("web").ports) == 3

            new = (await web.run(f"grep -l {made[0].mac} /sys/class/net/*/address")).output.split("/")[4]
            assert (await web.run(f"ip addr add 10.1.0.1/24 dev {new} && ip link set {new} up")).ok
            assert (await db.run("ip addr add 10.1.0.2/24 dev eth0")).ok
            assert await pings(web, "10.1.0.2")

            await asyncio.to_thread(client.detach_nic, made[0].name)
            assert await until(web, f"[ ! -e /sys/class/net/{new} ]")
            assert made[0].name not in client.vm("web").ports
            with pytest.raises(errors.NotFoundError):
                client.port(made[0].name)
            assert await pings(web, "10.0.0.2")

            # What was plugged in is there after a restart, too.
            await asyncio.to_thread(client.stop_vm, "web")
            web = await guests.start("web")
            names = (await web.run("cd /sys/class/net && ls -d eth*")).output.split()
            assert names == ["eth0", "eth1"]

    asyncio.run(body())


@pytest.mark.parametrize("before_qemu_hears", [True, False])
def test_an_attachment_is_finished_by_the_next_daemon(image: GuestImage, before_qemu_hears: bool) -> None:
    async def body() -> None:
        async with guests_on(image) as guests:
            client, daemon = guests.client, guests.daemon
            client.create_switch(Switch(name="lab", type="private"))
            web = await guests.boot("web", (Nic(switch="lab"),), "eth0=10.0.0.1/24")
            with paused(client.vm("web").pid):
                attaching = asyncio.create_task(attach(guests, "web"))
                if before_qemu_hears:
                    await asyncio.to_thread(wait_for, lambda: len(client.ports(owner="web")) == 2)
                else:
                    await asyncio.wait([attaching], timeout=0.5)
                os.kill(client.status().pid, signal.SIGKILL)
                with pytest.raises(errors.VswitchError):
                    await attaching
            await asyncio.to_thread(daemon.start)
            made = client.port("web/eth1")
            await asyncio.to_thread(wait_for, lambda: connected(client, "web/eth1"))
            assert await until(web, f"grep -q {made.mac} /sys/class/net/*/address")
            await asyncio.to_thread(client.detach_nic, "web/eth1")
            assert await until(web, "[ ! -e /sys/class/net/eth1 ]")

    asyncio.run(body())


def detach(guests: Guests, port: str) -> None:
    """Detaches a NIC, over a connection of its own."""
    with Client(guests.daemon.socket) as client:
        client.detach_nic(port)


@pytest.mark.parametrize("victim", ["daemon", "data plane"])
def test_killed_at_any_moment_guest_and_wanted_state_have_the_same_nics(
    image: GuestImage, victim: str
) -> None:
    moments = random.Random(victim)

    async def kill(guests: Guests) -> None:
        status = await asyncio.to_thread(guests.client.status)
        pid = status.pid if victim == "daemon" else status.dataplane_pid
        await asyncio.sleep(moments.random() * 0.2)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    async def body() -> None:
        async with guests_on(image) as guests:
            client = guests.client
            client.create_switch(Switch(name="lab", type="private"))
            web = await guests.boot("web", (Nic(switch="lab"),), "eth0=10.0.0.1/24")
            for _ in range(8):
                more = [port for port in client.vm("web").ports if port != "web/eth0"]
                change = asyncio.to_thread(detach, guests, more[0]) if more else attach(guests, "web")
                changing = asyncio.gather(change, return_exceptions=True)
                await kill(guests)
                await changing
                if victim == "daemon":
                    await asyncio.to_thread(guests.daemon.start)
                macs = [port.mac for port in client.ports(owner="web")]
                has = " && ".join(f"grep -q {mac} /sys/class/net/*/address" for mac in macs)
                exactly = f"[ $(ls -d /sys/class/net/eth* | wc -l) = {len(macs)} ]"
                assert await until(web, f"{{ {has} && {exactly}; }}"), macs

    asyncio.run(body())


def test_a_guest_that_does_not_let_go_keeps_its_nic(image: GuestImage) -> None:
    async def body() -> None:
        async with guests_on(image) as guests:
            client = guests.client
            client.create_switch(Switch(name="lab", type="private"))
            vm = await guests.boot("web", (Nic(switch="lab"),), "eth0=10.0.0.1/24")
            with paused(client.vm("web").pid), pytest.raises(errors.VswitchError, match="web"):
                await asyncio.to_thread(client.detach_nic, "web/eth0")
            assert client.vm("web").ports == ["web/eth0"]
            assert (await vm.run("true")).ok
            await asyncio.to_thread(client.detach_nic, "web/eth0")
            assert await until(vm, "[ ! -e /sys/class/net/eth0 ]")
            assert client.vm("web").ports == []

    asyncio.run(body())
