"""A guest with one virtio-net device, in this process: the driver's rings and QEMU's side of vhost-user.

Example:
    with Guest(GuestConfig(packed=True)) as guest:
        guest.connect("/run/port.sock")
        guest.send(frame)
        for got in guest.receive_frames(1, timeout=2):
            print(got.frame.hex())
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from types import TracebackType

from bench.driver.memory import DriverError, GuestMemory, RegionLayout
from bench.driver.queue import Header, Queue, QueueLayout, Received
from bench.driver.session import ProtocolFeature, Request, Session, accept, listen

_RECEIVE_BUFFER_BIG = 65562  # a 64 KiB frame, its Ethernet and virtio-net headers (virtio 1.2, 5.1.6.3.1)


class Feature(IntFlag):
    """Feature bits of the device that the driver knows, as bits of the mask."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15
    MQ = 1 << 22
    LOG_ALL = 1 << 26
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


OFFLOADS = (
    Feature.CSUM
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
)
NO_FEATURES = Feature(0)
USO = Feature.GUEST_USO4 | Feature.GUEST_USO6 | Feature.HOST_USO


@dataclass(frozen=True)
class GuestConfig:
    """What the guest's driver chooses.

    A feature that is chosen and not offered is an error, except USO and protocol features.

    Args:
        packed, in_order, event_idx, mergeable: the features of that name.
        indirect: buffers are described by indirect tables; else by chains in the ring.
        offloads: checksum and TSO in both directions; `uso`: UDP segmentation too, where it is offered.
        extra_features: further bits that must be had.
        queue_pairs: 1..; more than one needs MQ.
        ring_size: descriptors of each ring.
        segments: descriptors a transmit frame is cut into, 1..256 (fewer when `cuts` says so).
        rx_segments: the same for a receive buffer.
        rx_buffer_size: bytes of a receive buffer with the 12 of the header; none: 2048, or 64 KiB without
            `mergeable` but with `offloads`.
        frame_size_max: the longest frame to send, in bytes.
        post_buffers: keep receive rings full.
        reply_ack: let the back end confirm each message, if it can.
        regions: guest memory; none: one region of as much as is needed, above 4 GiB.
        huge: take the memory from 2 MiB pages.
        start: first index of the rings (QueueLayout.start).
    """

    packed: bool = False
    in_order: bool = False
    event_idx: bool = False
    mergeable: bool = True
    indirect: bool = False
    offloads: bool = False
    uso: bool = False
    extra_features: Feature = NO_FEATURES
    queue_pairs: int = 1
    ring_size: int = 256
    segments: int = 1
    rx_segments: int = 1
    rx_buffer_size: int | None = None
    frame_size_max: int = 65550
    post_buffers: bool = True
    reply_ack: bool = True
    regions: Sequence[RegionLayout] | None = None
    huge: bool = False
    start: int | None = None

    def wanted_features(self) -> Feature:
        """The features that the back end has to offer."""
        wanted = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | self.extra_features
        for chosen, feature in (
            (self.packed, Feature.RING_PACKED),
            (self.in_order, Feature.IN_ORDER),
            (self.event_idx, Feature.EVENT_IDX),
            (self.mergeable, Feature.MRG_RXBUF),
            (self.indirect, Feature.INDIRECT_DESC),
            (self.offloads, OFFLOADS),
            (self.queue_pairs > 1, Feature.MQ),
        ):
            if chosen:
                wanted |= feature
        return wanted

    def queue_layout(self, index: int) -> QueueLayout:
        """The layout of ring `index`."""
        receives = index % 2 == 0
        big = _RECEIVE_BUFFER_BIG if self.offloads and not self.mergeable else 2048
        return QueueLayout(
            size=self.ring_size,
            packed=self.packed,
            in_order=self.in_order,
            event_idx=self.event_idx,
            mergeable=self.mergeable and receives,
            buffer_size=(self.rx_buffer_size or big) if receives else self.frame_size_max + Header.SIZE,
            segments_max=self.rx_segments if receives else self.segments,
            indirect=self.indirect,
            start=self.start,
        )

    def memory_layout(self) -> Sequence[RegionLayout]:
        """The regions given, or one that suffices."""
        if self.regions is not None:
            return self.regions
        size = 0
        for index in range(2):
            layout = self.queue_layout(index)
            segments = layout.segments_max
            size += layout.size * (16 + 16 + 16 * segments + layout.buffer_size + 64 * segments + 128) + 65536
        huge_pages = -(-size * self.queue_pairs // (2 << 20))
        return [RegionLayout(0x1_4000_0000, huge_pages * (2 << 20))]


class Guest:
    """A guest with one virtio-net device. `rx[n]` and `tx[n]` are the rings of queue pair n."""

    def __init__(self, config: GuestConfig | None = None) -> None:
        """Make memory and rings; nothing is connected yet."""
        self.config = config or GuestConfig()
        self.memory = GuestMemory(self.config.memory_layout(), huge=self.config.huge)
        self.queues: list[Queue] = []
        self.rx: list[Queue] = []
        self.tx: list[Queue] = []
        self.features = Feature(0)
        self.offered = Feature(0)
        self.protocol_features = ProtocolFeature(0)
        self._session: Session | None = None
        self._listener: socket.socket | None = None
        self._listening: Path | None = None
        try:
            self._make_rings()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_rings(self) -> None:
        for index in range(2 * self.config.queue_pairs):
            self.queues.append(Queue(self.memory, index, self.config.queue_layout(index)))
        self.rx, self.tx = self.queues[0::2], self.queues[1::2]
        if self.config.post_buffers:
            for queue in self.rx:
                queue.post(queue.layout.size)
                queue.flush(kick=False)

    def _drop_rings(self) -> None:
        for queue in self.queues:
            queue.close()
        self.queues = []

    # The session.

    @property
    def session(self) -> Session:
        """The connection.

        Raises:
            DriverError: there is none.
        """
        if self._session is None:
            raise DriverError("the guest is not connected")
        return self._session

    def connect(self, path: Path | str, *, timeout: float = 10.0, start: bool = True) -> None:
        """Connect to a back end that listens and start the device (or only connect)."""
        self._begin(Session.connect(path, timeout), start)

    def listen(self, path: Path | str) -> None:
        """Listen for a back end that connects; `accept()` takes it."""
        self._listener = listen(path)
        self._listening = Path(path)

    def accept(self, *, timeout: float = 10.0, start: bool = True) -> None:
        """Wait for the back end to connect, and start the device (or only take the connection)."""
        if self._listener is None:
            raise DriverError("the guest does not listen")
        self._begin(accept(self._listener, timeout), start)

    def _begin(self, session: Session, start: bool) -> None:
        self.disconnect()
        self._session = session
        if start:
            self.negotiate()
            self.start()

    def negotiate(self) -> None:
        """Agree on features.

        Raises:
            DriverError: the back end lacks one that the configuration needs.
        """
        session, config = self.session, self.config
        session.reply_ack = False
        self.offered = Feature(session.get(Request.GET_FEATURES))
        wanted = config.wanted_features()
        # As numbers: ~ of a flag knows named bits only.
        if missing := Feature(int(wanted) & ~int(self.offered)):
            raise DriverError(f"the back end does not offer {missing!r}")
        if config.uso:
            wanted |= USO & self.offered
        self.features = wanted
        offered = ProtocolFeature(session.get(Request.GET_PROTOCOL_FEATURES))
        chosen = ProtocolFeature.MQ | ProtocolFeature.CONFIG | ProtocolFeature.RESET_DEVICE
        if config.reply_ack:
            chosen |= ProtocolFeature.REPLY_ACK
        self.protocol_features = chosen & offered
        session.set(Request.SET_PROTOCOL_FEATURES, int(self.protocol_features).to_bytes(8, "little"))
        session.reply_ack = ProtocolFeature.REPLY_ACK in self.protocol_features
        if config.queue_pairs > 1:
            if ProtocolFeature.MQ not in self.protocol_features:
                raise DriverError("the back end has no protocol feature MQ")
            if (has := session.get(Request.GET_QUEUE_NUM)) < config.queue_pairs:
                raise DriverError(f"the back end has {has} queue pairs; {config.queue_pairs} are wanted")
        session.set(Request.SET_OWNER)

    def start(self) -> None:
        """Hand features, memory and rings over and enable them; rings go on at their used index."""
        session = self.session
        session.set(Request.SET_FEATURES, int(self.features).to_bytes(8, "little"))
        session.set_memory_table(self.memory.regions)
        for queue in self.queues:
            self.start_ring(queue)
        for queue in self.queues:
            session.set_vring(Request.SET_VRING_ENABLE, queue.index, 1)

    def start_ring(self, queue: Queue, *, base: int | None = None) -> None:
        """Describe a ring to the back end and start it.

        Args:
            queue: one of `queues`.
            base: where to begin, as GET_VRING_BASE answered; none: behind the last used buffer.
        """
        session, index = self.session, queue.index
        if base is None:
            base = queue.resume_base
            if queue.layout.packed:
                base |= base << 16  # the used position is the same one
        session.set_vring(Request.SET_VRING_NUM, index, queue.layout.size)
        session.set_vring(Request.SET_VRING_BASE, index, base)
        session.set_vring_address(
            index,
            self.memory.user_address(queue.descriptors),
            self.memory.user_address(queue.used),
            self.memory.user_address(queue.avail),
        )
        session.set_vring_fd(Request.SET_VRING_CALL, index, queue.call_fd)
        session.set_vring_fd(Request.SET_VRING_KICK, index, queue.kick_fd)
        # What was made available before the device knew the ring has had no kick that it saw.
        queue.kick()

    def stop_ring(self, queue: Queue) -> int:
        """Stop a ring (GET_VRING_BASE). Returns where it stands."""
        return self.session.get_vring_base(queue.index)

    def enable_ring(self, queue: Queue, on: bool) -> None:
        """SET_VRING_ENABLE."""
        self.session.set_vring(Request.SET_VRING_ENABLE, queue.index, int(on))

    def stop(self) -> list[int]:
        """Stop all rings, as QEMU does when the guest resets its device. Returns where they stand."""
        for queue in self.queues:
            self.enable_ring(queue, False)
        return [self.stop_ring(queue) for queue in self.queues]

    def reset(self) -> None:
        """Reset the device and start it with empty rings and memory, on the same connection."""
        self.stop()
        self.renew()
        self.start()

    def renew(self) -> None:
        """Forget all rings and zero the memory. The back end must not be using them."""
        self._drop_rings()
        self.memory.forget()
        self._make_rings()

    def disconnect(self) -> None:
        """Close the connection; memory and rings stay, and the next `connect()` goes on with them."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def close(self) -> None:
        """Disconnect and free everything."""
        self.disconnect()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._listening is not None:
            self._listening.unlink(missing_ok=True)
        self._drop_rings()
        self.memory.close()

    # Frames.

    def send(
        self, frame: bytes, header: Header | None = None, *, queue: int = 0, cuts: Sequence[int] | None = None
    ) -> None:
        """Send one frame.

        Raises:
            DriverError: the ring is full.
        """
        ring = self.tx[queue]
        ring.reclaim()
        if not ring.send(frame, header, cuts=cuts):
            raise DriverError(f"{ring.name} is full: {ring.in_flight} frames wait for the device")
        ring.flush()

    def send_batch(self, frames: Sequence[bytes], header: Header | None = None, *, queue: int = 0) -> int:
        """Send frames with one publication and one kick at most. Returns how many fitted, from the front."""
        ring = self.tx[queue]
        ring.reclaim()
        sent = 0
        for frame in frames:
            if not ring.send(frame, header):
                break
            sent += 1
        ring.flush()
        return sent

    def receive(self, *, queue: int = 0) -> list[Received]:
        """All frames that are there now; posts as many buffers as came (unless `post_buffers` is off)."""
        ring = self.rx[queue]
        frames = []
        while (got := ring.receive()) is not None:
            frames.append(got)
        if frames and self.config.post_buffers:
            ring.post(ring.layout.size)
            ring.flush()
        return frames

    def receive_frames(self, count: int, *, timeout: float = 5.0, queue: int = 0) -> list[Received]:
        """Sleep until `count` frames are there, at most `timeout` seconds; returns all that came."""
        deadline = time.monotonic() + timeout
        frames = self.receive(queue=queue)
        while len(frames) < count and (left := deadline - time.monotonic()) > 0:
            self.rx[queue].wait(left)
            frames += self.receive(queue=queue)
        return frames

    def wait_sent(self, *, timeout: float = 5.0, queue: int = 0) -> bool:
        """Wait until the device has returned all transmit buffers. False: it has not in time."""
        deadline = time.monotonic() + timeout
        ring = self.tx[queue]
        ring.reclaim()
        while ring.in_flight and (left := deadline - time.monotonic()) > 0:
            ring.wait(left)
            ring.reclaim()
        return not ring.in_flight
