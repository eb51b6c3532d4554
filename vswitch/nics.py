"""NICs of VMs while they run: plugging them in and out, and the cable that their guests see.

Runs on vswitchd's event loop, over the wanted state (`wanted.py`) and the machines (`vms.py`). A NIC is a
port, so what is wanted is changed first when one comes, and last when one goes; when its guest or QEMU does
not go along, that is taken back. The carrier follows the wanted state: a port on no switch has its cable out.
It never waits for a guest while it holds the lock of the wanted state.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

from vswitch import errors, wanted
from vswitch.model import Nic, PortChange, Who
from vswitch.orders import PortStateRecord
from vswitch.vms import ACTIVE, Vms
from vswitch.wanted import PortRow, State
from vswitch.words import split_port_name

log = logging.getLogger("vswitch.nics")


class _Change(Protocol):
    def __call__(self, who: Who, what: str, change: Callable[[State], State]) -> Awaitable[State]: ...


class Nics:
    """The NICs of all VMs.

    Args:
        vms: The machines.
        state: The wanted state, as it is now.
        change: Carries out a change of it, whole or not at all.
    """

    def __init__(self, vms: Vms, state: Callable[[], State], change: _Change) -> None:
        self._vms = vms
        self._state = state
        self._change = change
        self._tasks: set[asyncio.Task[None]] = set()

    async def attach(self, who: Who, name: str, nic: Nic) -> str:
        """Gives a VM one more NIC, plugged in at once when it runs. Returns its port's name."""
        wanted.vm(self._state(), name)
        async with self._vms.changing(name):
            running = self._runs(name)
            if running:
                self._vms.check_room(name)
            port = wanted.free_nic_name(self._state(), name)
            what = f"nic attach {name} {nic.switch or '(no switch)'}"
            new = await self._change(who, what, lambda s: wanted.add_nic(s, name, port, nic))
            if running:
                try:
                    await self._vms.plug(name, new.ports[port])
                    await self.sync_carrier(port)
                except BaseException:
                    await asyncio.shield(self._take_back(who, what, port))
                    raise
        return port

    async def _take_back(self, who: Who, what: str, port: str) -> None:
        if self._runs(port.partition("/")[0]):
            try:
                await self._vms.unplug(*split_port_name(port))
            except errors.VswitchError as error:
                log.warning("%s: %s", port, error)
        await self._change(who, f"taken back: {what}", lambda s: wanted.delete_nic(s, port))

    async def detach(self, who: Who, port: str) -> None:
        """Takes a NIC away, out of the running VM too; with its port go settings, rules and counters."""
        owner = wanted.nic_row(self._state(), port).port.owner
        async with self._vms.changing(owner):
            wanted.nic_row(self._state(), port)
            if self._runs(owner):
                await self._vms.unplug(*split_port_name(port))
            await self._change(who, f"nic detach {port}", lambda s: wanted.delete_nic(s, port))

    async def connect(self, who: Who, port: str, switch: str | None) -> None:
        """Plugs a NIC's cable into a switch; None: pulls it."""
        wanted.nic_row(self._state(), port)
        what = f"nic connect {port} {switch}" if switch else f"nic disconnect {port}"
        await self._change(who, what, lambda s: wanted.set_port(s, port, PortChange(switch=switch)))
        await self.sync_carrier(port)

    def _runs(self, name: str) -> bool:
        """Whether a VM runs; one that is between states is refused."""
        state = self._vms.state(name)
        if state == "unknown":
            raise errors.ConflictError(f"VM {name}: {self._vms.reason(name)}", f"`vswitch vm stop {name}`")
        if state in ACTIVE and state != "running":
            raise errors.ConflictError(f"VM {name} is {state}", "try again when it has come to rest")
        return state == "running"

    # ---- machines follow the wanted state ----

    def repair(self) -> None:
        """Begins to plug in what a daemon that was killed meanwhile had promised, and not done."""
        for name in self._state().vms:
            if self._vms.state(name) in ACTIVE:
                self._begin(self._repair(name), f"NICs of {name}")

    def machine_changed(self, name: str) -> None:
        """A VM changed. A NIC that its guest let go of after its detaching had been given up comes back."""
        if self._vms.state(name) == "running" and self._lacks(name):
            self._begin(self._repair(name), f"NICs of {name}")

    def _lacks(self, name: str) -> list[PortRow]:
        rows = wanted.ports_of(self._state(), name)
        return [row for row in rows if not self._vms.has_nic(name, split_port_name(row.port.name)[1])]

    async def _repair(self, name: str) -> None:
        try:
            await self._vms.wait_running(name)
            async with self._vms.changing(name):
                for row in self._lacks(name):
                    log.info("%s is wanted and not plugged in: now", row.port.name)
                    await self._vms.plug(name, row)
                    await self.sync_carrier(row.port.name)
        except errors.VswitchError as error:
            log.warning("VM %s does not have all its NICs: %s", name, error)

    # ---- the carrier ----

    async def sync_carrier(self, port: str) -> None:
        """Shows a running guest the carrier that its NIC has, as of now.

        Raises:
            errors.VmError: It could not be told. The switch's side is as it is wanted all the same.
        """
        row = self._state().ports.get(port)
        if row is None or row.port.owner not in self._state().vms:
            return
        if self._vms.state(row.port.owner) != "running":
            return
        up = row.port.switch is not None
        try:
            await self._vms.set_carrier(row.port.owner, port.partition("/")[2], up)
        except errors.VswitchError as error:
            done = f"on switch {row.port.switch}" if up else "off its switch"
            raise errors.VmError(
                f"{port} is {done}, but its guest could not be told: {error.sentence}", error.way_out
            ) from error

    async def sync_vm(self, name: str) -> None:
        """The same for those NICs of a VM whose cable is out; others have a carrier by themselves."""
        for row in wanted.ports_of(self._state(), name):
            if row.port.switch is None:
                await self._try_carrier(row.port.name)

    def port_changed(self, record: PortStateRecord) -> None:
        """An event of the data plane. QEMU puts the carrier up when a connection begins: it is put right."""
        for name, row in self._state().ports.items():
            if row.id == record.port_id and row.port.switch is None and record.link:
                self._begin(self._try_carrier(name), f"carrier of {name}")

    def _begin(self, what: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(what, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_carrier(self, port: str) -> None:
        try:
            await self.sync_carrier(port)
        except errors.VswitchError as error:
            log.warning("%s", error)

    async def close(self) -> None:
        """Ends what runs in the background."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
