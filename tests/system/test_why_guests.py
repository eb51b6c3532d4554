"""`vswitch why` about real guests: those that are stopped, dead, hanging, unplugged or forging are named."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.daemons import wait_for
from tests.system.guests import Guests, guests_on, pings, reaches
from vm.console import GuestConsole
from vm.image import GuestImage
from vswitch.cli import run
from vswitch.diagnosis import Cause, Question
from vswitch.model import Nic, Switch

pytestmark = pytest.mark.system

WEB_IP, DB_IP = "10.0.0.1", "10.0.0.2"


@dataclass
class Scene:
    """Two guests that reach each other, and web's shell."""

    guests: Guests
    web: GuestConsole


async def stop(scene: Scene) -> None:
    await asyncio.to_thread(scene.guests.client.stop_vm, "db")


async def crash(scene: Scene) -> None:
    client = scene.guests.client
    os.kill(client.vm("db").pid or 0, signal.SIGKILL)
    await asyncio.to_thread(wait_for, lambda: client.vm("db").state == "crashed")


async def hang(scene: Scene) -> None:
    """db takes no frame any more, and web sends more than its ring holds."""
    client = scene.guests.client

    def lost() -> int:
        return client.port_stats("db/eth0").drops.get("rx_full", 0)

    before = lost()  # while it booted, it had no buffers yet
    os.kill(client.vm("db").pid or 0, signal.SIGSTOP)
    await scene.web.run(f"(ping -c 5000 -i 0.002 -W 1 {DB_IP} >/dev/null 2>&1 &)")
    await asyncio.to_thread(wait_for, lambda: lost() > before)


async def unplug(scene: Scene) -> None:
    await asyncio.to_thread(scene.guests.client.disconnect_nic, "db/eth0")


async def forge(scene: Scene) -> None:
    """web takes another MAC, as a guest can, and goes on trying."""
    address = "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:66; ip link set eth0 up"
    await scene.web.run(f"{address}; (ping -c 5000 -i 0.05 -W 1 {DB_IP} >/dev/null 2>&1 &)")
    client = scene.guests.client
    await asyncio.to_thread(wait_for, lambda: client.port_stats("web/eth0").drops.get("spoofed_mac"))


@dataclass(frozen=True)
class Fault:
    """What is done, whom the answer must name, and the command lines that it must advise."""

    seed: Callable[[Scene], Awaitable[None]]
    kind: str
    port: str
    lines: tuple[str, ...]


FAULTS = [
    Fault(stop, "vm_stopped", "db/eth0", ("vm start db",)),
    Fault(crash, "vm_stopped", "db/eth0", ("vm start db",)),
    Fault(hang, "rx_full", "db/eth0", ("vm stop db --force", "vm start db")),
    Fault(unplug, "cable", "db/eth0", ("nic connect db/eth0 lab",)),
    Fault(forge, "spoof_guard", "web/eth0", ("port set web/eth0 --allow-spoofing",)),
]


def mend(cause: Cause) -> None:
    """Runs what is advised, word by word."""
    for words in cause.mend:
        assert words[0] == "vswitch"
        assert run(words[1:]) == 0, words


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.seed.__name__ for fault in FAULTS])
def test_what_is_wrong_with_a_guest_is_named_and_mended(
    image: GuestImage, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    async def body() -> None:
        async with guests_on(image) as guests:
            monkeypatch.setenv("VSWITCH_SOCKET", str(guests.daemon.socket))
            client = guests.client
            client.create_switch(Switch(name="lab", type="private"))
            web = await guests.boot("web", (Nic(switch="lab"),), f"eth0={WEB_IP}/24")
            await guests.boot("db", (Nic(switch="lab"),), f"eth0={DB_IP}/24")
            assert await pings(web, DB_IP)

            await fault.seed(Scene(guests, web))
            why = await asyncio.to_thread(client.why, Question(a="web", b="db"))

            assert not why.ok
            cause = why.causes[0]
            assert (cause.kind, cause.port) == (fault.kind, fault.port)
            assert cause.mend == [["vswitch", *line.split()] for line in fault.lines]
            await asyncio.to_thread(mend, cause)
            await web.run("killall ping")
            if "vm start db" in fault.lines:
                await guests.shell("db")
            assert await reaches(web, DB_IP), cause.sentence

    asyncio.run(body())
