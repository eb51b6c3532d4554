"""The other end of a NIC's socket, for tests of the launcher alone: answers QEMU so that the guest boots.

It takes no frames and gives none.
"""

import asyncio
import contextlib
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

GET_FEATURES = 1
GET_VRING_BASE = 11
GET_PROTOCOL_FEATURES = 15
FEATURES = 1 << 32 | 1 << 30  # VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES
REPLY = 0x5  # version 1, and the flag that says "reply"


class VhostStub:
    """Connects to a socket on which QEMU listens, and answers the questions that QEMU waits for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        reader, writer = await asyncio.open_unix_connection(self._path)
        self._task = asyncio.create_task(self._serve(reader, writer))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request, _, size = struct.unpack("<III", await reader.readexactly(12))
                payload = await reader.readexactly(size)
                if request == GET_FEATURES:
                    writer.write(struct.pack("<IIIQ", request, REPLY, 8, FEATURES))
                elif request == GET_PROTOCOL_FEATURES:
                    writer.write(struct.pack("<IIIQ", request, REPLY, 8, 0))
                elif request == GET_VRING_BASE:
                    index = struct.unpack("<I", payload[:4])[0]
                    writer.write(struct.pack("<IIIII", request, REPLY, 8, index, 0))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
