"""The front end's side of vhost-user: messages, descriptors, replies, which are checked when they come."""

import os
import socket
import struct
import time
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from pathlib import Path

from bench.driver.memory import DriverError, Region

VERSION = 1
REPLY = 1 << 2
NEED_REPLY = 1 << 3
NO_FD = 1 << 8
_HEADER = struct.Struct("<III")
_PAYLOAD_MAX = 4096


class Request(IntEnum):
    """Messages from the front end (vhost-user, "Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    GET_CONFIG = 24
    RESET_DEVICE = 34
    GET_STATUS = 40
    SET_STATUS = 39


class ProtocolFeature(IntFlag):
    """Protocol features, as bits of the mask."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13
    STATUS = 1 << 16


class SessionError(DriverError):
    """The back end refused, answered nonsense, or closed the connection."""


class SessionClosedError(SessionError):
    """The back end closed the connection."""


class Session:
    """One vhost-user connection, from the front end's side. All waiting ends at `timeout` seconds."""

    def __init__(self, connection: socket.socket, timeout: float = 10.0) -> None:
        self.socket = connection
        self.socket.settimeout(timeout)
        self.reply_ack = False

    @classmethod
    def connect(cls, path: Path | str, timeout: float = 10.0) -> "Session":
        """Connect to a back end that listens, and wait for it to do so.

        Raises:
            SessionError: nobody listened in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                connection.close()
                if time.monotonic() > deadline:
                    raise SessionError(f"nobody listens on {path}") from error
                time.sleep(0.01)
            else:
                return cls(connection, timeout)

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    # Bytes.

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes with any descriptors.

        Raises:
            SessionClosedError: the back end has closed the connection.
        """
        try:
            sent = socket.send_fds(self.socket, [data], list(fds))
            self.socket.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise SessionClosedError("the back end closed the connection") from error

    def receive_exactly(self, size: int) -> bytes:
        """Receive so many bytes.

        Raises:
            SessionClosedError: the connection ended before.
            SessionError: they did not come in time.
        """
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except TimeoutError as error:
                raise SessionError("the back end does not answer") from error
            except ConnectionResetError as error:
                raise SessionClosedError("the back end closed the connection") from error
            if not more:
                raise SessionClosedError("the back end closed the connection")
            data += more
        return data

    def is_closed(self, timeout: float = 0.0) -> bool:
        """Wait up to `timeout` seconds for the back end to close the connection; True when it has."""
        before = self.socket.gettimeout()
        self.socket.settimeout(timeout)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            return True
        except (TimeoutError, BlockingIOError):
            return False
        finally:
            self.socket.settimeout(before)

    # Messages.

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 0) -> None:
        """Send one message and wait for nothing."""
        self.send_raw(_HEADER.pack(request, VERSION | flags, len(payload)) + payload, fds)

    def reply_to(self, request: int) -> bytes:
        """The payload of the reply to `request`.

        Raises:
            SessionError: what came is something else.
        """
        got, flags, size = _HEADER.unpack(self.receive_exactly(_HEADER.size))
        if got != request or flags & 7 != VERSION | REPLY or size > _PAYLOAD_MAX:
            raise SessionError(
                f"message {got} (flags {flags:#x}, {size} bytes) where the reply to {request} should be"
            )
        return self.receive_exactly(size)

    def set(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no reply of its own; with REPLY_ACK, wait to hear that it worked.

        Raises:
            SessionError: it did not.
        """
        self.send(request, payload, fds, flags=NEED_REPLY if self.reply_ack else 0)
        if self.reply_ack:
            (result,) = struct.unpack("<Q", self._sized(request, 8))
            if result:
                raise SessionError(f"the back end refused {request.name} ({result})")

    def get(self, request: Request, payload: bytes = b"") -> int:
        """Ask for a 64-bit number."""
        self.send(request, payload)
        (value,) = struct.unpack("<Q", self._sized(request, 8))
        return int(value)

    def _sized(self, request: Request, size: int) -> bytes:
        payload = self.reply_to(request)
        if len(payload) != size:
            raise SessionError(f"a reply of {len(payload)} bytes to {request.name} where {size} should be")
        return payload

    def set_memory_table(self, regions: Sequence[Region]) -> None:
        """Tell the back end all memory regions; they replace the ones it had."""
        payload = struct.pack("<II", len(regions), 0)
        for region in regions:
            layout = region.layout
            payload += struct.pack(
                "<QQQQ", layout.address, layout.size, region.user_address, layout.file_offset
            )
        self.set(Request.SET_MEM_TABLE, payload, [region.fd for region in regions])

    def set_vring(self, request: Request, index: int, value: int) -> None:
        """SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE: a ring's number and a value."""
        self.set(request, struct.pack("<II", index, value))

    def set_vring_fd(self, request: Request, index: int, fd: int | None) -> None:
        """SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR; without a descriptor: polling, or none."""
        self.set(request, struct.pack("<Q", index | (NO_FD if fd is None else 0)), [] if fd is None else [fd])

    def set_vring_address(self, index: int, descriptors: int, used: int, avail: int) -> None:
        """Where a ring's three parts are, as our own addresses."""
        self.set(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, descriptors, used, avail, 0))

    def get_vring_base(self, index: int) -> int:
        """Stop a ring. Returns where it stands; afterwards the back end touches neither ring nor buffers.

        Raises:
            SessionError: the answer is about another ring.
        """
        self.send(Request.GET_VRING_BASE, struct.pack("<II", index, 0))
        got, base = struct.unpack("<II", self._sized(Request.GET_VRING_BASE, 8))
        if got != index:
            raise SessionError(f"GET_VRING_BASE for ring {index} was answered for ring {got}")
        return int(base)

    def get_config(self, size: int, offset: int = 0) -> bytes:
        """Bytes of the device's configuration space (needs the protocol feature CONFIG)."""
        self.send(Request.GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(size))
        payload = self.reply_to(Request.GET_CONFIG)
        if len(payload) != 12 + size:
            raise SessionError(f"the back end has no {size} bytes of configuration at {offset}")
        return payload[12:]


def listen(path: Path | str) -> socket.socket:
    """A socket for back ends that connect; an old socket file in its place is removed."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def accept(listener: socket.socket, timeout: float = 10.0) -> Session:
    """The session of the next back end that connects.

    Raises:
        SessionError: none came in time.
    """
    listener.settimeout(timeout)
    try:
        connection, _ = listener.accept()
    except TimeoutError as error:
        raise SessionError("no back end connected") from error
    return Session(connection, timeout)


def event_fd() -> int:
    """A fresh eventfd for a kick or a call."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
