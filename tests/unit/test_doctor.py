"""The doctor says what is there and what would be gained, and never fails itself."""

from pathlib import Path

import pytest

from tests.unit.test_wanted import lab
from vswitch import doctor, errors, wanted
from vswitch.devices import interface_name
from vswitch.model import Port
from vswitch.vms import spec_of


def test_every_check_answers_and_a_missing_thing_says_what_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [check.name for check in doctor.examine()]
    assert {"rights", "KVM", "hugepages", "BPF", "cores", "QEMU", "data plane"} <= set(names)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(doctor, "_read", lambda _path: "")
    for check in doctor.examine():
        assert check.seen
        assert check.ok or check.gain, check.name


def test_interface_names_fit_the_kernel_and_differ() -> None:
    names = [
        interface_name(Port(name=f"{'x' * length}{end}/{port}", kind="host" if port == "host" else "tap"))
        for length in (1, 14, 31)
        for end in "ab"
        for port in ("host", "tap0", "averylongname15")
    ]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 15 for name in names)
    assert interface_name(Port(name="lab/host", kind="host")) == "lab"


def test_a_vm_is_launched_with_its_ports_as_nics() -> None:
    state = lab()
    spec = spec_of(state.vms["web"], wanted.ports_of(state, "web"), Path("/run/vswitch"))
    assert [(nic.name, str(nic.socket_path)) for nic in spec.nics] == [
        ("eth0", "/run/vswitch/vms/web/eth0.sock"),
        ("eth1", "/run/vswitch/vms/web/eth1.sock"),
    ]
    assert spec.nics[0].mac == "52:54:00:00:00:02"
    with pytest.raises(errors.InvalidInputError, match="VM web"):
        spec_of(state.vms["web"], wanted.ports_of(state, "web"), Path("/" + "x" * 100))
