"""What the daemon's tests share: a data plane that only remembers, services over it or over the engine."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from vswitch import errors, orders
from vswitch.dataplane import Counters, Engine, Transport
from vswitch.model import Who
from vswitch.service import Places, Service
from vswitch.store import Store
from vswitch.vms import Vms

ROOT = Who(uid=0, pid=1, name="root (test)")


class FakeDataplane:
    """Says yes to every order but those that `refuse` picks."""

    def __init__(self) -> None:
        self.orders: list[orders.Order] = []
        self.fds: list[int] = []
        self.refuse: Callable[[orders.Order], bool] = lambda _order: False
        self.counters = Counters(bytearray(576 * orders.PORTS_MAX * orders.WORKERS_MAX))

    async def order(self, order: orders.Order, fds: Sequence[int] = ()) -> orders.Answer:
        if self.refuse(order):
            raise errors.DataplaneError(f"the data plane refused {order.describe()}: ENOMEM")
        self.orders.append(order)
        self.fds.append(len(fds))
        body = (
            struct.pack("=IIII", orders.API_VERSION, 1, 25, 1)
            if isinstance(order, orders.Hello)
            else bytes(40)
        )
        return orders.Answer(order.kind, 1, 0, 0, body)

    def kinds(self) -> list[str]:
        """The names of the orders since the last call."""
        names = [type(order).__name__ for order in self.orders]
        self.orders.clear()
        return names


@asynccontextmanager
async def service_over(transport: Transport, folder: Path) -> AsyncIterator[Service]:
    """A running service whose store and sockets are in `folder`; what it holds stays there."""
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)

    async def start(_events: object, _exited: object) -> Transport:
        return transport

    store = Store(folder / "state.db")
    service = Service(Places(folder, run_dir, run_dir / "api.sock"), store, start, Vms(run_dir))
    await service.start()
    try:
        yield service
    finally:
        await service.end()
        await service.leave()


def with_fake(folder: Path, test: Callable[[Service, FakeDataplane], Awaitable[None]]) -> None:
    """Runs an asynchronous test over a fake data plane."""

    async def run() -> None:
        fake = FakeDataplane()
        async with service_over(fake, folder) as service:
            fake.kinds()
            await test(service, fake)

    asyncio.run(run())


def with_engine(folder: Path, test: Callable[[Service, Engine], Awaitable[None]]) -> None:
    """Runs an asynchronous test over the real engine, in this process."""

    async def run() -> None:
        engine = Engine()
        try:
            async with service_over(engine, folder) as service:
                await test(service, engine)
        finally:
            engine.close()

    asyncio.run(run())
