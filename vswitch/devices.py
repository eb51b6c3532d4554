"""What needs privilege or a place in the file system, opened for the data plane: taps, sockets, files.

Runs in vswitchd, whose event loop waits for the few milliseconds that it takes. Paths and device names are
the user's: each is checked, and an error names it. A path in use is refused, a socket that nobody listens on
any more is replaced. Taps that we made persist, so that their addresses survive a crash of ours, and are
deleted with their ports.
"""

import asyncio
import contextlib
import errno
import fcntl
import grp
import hashlib
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from vswitch import errors, netdev
from vswitch.model import Port
from vswitch.words import INTERFACE_NAME_MAX

_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454CB, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_MULTI_QUEUE, _IFF_VNET_HDR = 0x0002, 0x1000, 0x0100, 0x4000
VNET_HEADER_BYTES = 12
_INTERFACE_MTU = 1500
GROUP = "vswitch"


@dataclass
class Device:
    """What was opened for a port.

    Attributes:
        fds: For the data plane, which gets duplicates.
        interface: The tap that we made, and delete.
        path: The socket that we made, and unlink.
        guard: What keeps the host's own stack off a kernel device, and what we take away.
    """

    fds: list[int]
    interface: str | None = None
    path: Path | None = None
    guard: netdev.Guard | None = None


def interface_name(port: Port) -> str:
    """The interface of a host port or of a tap that we make.

    The switch's name, or `vs-…` for others and where that is too long.
    """
    owner = port.owner
    if port.kind == "host" and len(owner) <= INTERFACE_NAME_MAX:
        return owner
    digest = hashlib.sha256(port.name.encode()).hexdigest()[:4]
    readable = port.name.replace("/", "-")[: INTERFACE_NAME_MAX - 8]
    return f"vs-{readable}-{digest}"


def is_ours(port: Port) -> bool:
    """Whether the port's interface is one that we make."""
    return port.kind == "host" or (port.kind == "tap" and port.device is None)


def interface_exists(name: str) -> bool:
    """Whether the kernel has an interface of this name here."""
    return Path("/sys/class/net", name).exists()


# ---- taps ----


def is_tap(name: str) -> bool:
    """Whether this interface exists and is a tap."""
    return Path("/sys/class/net", name, "tun_flags").exists()


def _open_tap(name: str, queues: int, port: str) -> list[int]:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            fcntl.ioctl(fds[-1], _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(fds[-1], _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise _tap_error(name, port, error) from error
    return fds


def _tap_error(name: str, port: str, error: OSError) -> errors.VswitchError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return errors.NotPermittedError(
            f"port {port}: this user may not open the tap {name}",
            "run vswitchd as root, or with CAP_NET_ADMIN",
        )
    if error.errno == errno.EBUSY:
        return errors.ConflictError(
            f"port {port}: another program uses the tap {name}", "end it, or take another tap"
        )
    if error.errno == errno.ENOENT:
        return errors.HostError(f"port {port}: {_TUN} is missing", "load the module tun (`modprobe tun`)")
    if error.errno == errno.EINVAL:
        return errors.ConflictError(
            f"port {port}: the tap {name} was made with other options",
            "make it with vnet_hdr, and multi_queue for --queues",
        )
    return errors.HostError(f"port {port}: cannot open the tap {name}: {error.strerror}")


def _set_up(name: str, mac: str | None, mtu: int) -> None:
    with IPRoute() as kernel:
        index = kernel.link_lookup(ifname=name)[0]
        if mac is not None:
            kernel.link("set", index=index, address=mac)
        kernel.link("set", index=index, mtu=mtu)
        kernel.link("set", index=index, state="up")


def _delete(name: str) -> None:
    with IPRoute() as kernel:
        for index in kernel.link_lookup(ifname=name):
            kernel.link("del", index=index)


async def configure(port: Port) -> None:
    """Brings an interface that we made in line: MAC, MTU, up."""
    name = interface_name(port)
    if not is_ours(port) or not interface_exists(name):
        return  # or moved to another namespace, whose business it is now
    # Of a host port, the MTU is its interface's; behind another tap it is set by whoever is there.
    mtu = port.mtu if port.kind == "host" else min(port.mtu, _INTERFACE_MTU)
    try:
        # pyroute2 has an event loop of its own: hence the thread.
        await asyncio.to_thread(_set_up, name, port.mac, mtu)
    except Exception as error:  # pyroute2's errors have no common root
        raise errors.HostError(f"port {port.name}: cannot set up the interface {name}: {error}") from error


def _tap(port: Port, ours: set[str]) -> Device:
    if port.device is not None:
        if not interface_exists(port.device):
            raise errors.NotFoundError(
                f"port {port.name}: there is no device {port.device}",
                "make it first (`ip tuntap add`), or leave it out",
            )
        if not is_tap(port.device):
            raise errors.ConflictError(f"port {port.name}: {port.device} is not a tap interface")
        return Device(_open_tap(port.device, port.queues, port.name))
    name = interface_name(port)
    if name not in ours and interface_exists(name):
        raise errors.ConflictError(
            f"port {port.name} needs the interface name {name}, which is taken",
            "give the switch another name",
        )
    device = Device(_open_tap(name, port.queues, port.name), interface=name)
    fcntl.ioctl(device.fds[0], _TUNSETPERSIST, 1)
    return device


# ---- sockets ----


def somebody_listens(path: Path) -> bool:
    """Whether a process listens on this unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full: somebody is there
        except OSError:
            return False
    return True


def listen(path: Path, what: str, mode: int = 0o660) -> socket.socket:
    """A unix socket that listens, with this mode from its first moment, of group vswitch where we may.

    Raises:
        errors.ConflictError: Somebody listens there, or there is something that is not a socket.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise errors.ConflictError(f"{what}: {path} exists and is not a socket", "choose another path")
        if somebody_listens(path):
            raise errors.ConflictError(
                f"{what}: another program listens on {path}", "choose another path, or end it"
            )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    umask = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
        # No group vswitch, or not ours to give: then it is for this user alone.
        with contextlib.suppress(OSError, KeyError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
        listener.listen(16)
    except OSError as error:
        listener.close()
        if error.errno == errno.EACCES:
            raise errors.NotPermittedError(
                f"{what}: this user may not make a socket in {path.parent}"
            ) from error
        raise errors.HostError(f"{what}: cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(umask)
    return listener


# ---- files ----


# pcapng, and pcap with times in µs and in ns, of either byte order.
_CAPTURE_MAGICS = (
    b"\x0a\x0d\x0d\x0a",
    b"\xd4\xc3\xb2\xa1",
    b"\xa1\xb2\xc3\xd4",
    b"\x4d\x3c\xb2\xa1",
    b"\xa1\xb2\x3c\x4d",
)


def _open_file(path: str, flags: int, port: str) -> int:
    """A regular file, and nothing else: opening a FIFO waits for its other end, and a device never ends."""
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
    except FileNotFoundError as error:
        raise errors.NotFoundError(f"port {port}: cannot open {path}: {error.strerror}") from error
    except IsADirectoryError:
        raise errors.ConflictError(f"port {port}: {path} is a directory, not a capture file") from None
    except OSError as error:
        raise errors.HostError(f"port {port}: cannot open {path}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise errors.ConflictError(f"port {port}: {path} is {kind}, not a capture file", "name a file")
    os.set_blocking(fd, True)
    return fd


def _open_new_capture(path: str, port: str) -> int:
    """The file of --write, empty. An older capture is replaced; what else is there stays as it is."""
    fd = _open_file(path, os.O_RDWR | os.O_CREAT, port)
    try:
        if os.fstat(fd).st_size and os.pread(fd, 4, 0) not in _CAPTURE_MAGICS:
            raise errors.ConflictError(
                f"port {port}: {path} exists and is not a capture", "choose another path, or remove it"
            )
        os.ftruncate(fd, 0)
    except OSError as error:
        os.close(fd)
        raise errors.HostError(f"port {port}: cannot write {path}: {error.strerror}") from error
    except errors.VswitchError:
        os.close(fd)
        raise
    return fd


def _files(port: Port) -> Device:
    device = Device([])
    try:
        if port.replay is not None:
            device.fds.append(_open_file(port.replay, os.O_RDONLY, port.name))
        if port.write is not None:
            device.fds.append(_open_new_capture(port.write, port.name))
    except errors.VswitchError:
        for fd in device.fds:
            os.close(fd)
        raise
    return device


# ---- all of them ----


async def open_device(port: Port, socket_path: Path | None, ours: set[str], guards: Path) -> Device:
    """Opens what a port needs.

    Args:
        port: The port.
        socket_path: vhost-user: where to listen; None: the data plane connects.
        ours: Interfaces that we made before and that may be there still.
        guards: The folder of notes about guards at devices.
    """
    if port.kind in netdev.KINDS:
        fd, guard = await asyncio.to_thread(netdev.open_device, port, guards)
        return Device([fd], guard=guard)
    if port.kind in ("tap", "host"):
        return _tap(port, ours)
    if port.kind == "pcap":
        return _files(port)
    if socket_path is None:
        return Device([])
    socket_path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    listener = listen(socket_path, f"port {port.name}")
    listener.setblocking(False)
    return Device([listener.detach()], path=socket_path)


async def close(device: Device) -> None:
    """Closes and removes all that `open_device` made."""
    if device.interface is not None and device.fds:
        # It goes with its last descriptor then, also from another namespace.
        with contextlib.suppress(OSError):
            fcntl.ioctl(device.fds[0], _TUNSETPERSIST, 0)
    for fd in device.fds:
        os.close(fd)
    device.fds.clear()
    if device.path is not None:
        device.path.unlink(missing_ok=True)
    if device.guard is not None:
        await asyncio.to_thread(netdev.release, device.guard.device, device.guard.note)
    if device.interface is not None and interface_exists(device.interface):
        # It may vanish meanwhile; that is what was wanted.
        with contextlib.suppress(Exception):
            await asyncio.to_thread(_delete, device.interface)
