"""QEMU's command line, by literal expectation."""

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from vm.qemu import PortPlug, QemuVersion, VmPaths, parse_version, qemu_args_for_port, qemu_argv
from vm.spec import DiskSpec, NicSpec, VmSpec

V72 = QemuVersion(7, 2, 22)
PATHS = VmPaths(Path("/run/v/web"))
MAC = "52:54:00:00:00:01"


def nic(**changes: Any) -> NicSpec:
    return NicSpec(**{"name": "eth0", "mac": MAC, "socket_path": "/run/v/a.sock"} | changes)


def argv(accelerator: Literal["kvm", "tcg"] = "kvm", **changes: Any) -> list[str]:
    spec = VmSpec(**{"name": "web", "kernel": "/k", "initrd": "/i", "command_line": "quiet"} | changes)
    return qemu_argv(spec, PATHS, accelerator, V72)


def values(line: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(line) if name == option]


def test_guest_memory_can_be_shared_and_stays_out_of_core_dumps() -> None:
    line = argv(memory_bytes=512 << 20)
    assert values(line, "-object") == ["memory-backend-memfd,id=mem0,size=536870912,share=on"]
    assert values(line, "-m") == ["512M"]
    assert "memory-backend=mem0,dump-guest-core=off" in values(line, "-machine")[0]


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [("kvm", ["-accel", "kvm", "-cpu", "host"]), ("tcg", ["-accel", "tcg,thread=multi", "-cpu", "qemu64"])],
)
def test_accelerator_decides_the_processor(accelerator: Literal["kvm", "tcg"], expected: list[str]) -> None:
    line = argv(accelerator)
    begin = line.index("-accel")
    assert line[begin : begin + 4] == expected


def test_nic_listens_for_the_switch_and_sits_in_a_slot_of_its_own() -> None:
    line = argv(nics=[nic()])
    assert "socket,id=eth0-socket,path=/run/v/a.sock,server=on,wait=off" in values(line, "-chardev")
    assert values(line, "-netdev") == ["vhost-user,id=eth0,chardev=eth0-socket,queues=1"]
    assert values(line, "-device") == [
        "pcie-root-port,id=slot0,chassis=1,slot=1",
        f"virtio-net-pci,id=eth0-device,netdev=eth0,mac={MAC},bus=slot0,romfile=,vectors=4",
        "pcie-root-port,id=slot1,chassis=2,slot=2",
        "pcie-root-port,id=slot2,chassis=3,slot=3",
    ]


def test_nic_options_reach_the_device() -> None:
    device = values(argv(nics=[nic(queues=4, mtu=9000, packed=True)]), "-device")[1]
    assert device.endswith("vectors=10,mq=on,host_mtu=9000,packed=on")


def test_emulated_guest_gets_no_msix_because_qemu_would_crash() -> None:
    assert ",vectors=0" in values(argv("tcg", nics=[nic()]), "-device")[1]


def test_disk_is_never_guessed_and_commas_in_paths_are_doubled() -> None:
    line = argv(kernel=None, initrd=None, command_line="", disks=[DiskSpec(path="/a,b.img", format="raw")])
    assert values(line, "-blockdev") == [
        "driver=file,node-name=file0,filename=/a,,b.img,read-only=off,discard=unmap",
        "driver=raw,node-name=disk0,file=file0,read-only=off,discard=unmap",
    ]
    assert "virtio-blk-pci,drive=disk0,bootindex=1" in values(line, "-device")
    assert "-kernel" not in line


def test_control_and_console_are_sockets_in_the_run_folder() -> None:
    assert values(argv(), "-chardev") == [
        "socket,id=qmp,path=/run/v/web/qmp.sock,server=on,wait=off",
        "socket,id=console,path=/run/v/web/console.sock,server=on,wait=off,"
        "logfile=/run/v/web/console.log,logappend=off",
    ]


@pytest.mark.parametrize(
    ("version", "listen", "expected"),
    [
        ((7, 2, 0), True, "socket,id=vswitch0,path=/s,reconnect=1"),
        ((9, 1, 9), True, "socket,id=vswitch0,path=/s,reconnect=1"),
        ((9, 2, 0), True, "socket,id=vswitch0,path=/s,reconnect-ms=1000"),
        ((9, 2, 0), False, "socket,id=vswitch0,path=/s,server=on,wait=off"),
    ],
)
def test_arguments_for_a_foreign_qemu_fit_its_version_and_who_listens(
    version: tuple[int, int, int], listen: bool, expected: str
) -> None:
    line = qemu_args_for_port(QemuVersion(*version), PortPlug(Path("/s"), listen, MAC))
    assert values(line, "-chardev") == [expected]
    assert values(line, "-device") == [f"virtio-net-pci,netdev=net0,mac={MAC}"]
    assert "share=on" in values(line, "-object")[0]


def test_arguments_for_a_foreign_qemu_name_queues_and_the_lack_of_kvm() -> None:
    plug = PortPlug(Path("/s"), listen=True, mac=MAC, queues=2)
    assert values(qemu_args_for_port(V72, plug), "-device")[0].endswith(",mq=on,vectors=6")
    assert values(qemu_args_for_port(V72, plug, "tcg"), "-device")[0].endswith(",mq=on,vectors=0")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", (7, 2, 22)),
        ("QEMU emulator version 10.0", (10, 0, 0)),
        ("something else", None),
    ],
)
def test_version_is_read(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version
