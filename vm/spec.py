"""What a virtual machine is: values, checked once when they are made."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

SOCKET_PATH_MAX = 107
"""Bytes in a unix socket's path (sun_path, without its final zero)."""

MEMORY_MIN_BYTES = 64 << 20
"""Less does not boot Debian's kernel."""


def _mac(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise ValueError(f"'{text}' is no MAC address: write six bytes like 52:54:00:12:34:56")
    if int(text[:2], 16) & 1:
        raise ValueError(f"{text} is a multicast address; a NIC's own address has an even first byte")
    if text.replace(":", "") == "0" * 12:
        raise ValueError(f"{text} is the zero address, which no NIC may have")
    return text.lower()


def _socket_path(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"the socket path {path} is not absolute")
    if len(bytes(path)) > SOCKET_PATH_MAX:
        raise ValueError(f"the socket path {path} is longer than {SOCKET_PATH_MAX} bytes, the kernel's limit")
    return path


MacAddress = Annotated[str, AfterValidator(_mac)]
SocketPath = Annotated[Path, AfterValidator(_socket_path)]
VmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
NicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,14}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NicSpec(_Model):
    """A virtio-net NIC whose other end is a vhost-user socket.

    Attributes:
        name: unique in its VM; usually the guest's own name for it (eth0, eth1, … in order).
        mac: unicast, in lower case.
        socket_path: where QEMU listens and the switch connects.
        queues: receive/transmit pairs; at most the VM's processors are of use.
        mtu: bytes of layer 3 that the guest is told; None leaves 1500.
        packed: offer the packed ring layout.
    """

    name: NicName
    mac: MacAddress
    socket_path: SocketPath
    queues: int = Field(default=1, ge=1, le=16)
    mtu: int | None = Field(default=None, ge=576, le=9000)
    packed: bool = False


class DiskSpec(_Model):
    """A disk image, seen by the guest as a virtio block device.

    Attributes:
        path: the image file or block device.
        format: how the file is to be read; never guessed, since a guest could write another format's header.
        read_only: the guest can't write to it.
    """

    path: Path
    format: Literal["raw", "qcow2"] = "qcow2"
    read_only: bool = False


class VmSpec(_Model):
    """A virtual machine.

    Attributes:
        name: unique on the host.
        memory_bytes: whole MiB.
        cpus: virtual processors.
        kernel: a Linux kernel to boot directly; None boots from the first disk.
        initrd: the kernel's initramfs.
        command_line: the kernel's arguments.
        disks: in the guest's order.
        nics: in the guest's order.
    """

    name: VmName
    memory_bytes: int = Field(default=256 << 20, ge=MEMORY_MIN_BYTES, le=1 << 44, multiple_of=1 << 20)
    cpus: int = Field(default=1, ge=1, le=64)
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = Field(default="", max_length=2047)
    disks: tuple[DiskSpec, ...] = Field(default=(), max_length=16)
    nics: tuple[NicSpec, ...] = Field(default=(), max_length=16)

    @model_validator(mode="after")
    def _boots(self) -> Self:
        if self.kernel is None and not self.disks:
            raise ValueError(f"VM {self.name} has nothing to boot: give it a kernel or a disk")
        if self.kernel is None and (self.initrd is not None or self.command_line):
            raise ValueError(
                f"VM {self.name} has an initrd or a command line, but no kernel that would read it"
            )
        if "\n" in self.command_line or "\0" in self.command_line:
            raise ValueError(f"the command line of VM {self.name} is more than one line")
        return self

    @model_validator(mode="after")
    def _unique(self) -> Self:
        columns = {
            "name": [nic.name for nic in self.nics],
            "MAC": [nic.mac for nic in self.nics],
            "socket": [str(nic.socket_path) for nic in self.nics],
        }
        for what, values in columns.items():
            double = {value for value in values if values.count(value) > 1}
            if double:
                raise ValueError(f"VM {self.name} has two NICs with the {what} {sorted(double)[0]}")
        return self
