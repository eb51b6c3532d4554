"""Kernel devices as ports: packet sockets for the data plane, and the guard that keeps the host's stack off.

The device's frames are the switch's alone. A guard at the device drops what comes in, behind the place where
packet sockets see it, and what goes out without the mark of our socket: so the host neither answers nor
speaks there, except through a host port. It is a BPF program of a few instructions at clsact, or, where the
kernel has or allows none, an nftables table; it outlives a killed vswitchd, so the host never gets a glimpse,
and is noted in the run directory, so that the next daemon finds what is to be removed.

Blocking calls of a few milliseconds; pyroute2 has an event loop of its own, so they run in a thread.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyroute2 import IPRoute

from vswitch import errors
from vswitch.model import Port

Way = Literal["BPF at clsact", "nftables"]
KINDS = ("netdev", "uplink")
MARK = 0x76737769  # of our sockets' frames: what the guard lets out
GUARD = "vswitch"

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _IGNORE_OUTGOING, _PROMISCUOUS = 1, 23, 1
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_RECEIVE_BYTES, _SEND_BYTES = 16 << 20, 4 << 20  # of 64 KiB frames, and frames that wait for the wire
_ALL_PROTOCOLS = 3
_ETHERNET = 1  # ARPHRD_ETHER
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_SCOPE_LINK = 253
_SYS_BPF, _BPF_PROG_LOAD, _SCHED_CLS = 321, 5, 3
_DIRECT_ACTION = 1
_SIOCETHTOOL, _ETHTOOL_GFLAGS, _ETHTOOL_SFLAGS, _ETH_FLAG_LRO = 0x8946, 0x25, 0x26, 1 << 15

# struct bpf_insn: code, registers (destination | source << 4), offset, immediate.
Instruction = tuple[int, int, int, int]
_EXIT: Instruction = (0x95, 0, 0, 0)
_DROP: tuple[Instruction, ...] = ((0xB7, 0, 0, 2), _EXIT)  # return TC_ACT_SHOT
_DROP_UNMARKED: tuple[Instruction, ...] = (
    (0x61, 0x10, 8, 0),  # r0 = skb->mark
    (0x56, 0, 2, MARK),  # if it is not ours, two on
    (0xB7, 0, 0, -1),  # return TC_ACT_UNSPEC
    _EXIT,
    *_DROP,
)


@dataclass(frozen=True)
class Facts:
    """What speaks for or against a device.

    Attributes:
        kind: As the kernel says it: veth, bridge, …; empty for hardware.
        ethernet: It carries Ethernet frames.
        loopback: It is the host's loopback.
        master: The bridge, bond or VRF that it belongs to; empty: none.
        addresses: Those that reach beyond the link, such as 10.0.0.5/24.
        default_route: A default route leads through it.
        guarded: There is a guard, ours or another vswitchd's.
    """

    index: int
    kind: str
    ethernet: bool
    loopback: bool
    master: str
    addresses: tuple[str, ...]
    default_route: bool
    guarded: bool


@dataclass
class Guard:
    """The guard at a device, and the note that it is there."""

    device: str
    way: Way
    note: Path


# ---- what a device is like ----


def has_carrier(name: str) -> bool:
    """Whether a device is up and has a cable with somebody at its other end."""
    try:
        return Path("/sys/class/net", name, "carrier").read_text() == "1\n"
    except OSError:  # there is none, or it is down
        return False


def look(kernel: IPRoute, name: str) -> Facts | None:
    """The facts about a device; None: there is none of this name here."""
    found = kernel.link_lookup(ifname=name)
    if not found:
        return None
    index = found[0]
    link = kernel.get_links(index)[0]
    info = link.get_attr("IFLA_LINKINFO")
    master = link.get_attr("IFLA_MASTER")
    addresses = [
        f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
        for address in kernel.get_addr(index=index)
        if address["scope"] != _SCOPE_LINK
    ]
    routes = [
        route
        for family in (socket.AF_INET, socket.AF_INET6)
        for route in kernel.get_routes(family=family, dst_len=0)
        if route["dst_len"] == 0
    ]
    ways_out = [route.get_attr("RTA_OIF") for route in routes]
    ways_out += [hop["oif"] for route in routes for hop in route.get_attr("RTA_MULTIPATH") or []]
    return Facts(
        index=index,
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        ethernet=link["ifi_type"] == _ETHERNET,
        loopback=bool(link["flags"] & 8),
        master=kernel.get_links(master)[0].get_attr("IFLA_IFNAME") if master else "",
        addresses=tuple(addresses),
        default_route=index in ways_out,
        guarded=_is_guarded(kernel, index, name),
    )


def refuse(port: str, device: str, facts: Facts | None, noted: bool) -> None:
    """Raises an error that says why a device cannot be a port. `noted`: a guard at it would be ours.

    Raises:
        errors.NotFoundError: There is no such device.
        errors.ConflictError: It is in use, or not of a kind that can.
    """
    if facts is None:
        raise errors.NotFoundError(f"port {port}: there is no device {device}", "`ip link` lists them")
    wrong, way_out = "", "take another device"
    if facts.loopback:
        wrong = f"{device} is the host's loopback"
    elif not facts.ethernet:
        wrong = f"{device} is no Ethernet device"
    elif facts.master:
        wrong = f"{device} is a member of {facts.master}, which has its frames"
        way_out = f"`ip link set {device} nomaster` first, or take another device"
    elif facts.kind == "bridge":
        wrong = f"{device} is a bridge"
        way_out = "take the device behind it, or a veth with one end in it"
    elif facts.addresses:
        wrong = f"{device} carries the address {facts.addresses[0]}, which would be cut off"
        way_out = (
            f"take another device, or move it first: `ip addr del {facts.addresses[0]} dev {device}`, and "
            "give it to the host's port of the switch"
        )
    elif facts.default_route:
        wrong = f"{device} carries a default route, which would be cut off"
        way_out = f"take another device, or move it first: `ip route del default dev {device}`"
    elif facts.guarded and not noted:
        wrong = f"{device} is a port of another vswitchd"
        way_out = f"take another device; if that vswitchd is gone: `tc qdisc del dev {device} clsact`"
    if wrong:
        raise errors.ConflictError(f"port {port}: {wrong}", way_out)


# ---- the guard ----


def load_program(code: Sequence[Instruction]) -> int:
    """Loads a BPF program for clsact; its descriptor. OSError where the kernel has or allows none."""
    bytecode = b"".join(struct.pack("<BBhi", *instruction) for instruction in code)
    instructions = ctypes.create_string_buffer(bytecode, len(bytecode))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    # union bpf_attr of BPF_PROG_LOAD: without a log; zeros behind.
    attributes = struct.pack(
        "=IIQQIIQII16s",
        *(_SCHED_CLS, len(code), ctypes.addressof(instructions), ctypes.addressof(licence)),
        *(0, 0, 0, 0, 0, b"vswitch_guard"),
    )
    memory = ctypes.create_string_buffer(attributes, 128)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(_SYS_BPF, _BPF_PROG_LOAD, memory, len(memory)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _filters(kernel: IPRoute, index: int) -> Iterator[tuple[int, str]]:
    """The clsact filters of a device: where, and the BPF program's name given by whoever attached it."""
    for parent in (_INGRESS, _EGRESS):
        for each in kernel.get_filters(index=index, parent=parent):
            options = each.get_attr("TCA_OPTIONS")
            if options is not None:
                yield parent, options.get_attr("TCA_BPF_NAME") or "" if hasattr(options, "get_attr") else ""


def _is_guarded(kernel: IPRoute, index: int, name: str) -> bool:
    if any(each == GUARD for _, each in _filters(kernel, index)):
        return True
    nft = shutil.which("nft")
    command = [nft or "", "list", "table", "netdev", _table(name)]
    return nft is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


def guard_by_bpf(kernel: IPRoute, index: int, _name: str) -> None:
    """Attaches the guard at clsact. OSError or pyroute2's error where that cannot be had."""
    if not any(each.get_attr("TCA_KIND") == "clsact" for each in kernel.get_qdiscs(index=index)):
        kernel.tc("add", "clsact", index)
    for parent, code in ((_INGRESS, _DROP), (_EGRESS, _DROP_UNMARKED)):
        program = load_program(code)
        try:
            kernel.tc(
                "replace-filter",
                "bpf",
                index,
                fd=program,
                name=GUARD,
                parent=parent,
                flags=_DIRECT_ACTION,
                prio=1,
                handle=1,
                protocol=_ALL_PROTOCOLS,
                classid=1,
            )
        finally:
            os.close(program)


def _table(name: str) -> str:
    # Interfaces have characters in their names that tables may not have.
    return f"{GUARD}_{name.encode().hex()}"


def _nft(script: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EOPNOTSUPP, (done.stderr.strip().splitlines() or ["nft failed"])[0])


def guard_by_nftables(_kernel: IPRoute, _index: int, name: str) -> None:
    """Makes the guard's table. OSError where that cannot be had."""
    hook = f'device "{name}" priority -500'
    _nft(
        f"add table netdev {_table(name)}\n"
        f"delete table netdev {_table(name)}\n"
        f"table netdev {_table(name)} {{\n"
        f"  chain in {{ type filter hook ingress {hook}; policy drop; }}\n"
        f"  chain out {{ type filter hook egress {hook}; policy accept; meta mark != {MARK} drop; }}\n"
        "}\n"
    )


_WAYS: tuple[tuple[Way, Callable[[IPRoute, int, str], None]], ...] = (
    ("BPF at clsact", guard_by_bpf),
    ("nftables", guard_by_nftables),
)


def _is_forbidden(error: Exception) -> bool:
    number = getattr(error, "code", None) or getattr(error, "errno", None)  # pyroute2's, or the system's
    return number in (errno.EPERM, errno.EACCES)


def _set_guard(kernel: IPRoute, index: int, name: str, port: str) -> Way:
    reasons = []
    for way, attach in _WAYS:
        try:
            attach(kernel, index, name)
        except Exception as error:  # pyroute2's errors have no common root
            with contextlib.suppress(Exception):
                _take_guard(kernel, index, name)
            if _is_forbidden(error):
                raise
            reasons.append(f"{way}: {error}")
        else:
            return way
    raise errors.HostError(
        f"port {port}: the host's own stack cannot be kept off {name} ({'; '.join(reasons)})",
        "a kernel with cls_bpf and clsact, or nftables with netdev hooks, can",
    )


def _take_guard(kernel: IPRoute, index: int, name: str) -> None:
    """Removes what there is of a guard; clsact too, when nobody else uses it."""
    filters = list(_filters(kernel, index))
    for parent, label in filters:
        if label == GUARD:
            kernel.tc("del-filter", "bpf", index, parent=parent, prio=1, handle=1, protocol=_ALL_PROTOCOLS)
    if filters and all(label == GUARD for _, label in filters):
        kernel.tc("del", "clsact", index)
    if shutil.which("nft") and _is_guarded(kernel, index, name):
        with contextlib.suppress(OSError):
            _nft(f"delete table netdev {_table(name)}\n")


def ways() -> list[Way]:
    """The ways in which this host's kernel would let itself be guarded, the best first. Changes nothing."""
    found: list[Way] = []
    with contextlib.suppress(OSError):
        os.close(load_program(_DROP))
        found.append("BPF at clsact")
    if shutil.which("nft") is not None:
        found.append("nftables")
    return found


# ---- the port ----


def _open_socket(name: str, index: int) -> int:
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        packet.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        packet.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        packet.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        packet.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BYTES)
        packet.bind((name, _ALL_PROTOCOLS))
        # It ends with the socket, so nobody has to take it back.
        membership = struct.pack("=iHH8x", index, _PROMISCUOUS, 0)
        packet.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)
    except OSError:
        packet.close()
        raise
    return packet.detach()


def _no_receive_offload(name: str) -> None:
    """Takes LRO off hardware that has it: it joins segments without saying how they were, for hosts only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_GFLAGS, 0), 8)
        request = struct.pack("16sQ16x", name.encode(), ctypes.addressof(value))
        with contextlib.suppress(OSError):  # a device without such options
            fcntl.ioctl(control, _SIOCETHTOOL, request)
            flags = struct.unpack_from("=I", value, 4)[0]
            if flags & _ETH_FLAG_LRO:
                struct.pack_into("=II", value, 0, _ETHTOOL_SFLAGS, flags & ~_ETH_FLAG_LRO)
                fcntl.ioctl(control, _SIOCETHTOOL, request)


def open_device(port: Port, notes: Path) -> tuple[int, Guard]:
    """Guards a port's device, brings it up, and opens its packet socket.

    Args:
        port: A port of kind netdev or uplink.
        notes: The folder of notes about guards.

    Raises:
        errors.NotFoundError: There is no such device.
        errors.HostError: The kernel cannot.
        errors.ConflictError: It is in use.
        errors.NotPermittedError: This user may not.
    """
    name = port.device or ""
    note = notes / name
    with IPRoute() as kernel:
        facts = look(kernel, name)
        refuse(port.name, name, facts, note.exists())
        assert facts is not None
        notes.mkdir(mode=0o750, parents=True, exist_ok=True)
        note.touch()
        try:
            way = _set_guard(kernel, facts.index, name, port.name)
            _no_receive_offload(name)
            kernel.link("set", index=facts.index, state="up")
            return _open_socket(name, facts.index), Guard(name, way, note)
        except Exception as error:
            with contextlib.suppress(Exception):
                _take_guard(kernel, facts.index, name)
            note.unlink(missing_ok=True)
            if isinstance(error, errors.VswitchError):
                raise
            if _is_forbidden(error):
                raise errors.NotPermittedError(
                    f"port {port.name}: this user may not open {name}", "run vswitchd as root"
                ) from error
            raise errors.HostError(f"port {port.name}: cannot open {name}: {error}") from error


def release(name: str, note: Path) -> None:
    """Gives a device back to the host. What is not there any more is no error."""
    with IPRoute() as kernel:
        index = kernel.link_lookup(ifname=name)
        if index:
            _take_guard(kernel, index[0], name)
    note.unlink(missing_ok=True)


def left_over(notes: Path, used: set[str]) -> list[str]:
    """Devices that an earlier daemon guarded and nobody uses any more."""
    if not notes.is_dir():
        return []
    return sorted(note.name for note in notes.iterdir() if note.name not in used)
