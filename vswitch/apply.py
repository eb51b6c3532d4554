"""Carries out plans: keeps the data plane running, remembers what it holds, and brings it to what is wanted.

Runs on vswitchd's event loop; callers serialise their calls (`service.py` holds the lock). It decides
nothing: which orders there are is `reconcile.plan`'s business. A data plane that ends is started again and
gets everything anew, tables before ports.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vswitch import devices, errors, faults, netdev, orders
from vswitch.dataplane import DataplaneProcess, Transport
from vswitch.model import Port
from vswitch.reconcile import Target, TargetPort, plan, port_socket, target
from vswitch.wanted import PortRow, State

log = logging.getLogger("vswitch.apply")

_UNKNOWN = orders.PortAdd(0, 0)  # never wanted: what holds it is made anew
Start = Callable[[Callable[[orders.Answer], None], Callable[[int], None]], Awaitable[Transport]]


def process_start_time(pid: int) -> int | None:
    """When a process started, in the kernel's ticks: with its pid, its identity. None: there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


class Applier:
    """The data plane as it is.

    Args:
        run_dir: Where sockets and the pid file are.
        start: Starts a data plane; given what to call for its events and for its end.
        on_end: Called when it has ended by itself; `restart` is then due.
    """

    def __init__(self, run_dir: Path, start: Start, on_end: Callable[[], None]) -> None:
        self._run_dir = run_dir
        self._start = start
        self._on_end = on_end
        self._transport: Transport | None = None
        self._switches: dict[int, orders.SwitchAdd] = {}
        self._ports: dict[int, TargetPort] = {}
        self._statics: dict[tuple[int, int, bytes], int] = {}
        self._wanted = Target()
        self._devices: dict[int, devices.Device] = {}
        self._rows: dict[int, PortRow] = {}
        self.on_port_state: Callable[[orders.PortStateRecord], None] = lambda _state: None
        self._lost: set[int] = set()  # ports whose device went
        self.broken: dict[int, str] = {}
        self.restarts = 0
        self.error = ""

    @property
    def transport(self) -> Transport:
        """The running data plane. Raises errors.UnavailableError while there is none."""
        if self._transport is None:
            raise errors.UnavailableError(f"the data plane does not run{self.error and ': ' + self.error}")
        return self._transport

    @property
    def running(self) -> bool:
        """Whether the data plane runs."""
        return self._transport is not None

    # ---- the process ----

    async def start(self) -> None:
        """Starts the data plane, empty; one that an earlier daemon left is ended first."""
        await end_leftover(self._run_dir)
        transport = await self._start(self._on_event, self._ended)
        try:
            hello = await transport.order(orders.Hello())
            version = int.from_bytes(hello.body[:4], "little")
            if version != orders.API_VERSION:
                raise errors.DataplaneError(
                    f"the data plane speaks version {version} of its interface, not {orders.API_VERSION}",
                    "build both from one source (`make build`)",
                )
        except errors.VswitchError:
            if isinstance(transport, DataplaneProcess):
                await transport.stop()
            raise
        self._transport = transport
        self.error = ""
        if isinstance(transport, DataplaneProcess):
            _pid_file(self._run_dir).write_text(f"{transport.pid} {process_start_time(transport.pid)}\n")

    def _ended(self, status: int) -> None:
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        self.error = f"it ended with {name}"
        log.error("the data plane ended with %s", name)
        if isinstance(self._transport, DataplaneProcess):
            self._transport.close()
        self._forget()
        self._on_end()

    def _forget(self) -> None:
        self._transport = None
        self._switches.clear()
        self._ports.clear()
        self._statics.clear()

    async def stop(self) -> None:
        """Ends the data plane and removes what was made for its ports."""
        if isinstance(self._transport, DataplaneProcess):
            await self._transport.stop()
        self._forget()
        for device in self._devices.values():
            await devices.close(device)
        self._devices.clear()
        _pid_file(self._run_dir).unlink(missing_ok=True)

    def _on_event(self, event: orders.Answer) -> None:
        if event.kind == orders.EVENT_PORT_STATE:
            state = orders.parse_port_state(event.body)
            if state.fault:
                name = self._rows[state.port_id].port.name if state.port_id in self._rows else state.port_id
                log.warning("port %s is stopped: %s", name, orders.FAULTS.get(state.fault, state.fault))
            if state.fault == orders.FAULT_DEVICE:
                self._lost.add(state.port_id)
            self.on_port_state(state)

    def device(self, port_id: int) -> devices.Device | None:
        """What was opened for a port: another one when the port was made anew, None when it has gone."""
        return self._devices.get(port_id)

    def isolation(self, port_id: int) -> str | None:
        """How the host's own stack is kept off a port's device; None: there is none to be kept off."""
        device = self._devices.get(port_id)
        return device.guard.way if device is not None and device.guard is not None else None

    async def give_back(self) -> None:
        """Gives devices back that an earlier daemon kept from the host and that are no ports any more."""
        used = {device.guard.device for device in self._devices.values() if device.guard is not None}
        notes = self._run_dir / "guards"
        for name in netdev.left_over(notes, used):
            log.info("giving %s back, which an earlier daemon left as a port", name)
            await asyncio.to_thread(netdev.release, name, notes / name)

    def returned(self) -> set[int]:
        """Ports whose device went, and is there (again): `renew` makes them anew."""
        found: set[int] = set()
        for number in self._lost | set(self.broken):
            row = self._wanted.ports[number].row if number in self._wanted.ports else None
            if row is None or row.port.kind not in netdev.KINDS:
                continue
            if not devices.interface_exists(row.port.device or ""):
                self._lost.add(number)
            elif number in self._lost:
                found.add(number)
        return found

    async def renew(self, ports: set[int], state: State) -> None:
        """Makes ports anew, with their rules; a port that cannot be had is in `broken`."""
        for number in ports:
            self._lost.discard(number)
            if number in self._ports:
                self._ports[number] = replace(self._ports[number], add=_UNKNOWN)
        await self.repair(state)

    # ---- applying ----

    def _actual(self) -> Target:
        return Target(dict(self._switches), dict(self._ports), dict(self._statics))

    async def apply(self, state: State) -> None:
        """Brings the data plane to `state`.

        Raises the first error; then some of it may be done, and `repair` leads back.
        """
        await self._run(state, strict=True)

    async def repair(self, state: State) -> None:
        """The same, but a port that cannot be had is remembered in `broken` and the others go on."""
        await self._run(state, strict=False)

    async def _run(self, state: State, strict: bool) -> None:
        wanted = self._wanted = target(state, self._run_dir, self._wanted)
        self._rows.update({row.id: row for row in state.ports.values()})
        skipped: set[int] = set()
        for order in plan(wanted, self._actual()):
            number = _port_of(order)
            if number in skipped:
                continue
            try:
                await self._carry_out(order, wanted)
            except errors.UnavailableError:
                raise
            except errors.VswitchError as error:
                # A port that could not be had before is no reason to refuse another change.
                if number is None or (strict and number not in self.broken):
                    raise
                log.warning(
                    "port %s: %s", self._rows[number].port.name if number in self._rows else number, error
                )
                self.broken[number] = str(error)
                skipped.add(number)
            else:
                if isinstance(order, orders.PortSet | orders.PortDelete):
                    self.broken.pop(order.port_id, None)
                    self._lost.discard(order.port_id)
        for number in self._rows.keys() - {row.id for row in state.ports.values()}:
            self.broken.pop(number, None)
            del self._rows[number]

    async def _carry_out(self, order: orders.Order, wanted: Target) -> None:
        match order:
            case orders.PortAdd():
                await self._add_port(order, wanted)
            case orders.PortDelete():
                await self.transport.order(order)
                del self._ports[order.port_id]
                self._drop_statics(order.port_id)
                if (device := self._devices.pop(order.port_id, None)) is not None:
                    await devices.close(device)
            case orders.OpenFlow():
                await self._openflow(order, wanted)
            case orders.PortSet():
                await self._set_port(order, wanted)
            case _:
                await self.transport.order(order)
                self._remember(order)

    async def _add_port(self, order: orders.PortAdd, wanted: Target) -> None:
        row = wanted.ports[order.port_id].row
        assert row is not None
        device = self._devices.get(order.port_id)
        if device is None:
            path = port_socket(self._run_dir, row.port) if order.flags & orders.ADD_LISTEN else None
            if row.port.kind != "vhost-user":
                path = None
            device = await devices.open_device(
                row.port, path, _our_interfaces(row.port), self._run_dir / "guards"
            )
        try:
            await self.transport.order(order, device.fds)
        except errors.UnavailableError:
            self._devices[order.port_id] = device  # for the next data plane
            raise
        except errors.DataplaneError as error:
            if device.guard is not None:
                self._lost.add(order.port_id)  # its socket's device went while nobody looked
            self._devices.pop(order.port_id, None)
            await devices.close(device)
            raise faults.refusal(row.port, error) from error
        self._devices[order.port_id] = device
        self._ports[order.port_id] = TargetPort(order, orders.PortSet(order.port_id))

    async def _openflow(self, order: orders.OpenFlow, wanted: Target) -> None:
        port = self._ports[order.target]
        try:
            await self.transport.order(order)
        except errors.VswitchError:
            # Which of its two pipelines is in which state is not worth knowing: the port will be made anew.
            self._ports[order.target] = replace(port, add=_UNKNOWN)
            raise
        new = wanted.ports[order.target]
        self._ports[order.target] = replace(port, policy=new.policy, row=new.row)

    async def _set_port(self, order: orders.PortSet, wanted: Target) -> None:
        new, old = wanted.ports[order.port_id], self._ports[order.port_id]
        await self.transport.order(order)
        # Behind the order: an interface that comes up speaks at once.
        if new.row is not None and (old.set.mac, old.set.mtu) != (order.mac, order.mtu):
            await devices.configure(new.row.port)
        if old.set.switch_id != order.switch_id:
            self._drop_statics(order.port_id)
        self._ports[order.port_id] = replace(old, set=order, row=new.row, policy=new.policy)

    def _drop_statics(self, port: int) -> None:
        self._statics = {key: owner for key, owner in self._statics.items() if owner != port}

    def _remember(self, order: orders.Order) -> None:
        match order:
            case orders.SwitchSet() | orders.SwitchAdd():
                self._switches[order.switch_id] = orders.SwitchAdd(
                    order.switch_id, order.fdb_size, order.ageing_s
                )
            case orders.SwitchDelete():
                del self._switches[order.switch_id]
            case orders.FdbDelete():
                self._statics.pop((order.switch_id, order.vid, order.mac), None)
            case orders.FdbAdd():
                self._statics[order.switch_id, order.vid, order.mac] = order.port_id


def _our_interfaces(port: Port) -> set[str]:
    """Taps that an earlier daemon made for this port and left: they persist."""
    name = devices.interface_name(port)
    return {name} if devices.is_tap(name) else set()


def _port_of(order: orders.Order) -> int | None:
    match order:
        case orders.OpenFlow():
            return order.target
        case orders.PortAdd() | orders.PortSet() | orders.PortDelete() | orders.FdbAdd() | orders.FdbDelete():
            return order.port_id
    return None


def _pid_file(run_dir: Path) -> Path:
    return run_dir / "dataplane.pid"


async def end_leftover(run_dir: Path) -> None:
    """Ends the data plane of an earlier daemon, known by its pid and start time."""
    try:
        pid, started = map(int, _pid_file(run_dir).read_text().split())
    except (OSError, ValueError):
        return
    if process_start_time(pid) != started:
        return
    log.info("ending the data plane that an earlier daemon left (pid %d)", pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        for _ in range(100):
            if process_start_time(pid) != started or _is_zombie(pid):
                return
            await asyncio.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def start_process(
    workers: Sequence[int],
    output: Path,
    on_event: Callable[[orders.Answer], None],
    on_exit: Callable[[int], None],
) -> Transport:
    """The real one: a `vswitch-dataplane`."""
    return DataplaneProcess(workers, output, on_event, on_exit)
