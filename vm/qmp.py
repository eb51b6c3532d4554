"""QEMU's control socket: commands with a deadline, and events. A thin layer over the `qemu.qmp` library."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

from qemu.qmp import ExecuteError, QMPClient, QMPError

from vm.errors import QmpCommandError

COMMAND_TIMEOUT_S = 5.0

Event = dict[str, object]


class Monitor:
    """A connection to QEMU's control socket. QEMU serves one at a time."""

    def __init__(self, name: str, client: QMPClient) -> None:
        self._name = name
        self._client = client

    @classmethod
    async def connect(cls, name: str, path: Path) -> Self:
        """Connects and waits for QEMU's greeting, for as long as it takes; put a deadline around it.

        Args:
            name: the VM's, for messages.
            path: the socket.

        Raises:
            QmpCommandError: QEMU does not listen there, or speaks no QMP.
        """
        client = QMPClient(name)
        try:
            await client.connect(str(path))
        except QMPError as error:
            raise QmpCommandError(f"QEMU's control socket {path} can't be used: {error}.") from error
        return cls(name, client)

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> object:
        """Runs a command.

        Returns: what QEMU returned, as parsed from JSON.

        Raises:
            QmpCommandError: QEMU refused, did not answer in time, or closed the connection.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise QmpCommandError(
                f"QEMU of VM {self._name} did not answer {command} within {timeout_s:g} s.",
                "It waits for the switch when a NIC's socket has no peer.",
            ) from None
        except ExecuteError as error:
            raise QmpCommandError(f"QEMU of VM {self._name} refused {command}: {error}.") from error
        except QMPError as error:
            raise QmpCommandError(f"QEMU of VM {self._name} closed its control socket.") from error

    async def events(self, handle: Callable[[str, Event], None]) -> None:
        """Calls `handle(name, data)` for each event until it is cancelled."""
        with self._client.listener() as listener:
            async for event in listener:
                data = event.get("data")
                handle(str(event["event"]), dict(data) if isinstance(data, dict) else {})

    async def execute_until_event(
        self, command: str, arguments: dict[str, object], event_name: str, timeout_s: float
    ) -> None:
        """Runs a command and waits for the event that says it has taken effect.

        Args:
            command: what to run.
            arguments: its arguments; the event meant is the one with the same `id` as `device`.
            event_name: the event.
            timeout_s: for both.

        Raises:
            QmpCommandError: QEMU refused, or the event did not come in time.
        """
        with self._client.listener(event_name) as listener:
            await self.execute(command, arguments)
            try:
                async with asyncio.timeout(timeout_s):
                    async for event in listener:
                        data = event.get("data")
                        if isinstance(data, dict) and data.get("device") == arguments.get("id"):
                            return
            except TimeoutError:
                raise QmpCommandError(
                    f"VM {self._name} did not carry out {command} within {timeout_s:g} s.",
                    "Its guest has to take part; does it run?",
                ) from None

    async def close(self) -> None:
        """Closes the connection; QEMU goes on."""
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._client.disconnect()
