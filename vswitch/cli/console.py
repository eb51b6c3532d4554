"""Joins this terminal, or a pair of pipes, with a VM's serial console.

What the guest writes goes to the terminal as it is: a serial console is a terminal, and the person asked for
this one. Nothing of it is interpreted here.
"""

import contextlib
import os
import selectors
import socket
import sys
import termios
import tty
from collections.abc import Iterator

from vswitch import errors

LEAVE = b"\x1d"  # Ctrl-], as telnet and virsh have it
_SILENCE_S = 1.0
_CHUNK = 65536


def attach(path: str, stdin: int | None = None, stdout: int | None = None) -> None:
    """Copies both ways until Ctrl-], or the VM closes the console.

    On a pipe also until the input has ended and the VM has been silent for a second.

    Args:
        path: The console's unix socket.
        stdin: The descriptor that is read; by default the process's standard input.
        stdout: The descriptor that is written to.

    Raises:
        errors.VmError: Nobody listens on the socket.
    """
    source = sys.stdin.fileno() if stdin is None else stdin
    sink = sys.stdout.fileno() if stdout is None else stdout
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
        except OSError as error:
            raise errors.VmError(
                f"the console {path} cannot be opened: {error.strerror}",
                "vswitch vm list, to see whether the VM runs",
            ) from error
        with _raw(source):
            _join(line, source, sink)


def _join(line: socket.socket, source: int, sink: int) -> None:
    is_terminal = os.isatty(source)
    with selectors.DefaultSelector() as selector:
        selector.register(line, selectors.EVENT_READ)
        # A file is always readable, and epoll refuses it.
        pending = None
        try:
            selector.register(source, selectors.EVENT_READ)
        except PermissionError:
            pending = source
        input_ended = False
        while True:
            events = selector.select(0 if pending is not None else _SILENCE_S if input_ended else None)
            ready = [key.fileobj for key, _ in events] + ([pending] if pending is not None else [])
            if not ready:
                return
            if line in ready and not _copy_out(line, sink):
                return
            if source in ready:
                data = os.read(source, _CHUNK)
                if is_terminal and LEAVE in data:
                    line.sendall(data.partition(LEAVE)[0])
                    return
                if data:
                    line.sendall(data)
                    continue
                input_ended = True
                if pending is None:
                    selector.unregister(source)
                pending = None


def _copy_out(line: socket.socket, sink: int) -> bool:
    """Passes on what the VM wrote; False when it closed the console."""
    try:
        data = line.recv(_CHUNK)
    except ConnectionResetError:
        return False
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]
    return bool(data)


@contextlib.contextmanager
def _raw(source: int) -> Iterator[None]:
    """Keys go to the VM as they are typed, Ctrl-C too; nothing to do on a pipe."""
    if not os.isatty(source):
        yield
        return
    before = termios.tcgetattr(source)
    tty.setraw(source)
    try:
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
