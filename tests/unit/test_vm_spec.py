"""A VM's description: what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vm.spec import DiskSpec, NicSpec, VmSpec

KERNEL = Path("/boot/vmlinuz")


def nic(**changes: Any) -> NicSpec:
    return NicSpec(**{"name": "eth0", "mac": "52:54:00:00:00:01", "socket_path": "/run/v/a.sock"} | changes)


def spec(**changes: Any) -> VmSpec:
    return VmSpec(**{"name": "web", "kernel": KERNEL} | changes)


def test_mac_is_kept_in_lower_case() -> None:
    assert nic(mac="52:54:00:AB:CD:EF").mac == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mac": "52:54:00:00:00"}, "is no MAC address"),
        ({"mac": "53:54:00:00:00:01"}, "is a multicast address"),
        ({"mac": "00:00:00:00:00:00"}, "is the zero address"),
        ({"socket_path": "relative.sock"}, "is not absolute"),
        ({"socket_path": "/" + "x" * 107}, "is longer than 107 bytes"),
        ({"queues": 0}, "greater than or equal to 1"),
        ({"mtu": 9001}, "less than or equal to 9000"),
        ({"name": "0eth"}, "should match pattern"),
        ({"speed": 1}, "Extra inputs are not permitted"),
    ],
)
def test_bad_nic_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        nic(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "we b"}, "should match pattern"),
        ({"memory_bytes": 1 << 20}, "greater than or equal to 67108864"),
        ({"memory_bytes": (128 << 20) + 1}, "multiple of 1048576"),
        ({"cpus": 0}, "greater than or equal to 1"),
        ({"kernel": None}, "VM web has nothing to boot"),
        ({"kernel": None, "disks": [DiskSpec(path="/d")], "initrd": "/i"}, "no kernel that would read it"),
        ({"command_line": "a\nb"}, "is more than one line"),
        ({"nics": [nic(), nic(mac="52:54:00:00:00:02", socket_path="/b")]}, "two NICs with the name eth0"),
        ({"nics": [nic(), nic(name="eth1", socket_path="/b")]}, "two NICs with the MAC 52:54:00:00:00:01"),
        (
            {"nics": [nic(), nic(name="eth1", mac="52:54:00:00:00:02")]},
            "two NICs with the socket /run/v/a.sock",
        ),
    ],
)
def test_bad_vm_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(**changes)


def test_spec_survives_being_written_and_read() -> None:
    whole = spec(nics=[nic()], disks=[DiskSpec(path="/d.qcow2")], command_line="quiet")
    assert VmSpec.model_validate_json(whole.model_dump_json()) == whole
