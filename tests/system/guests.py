"""Real guests on a daemon of a test's own: their shells, by the names that the switch knows them by."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.daemons import Daemon
from vm.console import GuestConsole
from vm.image import GuestImage
from vswitch.model import Nic, VmCreate


class Guests:
    """A daemon and the guests on it. Its client is used from threads: the consoles need the event loop."""

    def __init__(self, daemon: Daemon, image: GuestImage) -> None:
        self.daemon = daemon
        self.client = daemon.client
        self._image = image
        self._consoles: list[GuestConsole] = []

    async def boot(self, name: str, nics: tuple[Nic, ...], addresses: str = "") -> GuestConsole:
        """Makes a guest, starts it and waits for its shell. `addresses`: such as eth0=10.0.0.1/24."""
        arguments = f" vswitch.ip={addresses}" if addresses else ""
        command_line = f"{self._image.command_line} vswitch.hostname={name}{arguments}"
        vm = VmCreate(
            name=name,
            memory_bytes=192 << 20,
            kernel=str(self._image.kernel),
            initrd=str(self._image.initrd),
            cmdline=command_line,
            nics=nics,
        )
        await asyncio.to_thread(self.client.create_vm, vm)
        return await self.start(name)

    async def start(self, name: str) -> GuestConsole:
        """Starts a guest that is there, and waits for its shell."""
        await asyncio.to_thread(self.client.start_vm, name)
        return await self.shell(name)

    async def shell(self, name: str) -> GuestConsole:
        """The shell of a guest that runs, when it answers."""
        console = await GuestConsole.connect(Path(self.client.vm_console(name).socket))
        self._consoles.append(console)
        await console.wait_ready(60)
        return console

    async def close(self) -> None:
        """Lets go of all consoles."""
        for console in self._consoles:
            with contextlib.suppress(Exception):
                await console.close()


@asynccontextmanager
async def guests_on(image: GuestImage) -> AsyncIterator[Guests]:
    """A daemon for the length of a test; guests, switches and all go with it."""
    daemon = Daemon()
    daemon.start()
    guests = Guests(daemon, image)
    try:
        yield guests
    finally:
        await guests.close()
        await asyncio.to_thread(daemon.close)


async def until(console: GuestConsole, test: str, seconds: int = 15) -> bool:
    """Waits in the guest until a shell test holds; False when it does not in time."""
    inside = f"[ $n -lt {seconds * 10} ]"
    command = f"n=0; until {test}; do n=$((n+1)); {inside} || break; usleep 100000; done; {inside}"
    return (await console.run(command, timeout=seconds + 10)).ok


async def pings(console: GuestConsole, address: str) -> bool:
    """Whether at least one of three pings is answered."""
    return (await console.run(f"ping -c 3 -i 0.2 -W 1 {address}", timeout=15)).ok


async def reaches(console: GuestConsole, address: str) -> bool:
    """Whether pings are answered, after the guest had some seconds to ask again for a MAC it had given up."""
    for _ in range(8):
        if await pings(console, address):
            return True
    return False
