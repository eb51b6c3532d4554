"""The one way down: the data plane, in a process of its own or in this one, as something that takes orders.

The only importer of the cffi module. Two transports with one interface: `DataplaneProcess` starts
`vswitch-dataplane` and talks to it through rings in shared memory; `Engine` runs the same C code in this
process, for tests. Everything happens on the event loop's thread. The data plane is trusted; what it writes
is checked for length all the same.
"""

import array
import asyncio
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vswitch import _dataplane, errors, orders
from vswitch._dataplane import ffi, lib

EXECUTABLE = "vswitch-dataplane"
RING_DATA = 1 << 24
ORDER_TIMEOUT_S = 30.0
_RETRY_S = 0.002
_COUNTER_WORDS = 8 + orders.DROP_SLOTS

Events = Callable[[orders.Answer], None]


@dataclass(frozen=True)
class PortCounters:
    """What a port has counted, over all workers; `from` and `to` as its VM sees it.

    `drops`: by reason number.
    """

    from_packets: int
    from_bytes: int
    to_packets: int
    to_bytes: int
    to_group: int
    from_group: int
    drops: tuple[int, ...]


class Counters:
    """The counters' memory, read as it is.

    Exact after the workers have flushed, which they do many times a second.
    """

    def __init__(self, memory: Any) -> None:
        self._words = memoryview(memory).cast("B").cast("Q")

    def port(self, port_id: int) -> PortCounters:
        """One port's sums."""
        sums = [0] * _COUNTER_WORDS
        first = port_id * orders.WORKERS_MAX * _COUNTER_WORDS
        for worker in range(orders.WORKERS_MAX):
            start = first + worker * _COUNTER_WORDS
            for index, value in enumerate(self._words[start : start + _COUNTER_WORDS]):
                sums[index] += value
        return PortCounters(
            from_packets=sums[0],
            from_bytes=sums[1],
            to_packets=sums[2],
            to_bytes=sums[3],
            to_group=sums[4],
            from_group=sums[5],
            drops=tuple(sums[8:]),
        )

    def release(self) -> None:
        """Lets go of the memory."""
        self._words.release()


class Transport(Protocol):
    """Something that carries out orders."""

    counters: Counters

    async def order(self, order: orders.Order, fds: Sequence[int] = ()) -> orders.Answer:
        """Carries out one order.

        The descriptors stay the caller's. Raises errors.DataplaneError when it is refused.
        """


def refused(order: orders.Order, answer: orders.Answer) -> errors.DataplaneError:
    """The error for an answer with an error."""
    return errors.DataplaneError(
        f"the data plane refused {order.describe()}: {answer.error_text()}", number=-answer.error
    )


# ---- in this process ----


class Engine:
    """The data plane in this process, over memory ports, without threads: it moves when `step` is called.

    Args:
        workers: How many; only the first one turns.
    """

    def __init__(self, workers: int = 1) -> None:
        config = ffi.new("struct dataplane_config *")
        config.workers = workers
        for index in range(orders.WORKERS_MAX):
            config.cpus[index] = -1
        self._dataplane = lib.dataplane_new(config)
        if self._dataplane == ffi.NULL:
            raise errors.DataplaneError("there is no memory for the data plane")
        self._buffer = ffi.new("uint8_t[]", 1 << 17)
        self._next_id = 1
        pointer = lib.dataplane_counters(self._dataplane)
        size = ffi.sizeof("struct port_counters") * orders.PORTS_MAX * orders.WORKERS_MAX
        self.counters = Counters(ffi.buffer(pointer, size))

    def close(self) -> None:
        """Frees it and all its ports."""
        if self._dataplane != ffi.NULL:
            self.counters.release()
            lib.dataplane_free(self._dataplane)
            self._dataplane = ffi.NULL

    def ask(self, order: orders.Order, fds: Sequence[int] = ()) -> orders.Answer:
        """Carries out an order and returns its answer, whatever its error is."""
        if self._dataplane == ffi.NULL:
            raise errors.UnavailableError("the data plane has been closed")
        message = orders.pack(order, self._next_id, len(fds))
        self._next_id += 1
        own = [os.dup(fd) for fd in fds]  # the engine owns what it gets
        while True:
            length = lib.dataplane_order(
                self._dataplane, message, len(message), own, len(own), self._buffer, len(self._buffer)
            )
            if length != -7:  # E2BIG: ask again with more room
                break
            self._buffer = ffi.new("uint8_t[]", 2 * len(self._buffer))
        if length < 0:
            raise errors.DataplaneError(f"the data plane refused {order.describe()}: {os.strerror(-length)}")
        return orders.parse_answer(bytes(ffi.buffer(self._buffer, length)))

    def order_now(self, order: orders.Order, fds: Sequence[int] = ()) -> orders.Answer:
        """Carries out an order. Raises errors.DataplaneError when it is refused."""
        answer = self.ask(order, fds)
        if answer.error:
            raise refused(order, answer)
        return answer

    async def order(self, order: orders.Order, fds: Sequence[int] = ()) -> orders.Answer:
        """See Transport."""
        return self.order_now(order, fds)

    def step(self, timeout_ms: int = 0) -> int:
        """One round of the control loop and one turn of the first worker. Returns the frames it took."""
        return int(lib.dataplane_step(self._dataplane, timeout_ms))

    def settle(self) -> None:
        """Steps until no frame moves any more."""
        while self.step():
            pass

    def send(self, port_id: int, frame: bytes, vnet: bytes | None = None) -> None:
        """Queues a frame at a memory port, with a virtio_net_hdr of 10 bytes or none."""
        error = lib.mem_port_send(
            self._dataplane, port_id, frame, len(frame), vnet if vnet is not None else ffi.NULL
        )
        if error:
            raise errors.DataplaneError(f"memory port {port_id} takes no frame: {os.strerror(-error)}")

    def receive(self, port_id: int) -> bytes | None:
        """The next frame that was given to a memory port; None when there is none."""
        frame = self.receive_with_header(port_id)
        return frame[1] if frame else None

    def receive_with_header(self, port_id: int) -> tuple[bytes, bytes] | None:
        """The same, with its virtio_net_hdr."""
        frame, vnet = ffi.new("uint8_t[]", 1 << 17), ffi.new("uint8_t[]", 12)
        length = lib.mem_port_receive(self._dataplane, port_id, frame, len(frame), vnet)
        if length < 0:
            raise errors.DataplaneError(f"memory port {port_id}: {os.strerror(-length)}")
        return (bytes(ffi.buffer(vnet, 10)), bytes(ffi.buffer(frame, length))) if length else None

    def set_memory_port(self, port_id: int, room: int, offloads: int) -> None:
        """Frames that the port takes before it is full, and PORT_OFFLOAD_* bits of what it takes."""
        lib.mem_port_set(self._dataplane, port_id, room, offloads)

    def advance(self, seconds: float) -> None:
        """Moves the clock."""
        lib.dataplane_advance_clock(self._dataplane, int(seconds * 1e9))

    def event(self) -> orders.Answer | None:
        """The next event."""
        length = lib.dataplane_event(self._dataplane, self._buffer, len(self._buffer))
        return orders.parse_answer(bytes(ffi.buffer(self._buffer, length))) if length > 0 else None


def drop_reasons() -> list[tuple[str, str]]:
    """Names and sentences of all drop reasons, by number, as the C code has them."""
    found: list[tuple[str, str]] = []
    while (name := lib.drop_reason_name(len(found))) != ffi.NULL:
        found.append((ffi.string(name).decode(), ffi.string(lib.drop_reason_sentence(len(found))).decode()))
    return found


# ---- a process of its own ----


def dataplane_executable() -> Path:
    """Where `vswitch-dataplane` is.

    Beside the module (editable installs), in the environment's scripts, in PATH.
    """
    module = Path(str(_dataplane.__file__)).resolve().parent
    for folder in (module, module.parent, module / "dataplane", Path(sysconfig.get_path("scripts"))):
        candidate = folder / EXECUTABLE
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which(EXECUTABLE)
    if found is None:
        raise errors.HostError(
            f"the program {EXECUTABLE} is not installed", "run `make setup`, or install the package again"
        )
    return Path(found)


class _Ring:
    """A ring of ring.c in a memfd."""

    def __init__(self, name: str) -> None:
        self.fd = os.memfd_create(name)
        size = lib.RING_HEADER + RING_DATA
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        self._pointer = ffi.from_buffer(self._memory)
        self._ring = lib.ring_at(self._pointer, size)
        lib.ring_init(self._ring, size)

    def write(self, message: bytes) -> int:
        """0, or -errno."""
        return int(lib.ring_write(self._ring, message, len(message)))

    def read(self, buffer: Any) -> int:
        """Bytes read, 0 when empty, or -errno."""
        return int(lib.ring_read(self._ring, buffer, len(buffer)))

    def close(self) -> None:
        """Unmaps it. (C keeps the few bytes of its handle.

        There is one pair of rings per start of the process.)
        """
        ffi.release(self._pointer)
        self._memory.close()
        os.close(self.fd)


class DataplaneProcess:
    """A running `vswitch-dataplane`.

    Args:
        workers: CPUs to pin workers to, one each; -1: not pinned.
        log: Where its standard error goes.
        on_event: Called with each event.
        on_exit: Called once with its wait status, unless `stop` ended it.
    """

    def __init__(
        self, workers: Sequence[int], log: Path, on_event: Events, on_exit: Callable[[int], None]
    ) -> None:
        self._on_event, self._on_exit = on_event, on_exit
        self._waiting: dict[int, asyncio.Future[orders.Answer]] = {}
        self._next_id = 1
        self._stopping = False
        self._lock = asyncio.Lock()
        self._orders, self._events = _Ring("vswitch-orders"), _Ring("vswitch-events")
        self._orders_event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._events_event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._descriptors, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        counters_fd = os.memfd_create("vswitch-counters")
        size = _COUNTER_WORDS * 8 * orders.PORTS_MAX * orders.WORKERS_MAX
        os.ftruncate(counters_fd, size)
        self._counters_memory = mmap.mmap(counters_fd, size)
        self.counters = Counters(self._counters_memory)
        self._buffer = mmap.mmap(-1, RING_DATA)  # not touched before it is needed
        self._buffer_pointer = ffi.from_buffer("uint8_t[]", self._buffer)
        numbered = {
            "--orders": self._orders.fd,
            "--events": self._events.fd,
            "--counters": counters_fd,
            "--orders-event": self._orders_event,
            "--events-event": self._events_event,
            "--descriptors": theirs.fileno(),
        }
        command = [str(dataplane_executable())]
        for option, fd in numbered.items():
            command += [option, str(fd)]
        command += ["--workers", ",".join(map(str, workers))]
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=tuple(numbered.values()),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        finally:
            theirs.close()
            os.close(counters_fd)
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._events_event, self._read_events)
        loop.add_reader(self._pidfd, self._exited)

    async def order(self, order: orders.Order, fds: Sequence[int] = ()) -> orders.Answer:
        """See Transport. Also raises errors.UnavailableError when the process is gone or silent."""
        future: asyncio.Future[orders.Answer] = asyncio.get_running_loop().create_future()
        async with self._lock:
            order_id = self._next_id
            self._next_id += 1
            message = orders.pack(order, order_id, len(fds))
            if fds:
                self._send_fds(order_id, fds)
            while (error := self._orders.write(message)) == -11:  # EAGAIN: the ring is full
                self._check_alive()
                await asyncio.sleep(_RETRY_S)
            if error:
                raise errors.DataplaneError(
                    f"{order.describe()} does not fit into the order ring: {os.strerror(-error)}"
                )
            self._check_alive()
            self._waiting[order_id] = future
            os.eventfd_write(self._orders_event, 1)
        try:
            answer = await asyncio.wait_for(future, ORDER_TIMEOUT_S)
        except TimeoutError:
            raise errors.UnavailableError(f"the data plane did not answer {order.describe()}") from None
        finally:
            self._waiting.pop(order_id, None)
        if answer.error:
            raise refused(order, answer)
        return answer

    async def stop(self) -> None:
        """Ends the process: asked first, then killed."""
        self._stopping = True
        if self._process.poll() is None:
            try:
                await asyncio.wait_for(self.order(orders.Stop()), 2)
                await asyncio.wait_for(asyncio.to_thread(self._process.wait), 3)
            except (TimeoutError, errors.VswitchError):
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
        self.close()

    def close(self) -> None:
        """Lets go of all that belongs to the process, which is left as it is."""
        loop = asyncio.get_running_loop()
        for fd in (self._events_event, self._pidfd):
            loop.remove_reader(fd)
            os.close(fd)
        os.close(self._orders_event)
        self._descriptors.close()
        self.counters.release()
        self._counters_memory.close()
        ffi.release(self._buffer_pointer)
        self._buffer.close()
        self._orders.close()
        self._events.close()

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            raise errors.UnavailableError("the data plane has ended", "vswitchd starts it again by itself")

    def _send_fds(self, order_id: int, fds: Sequence[int]) -> None:
        rights = array.array("i", fds)
        try:
            self._descriptors.sendmsg(
                [order_id.to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
            )
        except OSError as error:
            raise errors.UnavailableError(f"the data plane takes no descriptors: {error.strerror}") from error

    def _read_events(self) -> None:
        try:
            os.eventfd_read(self._events_event)
        except BlockingIOError:
            return
        while (length := self._events.read(self._buffer_pointer)) > 0:
            answer = orders.parse_answer(bytes(self._buffer[:length]))
            if answer.id == 0:
                self._on_event(answer)
                continue
            future = self._waiting.get(answer.id)
            if future is not None and not future.done():
                future.set_result(answer)

    def _exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        status = self._process.wait()
        gone = errors.UnavailableError("the data plane has ended", "vswitchd starts it again by itself")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(gone)
        if not self._stopping:
            self._on_exit(status)
