"""Which devices can be ports, what an external switch is made of, and what its ports are given."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_wanted import lab
from vswitch import errors, netdev, orders, wanted
from vswitch.model import Port, PortChange, Switch, VlanAny
from vswitch.netdev import Facts
from vswitch.reconcile import target
from vswitch.wanted import State

GOOD = Facts(7, "veth", True, False, "", (), False, False)


def lan() -> State:
    return wanted.add_switch(lab(), Switch(name="lan", type="external", uplink="eth1", fdb_size=4096))


def test_a_free_device_is_taken_and_so_is_one_that_we_guard() -> None:
    netdev.refuse("lan/uplink", "eth1", GOOD, noted=False)
    netdev.refuse("lan/uplink", "eth1", replace(GOOD, guarded=True), noted=True)


@pytest.mark.parametrize(
    ("facts", "kind", "said", "way_out"),
    [
        (None, errors.NotFoundError, "there is no device eth1", "ip link"),
        (replace(GOOD, loopback=True), errors.ConflictError, "the host's loopback", "another device"),
        (replace(GOOD, ethernet=False), errors.ConflictError, "no Ethernet device", "another device"),
        (replace(GOOD, master="br0"), errors.ConflictError, "a member of br0", "nomaster"),
        (replace(GOOD, kind="bridge"), errors.ConflictError, "is a bridge", "veth"),
        (
            replace(GOOD, addresses=("10.0.0.5/24", "fd00::5/64")),
            errors.ConflictError,
            "carries the address 10.0.0.5/24",
            "ip addr del 10.0.0.5/24 dev eth1",
        ),
        (
            replace(GOOD, default_route=True),
            errors.ConflictError,
            "carries a default route",
            "ip route del default dev eth1",
        ),
        (
            replace(GOOD, guarded=True),
            errors.ConflictError,
            "a port of another vswitchd",
            "tc qdisc del dev eth1 clsact",
        ),
    ],
)
def test_a_device_that_cannot_be_a_port_is_refused_saying_why(
    facts: Facts | None, kind: type[errors.VswitchError], said: str, way_out: str
) -> None:
    with pytest.raises(kind) as caught:
        netdev.refuse("lan/uplink", "eth1", facts, noted=False)
    assert caught.value.sentence.startswith("port lan/uplink: ")
    assert said in caught.value.sentence
    assert way_out in caught.value.way_out


def test_an_external_switch_has_the_host_and_an_uplink_that_lets_everything_pass() -> None:
    state = lan()
    uplink, host = state.ports["lan/uplink"].port, state.ports["lan/host"].port
    assert host.kind == "host"
    assert (uplink.kind, uplink.device, uplink.vlan) == ("uplink", "eth1", VlanAny())
    assert (uplink.allow_spoofing, uplink.trust_pcp, uplink.storm_limit) == (True, True, 0)
    assert not [name for name in wanted.delete_switch(state, "lan").ports if name.startswith("lan/")]


def test_an_uplink_may_fill_the_table_of_addresses_and_netdev_ports_have_a_share() -> None:
    state = wanted.add_port(lan(), Port(name="lan/c", kind="netdev", device="veth1"))
    adds = {port.row.port.name: port.add for port in target(state, Path("/run")).ports.values() if port.row}
    assert adds["lan/uplink"].port_kind == adds["lan/c"].port_kind == orders.KIND_PACKET
    assert (adds["lan/uplink"].fdb_limit, adds["lan/c"].fdb_limit) == (4096, 1024)


def test_addresses_behind_a_netdev_port_are_learned_unless_its_mac_is_said() -> None:
    state = wanted.add_port(lab(), Port(name="lab/a", kind="netdev", device="veth1"))
    state = wanted.add_port(state, Port(name="lab/b", kind="netdev", device="veth2", mac="52:54:00:00:00:99"))
    state = wanted.add_port(state, Port(name="lab/c", kind="netdev", device="veth3", allow_spoofing=False))
    assert [state.ports[f"lab/{name}"].port.allow_spoofing for name in "abc"] == [True, False, False]


def test_a_device_is_one_ports_and_an_uplink_stays_with_its_switch() -> None:
    state = lan()
    again = Switch(name="lan2", type="external", uplink="eth1")
    with pytest.raises(errors.AlreadyExistsError, match="port lan/uplink uses the device eth1"):
        wanted.add_switch(state, again)
    with pytest.raises(errors.AlreadyExistsError, match="port lab/host uses the device lab"):
        wanted.add_port(state, Port(name="lan/x", kind="netdev", device="lab"))
    with pytest.raises(errors.ConflictError, match="has its uplink, eth1, already"):
        wanted.add_port(state, Port(name="lan/x", kind="uplink", device="eth2"))
    with pytest.raises(errors.ConflictError, match="is private and has no uplink"):
        wanted.add_port(state, Port(name="dark/x", kind="uplink", device="eth2"))
    with pytest.raises(errors.ConflictError, match="is the uplink of its switch"):
        wanted.delete_port(state, "lan/uplink")
    with pytest.raises(errors.ConflictError, match="is part of its switch"):
        wanted.set_port(state, "lan/uplink", PortChange(switch=None))


def test_guards_without_a_port_are_found_by_their_notes(tmp_path: Path) -> None:
    assert netdev.left_over(tmp_path / "none", set()) == []
    for name in ("eth1", "eth2"):
        (tmp_path / name).touch()
    assert netdev.left_over(tmp_path, {"eth2"}) == ["eth1"]
