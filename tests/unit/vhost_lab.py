"""A switch with vhost-user ports in this process, for guests of `bench.driver`; a thread moves it."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from bench.driver.guest import Guest
from bench.driver.session import listen
from controller.policy import changes, compile_port
from controller.settings import PortPolicy
from vswitch import orders
from vswitch.dataplane import Engine, drop_reasons

T = TypeVar("T")

SWITCH = 1
FAULT_NAMES = ["none", "ring_index", "descriptor", "descriptor_loop", "memory_gone", "protocol", "device"]
REASONS = [name for name, _ in drop_reasons()]
OFF_DUTY_MS = 1
PATIENCE_S = 10.0


def mac(port: int) -> bytes:
    """The MAC of a port's guest."""
    return bytes([2, 0, 0, 0, 0, port])


def frame_of(source: int, destination: int, length: int, number: int = 0) -> bytes:
    """A frame between two ports' guests, of an experimental EtherType, whose bytes tell positions apart."""
    body = bytes((i * 7 + i // 256 + number) & 0xFF for i in range(length - 14))
    return mac(destination) + mac(source) + b"\x88\xb5" + body


class VhostLab:
    """An engine whose ports 1, 2, … are vhost-user ports of one switch.

    The engine is the thread's: everything else asks it through `call`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine()
        self.engine.order_now(orders.SwitchAdd(SWITCH, 0, 300))
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="engine")
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and the engine."""
        self._stop = True
        self._thread.join()
        self.engine.close()

    def _run(self) -> None:
        busy = 0
        while not self._stop:
            busy = self.engine.step(0 if busy else OFF_DUTY_MS)
            while self.engine.event() is not None:
                pass  # as vswitchd does: faults are dealt with when their events are read
            while not self._calls.empty():
                self._calls.get()()

    def call(self, function: Callable[[], T]) -> T:
        """Runs something between two steps of the engine."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except Exception as error:
                result.set_exception(error)

        self._calls.put(run)
        return result.result(PATIENCE_S)

    def add(self, number: int, *, queues: int = 1, connects: bool = False) -> Path:
        """Makes a port with rules, on the switch; `connects`: its guest listens. Returns its socket."""
        path = self.folder / f"{number}.sock"
        if connects:
            address = orders.sockaddr_path(str(path))
            self.call(
                lambda: self.engine.order_now(
                    orders.PortAdd(number, orders.KIND_VHOST, queues, address=address)
                )
            )
        else:
            with listen(path) as listener:
                listener.setblocking(False)
                listener.listen(16)
                self.call(
                    lambda: self.engine.order_now(
                        orders.PortAdd(number, orders.KIND_VHOST, queues, orders.ADD_LISTEN),
                        [listener.fileno()],
                    )
                )
        rules = changes(None, compile_port(PortPolicy(mac(number))))
        for pipeline, mods in ((orders.FROM_PORT, rules.from_port), (orders.TO_PORT, rules.to_port)):
            messages = b"".join(mod.pack() for mod in mods)
            self.call(lambda p=pipeline, m=messages: self.engine.order_now(orders.OpenFlow(number, p, m)))  # type: ignore[misc]
        self.call(
            lambda: self.engine.order_now(orders.PortSet(number, SWITCH, orders.FLAG_UP, 0, 0, mac(number)))
        )
        return path

    def delete(self, number: int) -> None:
        """Deletes a port, whoever is connected to it."""
        self.call(lambda: self.engine.order_now(orders.PortDelete(number)))

    def state(self, number: int) -> orders.PortStateRecord:
        """What the port says of itself."""
        answer = self.call(lambda: self.engine.order_now(orders.GetPortState(number)))
        return orders.parse_port_state(answer.body)

    def fault(self, number: int) -> str:
        """The port's fault, by name."""
        return FAULT_NAMES[self.state(number).fault]

    def drops(self, number: int) -> dict[str, int]:
        """What was dropped at the port, by reason."""
        counted = self.call(lambda: self.engine.counters.port(number).drops)
        return {REASONS[reason]: count for reason, count in enumerate(counted) if count}

    def guest_bytes(self) -> int:
        """Bytes of frames written to guests' memory so far."""
        return orders.parse_workers(self.call(lambda: self.engine.order_now(orders.GetWorkers())))[
            0
        ].guest_bytes

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Waits until something is so.

        Raises:
            AssertionError: it has not become so.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, "waited in vain"
            self.call(lambda: None)  # one step of the engine at least

    def wait_linked(self, *numbers: int) -> None:
        """Waits until these ports' links are up."""
        for number in numbers:
            self.wait_for(lambda n=number: self.state(n).link)  # type: ignore[misc]


def exchange(
    lab: VhostLab, first: Guest, second: Guest, ports: tuple[int, int] = (1, 2), count: int = 20
) -> None:
    """Frames both ways between two guests: all arrive, unchanged and in order."""
    lab.wait_linked(*ports)
    for source, target, (a, b) in ((first, second, ports), (second, first, ports[::-1])):
        sent = [frame_of(a, b, 60 + i * 37, i) for i in range(count)]
        assert source.send_batch(sent) == count
        assert [got.frame for got in target.receive_frames(count)] == sent
        assert source.wait_sent()
