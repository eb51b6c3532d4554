"""What vswitchd does when it is asked: every command, as a method, on values.

Runs on the event loop. `api.py` calls it with checked models; tests call it with a data plane of their own. A
change is: a pure function of the wanted state, written to the store, carried out; when carrying out fails,
both are taken back. One at a time.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from controller.entry import Kind, rule_of
from controller.messages import flow_stats_request, parse_flow_stats
from vm.errors import VmError as LauncherError
from vm.qemu import PortPlug, installed_version, qemu_args_for_port
from vswitch import capture, devices, errors, faults, inquiry, netdev, orders, trace, wanted
from vswitch.apply import Applier, Start
from vswitch.connections import Connection, Flushed
from vswitch.connections import describe as describe_connection
from vswitch.diagnosis import Question, Why
from vswitch.drops import reason
from vswitch.frames import parse_frame
from vswitch.model import (
    AclRule,
    AclRuleInfo,
    Change,
    Console,
    DropCount,
    FdbEntry,
    FdbStatic,
    Port,
    PortChange,
    PortInfo,
    PortState,
    PortStats,
    QemuArgs,
    Status,
    Switch,
    SwitchChange,
    SwitchInfo,
    Trace,
    TraceRequest,
    VmCreate,
    VmInfo,
    VmStop,
    Who,
    WorkerStatus,
)
from vswitch.nics import Nics
from vswitch.reconcile import port_socket
from vswitch.store import Store
from vswitch.vms import Vms
from vswitch.wanted import PortRow, State

log = logging.getLogger("vswitch.service")

_RULE_COOKIE, _RULE_MASK = Kind.ACL_RULE << 56, 0xFF << 56
_BACK_OFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_S = 10.0
_DEVICES_S = 1.0  # how often a device that went is looked for
_NOT_PINNED = 0xFFFFFFFF


@dataclass(frozen=True)
class Places:
    """Where this daemon's things are."""

    state_dir: Path
    run_dir: Path
    socket: Path


class Service:
    """The daemon without its sockets.

    Args:
        places: Directories and the API's socket.
        store: The wanted state on disk.
        start_dataplane: Starts a data plane; see `apply.Start`.
        vms: The machines.
    """

    def __init__(
        self,
        places: Places,
        store: Store,
        start_dataplane: Start,
        vms: Vms,
    ) -> None:
        self.places = places
        self._store = store
        self._vms = vms
        self._applier = Applier(places.run_dir, start_dataplane, self._dataplane_ended)
        self._lock = asyncio.Lock()
        self.nics = Nics(vms, lambda: self.state, self._change)
        self._applier.on_port_state = self.nics.port_changed
        vms.on_change = self.nics.machine_changed
        self._started = time.monotonic()
        self._restarting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._quick_ends = 0
        self._last_start = 0.0
        self._stopping = False
        self.state = State()
        self.ended = asyncio.Event()

    # ---- life ----

    async def start(self) -> None:
        """Reads the store, starts the data plane, and brings it to what is wanted."""
        self.state = self._store.load()
        await self._vms.find(sorted(self.state.vms))
        async with self._lock:
            await self._start_dataplane()
            await self._applier.give_back()
        self.nics.repair()
        self._watching = asyncio.create_task(self._watch_devices(), name="watch of devices")

    async def _watch_devices(self) -> None:
        """Takes a port's device back when it returns: containers end and start again."""
        while True:
            await asyncio.sleep(_DEVICES_S)
            if not self._applier.running or not self._applier.returned():
                continue
            try:
                async with self._lock:
                    await self._applier.renew(self._applier.returned(), self.state)
            except errors.VswitchError as error:
                log.warning("a device that is back could not be taken: %s", error)

    async def _start_dataplane(self) -> None:
        self._last_start = time.monotonic()
        await self._applier.start()
        await self._applier.repair(self.state)

    def _dataplane_ended(self) -> None:
        if self._stopping or (self._restarting is not None and not self._restarting.done()):
            return
        healthy = time.monotonic() - self._last_start > _HEALTHY_S
        self._quick_ends = 0 if healthy else self._quick_ends + 1
        self._restarting = asyncio.create_task(self._restart(), name="restart of the data plane")

    async def _restart(self) -> None:
        while not self._stopping:
            await asyncio.sleep(_BACK_OFF_S[min(self._quick_ends, len(_BACK_OFF_S) - 1)])
            try:
                async with self._lock:
                    await self._start_dataplane()
                    self._applier.restarts += 1  # and it has what is wanted
            except (errors.VswitchError, OSError) as error:
                log.error("the data plane could not be started again: %s", error)
                self._applier.error = str(error)
                self._quick_ends += 1
            if self._applier.running:
                return

    async def stop(self, force: bool) -> None:
        """Ends all: VMs only with `force`, or not at all. Taps and sockets go."""
        running = sorted(name for name in self.state.vms if self._vms.is_active(name))
        if running and not force:
            raise errors.ConflictError(
                f"VMs run: {', '.join(running)}", "stop them first, or use --force to stop them too"
            )
        await asyncio.gather(*(self._vms.stop(name, 10.0) for name in running))
        await self.end()

    async def end(self) -> None:
        """Ends the data plane and removes what was made for its ports; VMs go on without it."""
        self._stopping = True
        await self._end_restarts()
        async with self._lock:
            await self._applier.stop()

    async def leave(self) -> None:
        """Lets go of everything; the data plane and the VMs go on."""
        self._stopping = True
        await self._end_restarts()
        await self.nics.close()
        await self._vms.close()
        self._store.close()

    async def _end_restarts(self) -> None:
        tasks = [task for task in (self._restarting, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- changes ----

    async def _change(self, who: Who, what: str, change: Callable[[State], State]) -> State:
        """Carries out one change and returns the new state; or raises, and nothing has changed."""
        async with self._lock:
            old = self.state
            new = change(old)
            self._store.commit(old, new, who, what)
            self.state = new
            try:
                await self._applier.apply(new)
            except errors.UnavailableError:
                log.warning("%s: will be carried out when the data plane runs again", what)
            except BaseException:
                self.state = old
                try:
                    self._store.commit(new, old, who, f"taken back: {what}")
                finally:  # what forwards frames is taken back also where the store cannot be
                    await asyncio.shield(self._applier.repair(old))
                raise
            return new

    async def create_switch(self, who: Who, switch: Switch) -> SwitchInfo:
        """See Client.create_switch; the same goes for all that follow."""
        await self._change(who, f"switch create {switch.name}", lambda s: wanted.add_switch(s, switch))
        return self.switch(switch.name)

    async def set_switch(self, who: Who, name: str, change: SwitchChange) -> SwitchInfo:
        """Changes a switch."""
        await self._change(who, f"switch set {name}", lambda s: wanted.set_switch(s, name, change))
        return self.switch(name)

    async def delete_switch(self, who: Who, name: str) -> None:
        """Deletes a switch."""
        await self._change(who, f"switch delete {name}", lambda s: wanted.delete_switch(s, name))

    async def add_port(self, who: Who, port: Port) -> PortInfo:
        """Adds a port."""
        if port.kind == "vhost-user" and port.socket is None:
            port = port.model_copy(update={"listen": True})  # nobody else can know the path that we make
        await self._change(who, f"port add {port.name}", lambda s: wanted.add_port(s, port))
        return await self.port(port.name)

    async def set_port(self, who: Who, name: str, change: PortChange) -> PortInfo:
        """Changes a port; the guest of a VM's NIC sees it when the cable is moved."""
        await self._change(who, f"port set {name}", lambda s: wanted.set_port(s, name, change))
        if "switch" in change.model_fields_set:
            await self.nics.sync_carrier(name)
        return await self.port(name)

    async def delete_port(self, who: Who, name: str) -> None:
        """Deletes a port."""
        await self._change(who, f"port delete {name}", lambda s: wanted.delete_port(s, name))

    async def add_rules(self, who: Who, port: str, rules: list[AclRule]) -> list[AclRuleInfo]:
        """Adds rules, all or none."""
        new = await self._change(who, f"acl add {port}", lambda s: wanted.add_rules(s, port, rules))
        made = new.ports[port].rules[-len(rules) :] if rules else ()
        return [AclRuleInfo(id=row.id, **row.rule.model_dump()) for row in made]

    async def delete_rules(self, who: Who, port: str, choose: Callable[[PortRow], set[int]]) -> None:
        """Deletes the rules that `choose` names, given the port."""
        await self._change(
            who,
            f"acl delete {port}",
            lambda s: wanted.delete_rules(s, port, choose(wanted.port_row(s, port))),
        )

    async def add_static(self, who: Who, switch: str, entry: FdbStatic) -> None:
        """Adds a static address."""
        await self._change(
            who, f"fdb add {switch} {entry.mac}", lambda s: wanted.add_static(s, switch, entry)
        )

    async def delete_address(self, who: Who, switch: str, vid: int, mac: str) -> None:
        """Deletes an address, static or learned."""
        row = wanted.switch_row(self.state, switch)
        if (switch, vid, mac) in self.state.statics:
            await self._change(
                who, f"fdb delete {switch} {mac}", lambda s: wanted.delete_static(s, switch, vid, mac)
            )
            return
        order = orders.FdbDelete(row.id, 0, vid, orders.mac_bytes(mac))
        try:
            await self._applier.transport.order(order)
        except errors.DataplaneError:
            where = f"VLAN {vid}" if vid else "untagged frames"
            raise errors.NotFoundError(
                f"switch {switch} knows no {mac} for {where}", f"`vswitch fdb list {switch}`"
            ) from None

    async def create_vm(self, who: Who, create: VmCreate) -> VmInfo:
        """Makes a VM and its ports."""
        wanted.check_owner_is_free(self.state, create.name)
        for path in (create.kernel, create.initrd, *create.disks):
            if path is not None and not Path(path).exists():
                raise errors.NotFoundError(f"VM {create.name} needs {path}, which does not exist")
        await self._change(who, f"vm create {create.name}", lambda s: wanted.add_vm(s, create))
        return self.vm(create.name)

    async def delete_vm(self, who: Who, name: str) -> None:
        """Deletes a stopped VM."""

        def without(state: State) -> State:
            wanted.vm(state, name)
            # Here, where no start can come between.
            if self._vms.is_active(name):
                raise errors.ConflictError(f"VM {name} runs", f"`vswitch vm stop {name}` first")
            return wanted.delete_vm(state, name)

        await self._change(who, f"vm delete {name}", without)
        await self._vms.forget(name)

    async def start_vm(self, name: str) -> VmInfo:
        """Starts a VM."""
        vm = wanted.vm(self.state, name)
        ports = wanted.ports_of(self.state, name)
        broken = [self._applier.broken[row.id] for row in ports if row.id in self._applier.broken]
        if broken:
            raise errors.ConflictError(f"VM {name} cannot be connected: {broken[0]}")
        self._applier.transport  # noqa: B018 - without a data plane, QEMU would wait for it for ever
        await self._vms.start(vm, ports)
        await self.nics.sync_vm(name)
        return self.vm(name)

    async def stop_vm(self, name: str, how: VmStop) -> VmInfo:
        """Stops a VM."""
        wanted.vm(self.state, name)
        await self._vms.stop(name, 0 if how.force else how.timeout_s)
        return self.vm(name)

    # ---- questions ----

    def switches(self) -> list[SwitchInfo]:
        """All switches."""
        return [self.switch(name) for name in sorted(self.state.switches)]

    def switch(self, name: str) -> SwitchInfo:
        """One switch."""
        row = wanted.switch_row(self.state, name)
        ports = sorted(port.port.name for port in wanted.ports_on(self.state, name))
        return SwitchInfo(**row.switch.model_dump(), ports=ports)

    async def ports(self, owner: str | None, switch: str | None) -> list[PortInfo]:
        """Ports, all or some."""
        if switch is not None:
            wanted.switch_row(self.state, switch)
        rows = [
            row
            for _, row in sorted(self.state.ports.items())
            if owner in (None, row.port.owner) and switch in (None, row.port.switch)
        ]
        return [await self._port_info(row) for row in rows]

    async def port(self, name: str) -> PortInfo:
        """One port."""
        return await self._port_info(wanted.port_row(self.state, name))

    async def _port_info(self, row: PortRow) -> PortInfo:
        fields = {name: getattr(row.port, name) for name in Port.model_fields}
        if row.port.kind == "vhost-user" and row.port.owner not in self.state.vms:
            fields["socket"] = str(port_socket(self.places.run_dir, row.port))
        if devices.is_ours(row.port):
            fields["device"] = devices.interface_name(row.port)
        return PortInfo(
            **fields,
            id=row.id,
            state=await self._port_state(row),
            isolation=self._applier.isolation(row.id),
        )

    async def _port_state(self, row: PortRow) -> PortState | None:
        if row.id in self._applier.broken:
            return PortState(
                link=False,
                connected=False,
                fault=self._applier.broken[row.id],
                queues=0,
                packed=False,
                features=0,
                reconnects=0,
                learned=0,
            )
        if not self._applier.running:
            return None
        try:
            answer = await self._applier.transport.order(orders.GetPortState(row.id))
        except (errors.DataplaneError, errors.UnavailableError):
            return None
        state = orders.parse_port_state(answer.body)
        wired = row.port.kind not in netdev.KINDS or netdev.has_carrier(row.port.device or "")
        return PortState(
            link=state.link and wired,
            connected=state.connected,
            fault=orders.FAULTS.get(state.fault, f"fault {state.fault}") if state.fault else None,
            queues=state.queues,
            packed=state.packed,
            features=state.features,
            reconnects=state.reconnects,
            learned=state.fdb_count,
            file_error=faults.file_error(row.port, state),
            replay_ended=row.port.replay is not None and not state.connected,
        )

    def port_stats(self, name: str) -> PortStats:
        """A port's counters."""
        row = wanted.port_row(self.state, name)
        counted = self._applier.transport.counters.port(row.id)
        return PortStats(
            name=name,
            from_packets=counted.from_packets,
            from_bytes=counted.from_bytes,
            from_group_packets=counted.from_group,
            to_packets=counted.to_packets,
            to_bytes=counted.to_bytes,
            to_group_packets=counted.to_group,
            drops={reason(number).name: n for number, n in enumerate(counted.drops) if n},
        )

    async def qemu_args(self, name: str, qemu: str | None) -> QemuArgs:
        """Arguments for a QEMU of one's own."""
        port = wanted.port_row(self.state, name).port
        if port.kind != "vhost-user":
            raise errors.ConflictError(
                f"{name} is a {port.kind} port: QEMU arguments are for vhost-user ports"
            )
        if port.owner in self.state.vms:
            raise errors.ConflictError(f"{name} is a NIC of VM {port.owner}, whose QEMU vswitch starts")
        try:
            qemu_version = await installed_version(*([qemu] if qemu else []))
        except LauncherError as error:
            raise errors.HostError(error.sentence.rstrip("."), error.way_out.rstrip(".")) from error
        path = port_socket(self.places.run_dir, port)
        plug = PortPlug(path, port.listen, port.mac or "", port.queues)
        args = qemu_args_for_port(qemu_version, plug, (await self._vms.host()).accelerator.name)
        return QemuArgs(args=args, version=str(qemu_version))

    async def rules(self, port: str) -> list[AclRuleInfo]:
        """A port's rules with their counters."""
        row = wanted.port_row(self.state, port)
        counted: dict[int, tuple[int, int]] = {}
        if row.rules and self._applier.running:
            for pipeline in (orders.FROM_PORT, orders.TO_PORT):
                request = flow_stats_request(cookie=_RULE_COOKIE, cookie_mask=_RULE_MASK)
                answer = await self._applier.transport.order(orders.OpenFlow(row.id, pipeline, request))
                # A rule may be several entries: for both IP versions, for what cannot be read.
                for stat in parse_flow_stats(answer.body):
                    number = rule_of(stat.cookie) or 0
                    packets, size = counted.get(number, (0, 0))
                    counted[number] = (packets + stat.packets, size + stat.bytes)
        infos = [
            AclRuleInfo(
                id=rule.id,
                packets=counted.get(rule.id, (0, 0))[0],
                bytes=counted.get(rule.id, (0, 0))[1],
                **rule.rule.model_dump(),
            )
            for rule in row.rules
        ]
        return sorted(infos, key=lambda info: (info.direction, -info.weight))

    async def fdb(self, switch: str, port: str | None, vid: int | None) -> list[FdbEntry]:
        """The addresses that a switch knows."""
        row = wanted.switch_row(self.state, switch)
        port_id = wanted.port_row(self.state, port).id if port is not None else 0
        order = orders.FdbList(row.id, port_id, orders.VID_ANY if vid is None else vid)
        records = orders.parse_fdb(await self._applier.transport.order(order))
        names = {port_row.id: name for name, port_row in self.state.ports.items()}
        entries = [
            FdbEntry(
                mac=record.mac.hex(":"),
                vid=None if record.vid == orders.VID_ANY else record.vid,
                port=names.get(record.port_id, f"port {record.port_id}"),
                static=record.is_static,
                idle_s=record.idle_s,
            )
            for record in records
        ]
        return sorted(entries, key=lambda entry: (entry.vid or 0, entry.mac))

    async def flush_fdb(self, switch: str, port: str | None, vid: int | None) -> None:
        """Forgets what was learned."""
        row = wanted.switch_row(self.state, switch)
        port_id = wanted.port_row(self.state, port).id if port is not None else 0
        await self._applier.transport.order(
            orders.FdbFlush(row.id, port_id, orders.VID_ANY if vid is None else vid)
        )

    async def connections(self, port: str | None) -> list[Connection]:
        """The living connections, of one port or of all."""
        port_id = wanted.port_row(self.state, port).id if port is not None else 0
        records: list[orders.ConnectionRecord] = []
        while True:
            order = orders.ConnectionList(port_id, records[-1].index if records else 0)
            more = orders.parse_connections(await self._applier.transport.order(order))
            if not more:
                break
            records += more
        names = {row.id: name for name, row in self.state.ports.items()}
        return sorted(
            (describe_connection(record, names) for record in records),
            key=lambda one: (one.port, one.protocol, one.from_ip, one.from_port, one.to_ip, one.to_port),
        )

    async def flush_connections(self, port: str | None) -> Flushed:
        """Ends the connections of one port or of all."""
        port_id = wanted.port_row(self.state, port).id if port is not None else 0
        answer = await self._applier.transport.order(orders.ConnectionFlush(port_id))
        return Flushed(ended=answer.count)

    def drops(self, port: str | None) -> list[DropCount]:
        """Lost frames by port and reason."""
        if port is not None:
            wanted.port_row(self.state, port)
        found = []
        for name, row in sorted(self.state.ports.items()):
            if port not in (None, name):
                continue
            for number, packets in enumerate(self._applier.transport.counters.port(row.id).drops):
                if packets:
                    why = reason(number)
                    found.append(
                        DropCount(port=name, reason=why.name, sentence=why.sentence, packets=packets)
                    )
        return found

    async def trace(self, port: str, request: TraceRequest) -> Trace:
        """A frame's way."""
        row = wanted.port_row(self.state, port)
        frame = parse_frame(request, row.port.mac or "")
        connected = tuple(wanted.port_row(self.state, name).id for name in request.connected)
        answer = await self._applier.transport.order(orders.TraceFrame(row.id, frame, connected))
        ports = {other.id: other for other in self.state.ports.values()}
        return trace.describe(port, frame, orders.parse_trace(answer), ports)

    async def why(self, question: Question) -> Why:
        """What stops frames between two ports."""
        return await inquiry.ask(self, question)

    async def capture(self, port: str, snaplen: int) -> AsyncGenerator[bytes, None]:
        """A pcapng stream, running when this returns."""
        row = wanted.port_row(self.state, port)
        transport, device = self._applier.transport, self._applier.device(row.id)

        def runs() -> bool:
            applier = self._applier
            return applier.running and applier.transport is transport and applier.device(row.id) is device

        stream = capture.capture(transport, row.id, port, snaplen, runs)
        try:
            first = await anext(stream)
        except errors.DataplaneError as error:
            if "EBUSY" in error.sentence:
                raise errors.ConflictError(
                    f"{port} is being captured already", "end that capture first"
                ) from error
            raise

        async def whole() -> AsyncGenerator[bytes, None]:
            # The capture ends with whoever reads it, at once.
            async with aclosing(stream):
                yield first
                async for chunk in stream:
                    yield chunk

        return whole()

    def vms(self) -> list[VmInfo]:
        """All VMs."""
        return [self.vm(name) for name in sorted(self.state.vms)]

    def vm(self, name: str) -> VmInfo:
        """One VM."""
        return self._vms.info(wanted.vm(self.state, name), wanted.ports_of(self.state, name))

    def changes(self, limit: int) -> Sequence[Change]:
        """The journal."""
        return self._store.changes(limit)

    def console(self, name: str) -> Console:
        """Where a VM's console is."""
        wanted.vm(self.state, name)
        return self._vms.console(name)

    async def status(self) -> Status:
        """What runs."""
        workers: list[WorkerStatus] = []
        pid = None
        if self._applier.running:
            transport = self._applier.transport
            pid = getattr(transport, "pid", None)
            try:
                workers = [
                    _worker(record)
                    for record in orders.parse_workers(await transport.order(orders.GetWorkers()))
                ]
            except (errors.UnavailableError, errors.DataplaneError) as error:
                log.warning("no answer about workers: %s", error)
        return Status(
            version=version("vswitch"),
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            socket=str(self.places.socket),
            state_dir=str(self.places.state_dir),
            dataplane_pid=pid,
            dataplane_restarts=self._applier.restarts,
            dataplane_error=self._applier.error,
            workers=workers,
            switches=len(self.state.switches),
            ports=len(self.state.ports),
            vms=len(self.state.vms),
            vms_running=sum(self._vms.state(name) == "running" for name in self.state.vms),
            accelerator=self._vms.accelerator,
        )


def _worker(record: orders.WorkerRecord) -> WorkerStatus:
    return WorkerStatus(
        cpu=None if record.cpu == _NOT_PINNED else record.cpu,
        queues=record.queues,
        turns=record.turns,
        empty_turns=record.empty_turns,
        sleeps=record.sleeps,
        packets=record.packets,
        cache_hits=record.cache_hits,
        cache_misses=record.cache_misses,
        cache_entries=record.cache_entries,
        guest_bytes=record.guest_bytes,
    )
