"""A data plane process with vhost-user ports, for measurements: no daemon, the same orders and rules."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.policy import changes, compile_port
from controller.settings import AclRule, PortPolicy, VlanMode, VlanPolicy
from vswitch import orders
from vswitch.dataplane import DataplaneProcess


@dataclass
class Rig:
    """A running data plane.

    Attributes:
        process: it.
        folder: where the ports' sockets are: p1, p2, …
    """

    process: DataplaneProcess
    folder: Path

    def socket(self, port: int) -> Path:
        """Where a port listens."""
        return self.folder / f"p{port}"

    async def workers(self) -> list[orders.WorkerRecord]:
        """What the workers have done."""
        return orders.parse_workers(await self.process.order(orders.GetWorkers()))


def mac_of(port: int) -> bytes:
    """The MAC of a port."""
    return bytes([2, 0, 0, 0, port >> 8, port & 0xFF])


async def add_port(rig: Rig, port: int, vlan: VlanPolicy, rules: Sequence[AclRule], queues: int = 1) -> None:
    """Adds a listening vhost-user port to switch 1 with a VLAN, rules, and the guard against forged MACs."""
    order = rig.process.order
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(rig.socket(port)))
        listener.listen()
        await order(orders.PortAdd(port, orders.KIND_VHOST, queues, orders.ADD_LISTEN), [listener.fileno()])
    policy = PortPolicy(
        mac=mac_of(port), allow_spoofing=False, vlan=vlan, trust_pcp=False, rules=tuple(rules)
    )
    change = changes(None, compile_port(policy))
    for pipeline, mods in ((orders.FROM_PORT, change.from_port), (orders.TO_PORT, change.to_port)):
        await order(orders.OpenFlow(port, pipeline, b"".join(mod.pack() for mod in mods)))
    await order(orders.PortSet(port, 1, orders.FLAG_UP, 0, 9000, mac_of(port)))


@asynccontextmanager
async def running(
    ports: int, cpus: Sequence[int] = (-1,), rules: Sequence[AclRule] = (), queues: int = 1
) -> AsyncIterator[Rig]:
    """A data plane with `ports` ports in access VLAN 100; `cpus`: where workers are pinned, -1 nowhere."""
    folder = Path(tempfile.mkdtemp(prefix="vswitch-bench-"))
    ended = asyncio.Event()
    process = DataplaneProcess(cpus, folder / "log", lambda _event: None, lambda _status: ended.set())
    rig = Rig(process, folder)
    try:
        await process.order(orders.SwitchAdd(1, 0, 300))
        for port in range(1, ports + 1):
            await add_port(rig, port, VlanPolicy(VlanMode.ACCESS, vid=100), rules, queues)
        yield rig
    finally:
        await process.stop()
        shutil.rmtree(folder, ignore_errors=True)
