"""What users write is checked at the edge, and every refusal names what is wrong."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vswitch import errors
from vswitch.model import AclRule, Nic, Port, PortChange, Switch, VmCreate, vlan_text
from vswitch.words import parse_vlan_ranges


def sentence(model: type[BaseModel], **fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        model(**fields)
    return errors.invalid(caught.value).sentence


@given(st.sets(st.integers(1, 4094), min_size=1))
def test_vlan_ranges_round_trip(vids: set[int]) -> None:
    text = ",".join(map(str, sorted(vids, reverse=True)))
    ranges = parse_vlan_ranges(text)
    assert {vid for first, last in ranges for vid in range(first, last + 1)} == vids
    assert list(ranges) == sorted(ranges)


def test_overlapping_ranges_are_refused_naming_both() -> None:
    found = sentence(Port, name="lab/a", kind="tap", vlan={"mode": "trunk", "allowed": "5,1-10"})
    assert found == "vlan allowed: the ranges 1-10 and 5 overlap"


@pytest.mark.parametrize("vid", [0, 4095, -1, 70000])
def test_vlans_that_do_not_exist_are_refused(vid: int) -> None:
    found = sentence(PortChange, vlan={"mode": "access", "vid": vid})
    assert f"VLAN {vid} does not exist: 1 to 4094 are allowed" in found


@pytest.mark.parametrize("text", ["", "1-", "-3", "a", "9-1", "1,,2", "0-3", "1-4095"])
def test_texts_that_are_no_vlan_ranges_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_vlan_ranges(text)


def test_a_rule_without_weight_is_refused() -> None:
    assert sentence(AclRule, direction="in", action="deny") == "weight is missing"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weight": 0}, "a weight of 0 is not possible: 1 to 65535 is"),
        ({"local_port": 80}, "a port only makes sense with the protocol tcp, udp or sctp"),
        ({"protocol": "tcp", "local_port": "90-80"}, "the range 90-80 ends before it begins"),
        ({"protocol": "tcp", "local_port": 70000}, "port 70000 does not exist"),
        ({"protocol": "nonsense"}, "'nonsense' is not a protocol"),
        ({"protocol": 300}, "'300' is not a protocol"),
        ({"local_ip": "10.0.0.1/24"}, "10.0.0.0/24 is the prefix around it"),
        ({"local_ip": "10.0.0"}, "neither an address nor a prefix"),
        ({"local_ip": "10.0.0.1", "remote_ip": "::1"}, "different IP versions"),
        ({"protocol": "icmp", "local_ip": "::1"}, "icmp never carries"),
        ({"icmp_type": 8}, "only makes sense with the protocol icmp"),
        ({"protocol": "icmp", "icmp_code": 0}, "an ICMP code needs its ICMP type"),
        ({"ethertype": "arp", "protocol": "tcp"}, "EtherType 0x0806 does not carry"),
        ({"ethertype": 0x100}, "0x0100 is not an EtherType"),
        ({"local_mac": "01:00:5e:00:00:01"}, "is a group address"),
        ({"vlan": 4095}, "VLAN 4095 does not exist"),
        ({"colour": "red"}, "colour: is not a setting here"),
        ({"stateful": True}, "only a rule that allows can be stateful"),
        ({"action": "allow", "idle_timeout_s": 9}, "only makes sense with a stateful rule"),
        ({"action": "allow", "stateful": True, "idle_timeout_s": 0}, "an idle timeout (seconds) of 0"),
        ({"action": "allow", "stateful": True, "ethertype": "arp"}, "only IP can be stateful"),
        (
            {"action": "allow", "stateful": True, "protocol": "icmp", "icmp_type": 3},
            "icmp type 3 begins no connection",
        ),
    ],
)
def test_rules_that_cannot_be_are_refused_with_the_reason(fields: dict[str, Any], said: str) -> None:
    assert said in sentence(AclRule, **{"direction": "in", "action": "deny", "weight": 5, **fields})


def test_protocols_are_the_same_by_name_and_number() -> None:
    by_name = AclRule(direction="in", action="deny", weight=1, protocol="TCP")
    by_number = AclRule.model_validate({"direction": "in", "action": "deny", "weight": 1, "protocol": 6})
    assert by_name == by_number
    assert by_number.protocol_number == 6
    assert AclRule(direction="in", action="deny", weight=1, protocol="0").protocol_number == 0


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a b", "x" * 33, "ä", "a\n"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    assert "cannot be the name" in sentence(Switch, name=name, type="private")


def test_external_switches_have_an_uplink_and_others_none() -> None:
    assert "needs an uplink" in sentence(Switch, name="lan", type="external")
    assert "only an external switch has an uplink" in sentence(
        Switch, name="lan", type="internal", uplink="eth1"
    )
    assert "cannot be the name of a device" in sentence(Switch, name="l", type="external", uplink="../eth1")
    assert "1 to 15 bytes" in sentence(Switch, name="l", type="external", uplink="x" * 16)
    assert Switch(name="lan", type="external", uplink="eth1").uplink == "eth1"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "tap", "socket": "/x"}, "only vhost-user ports have a socket"),
        ({"kind": "vhost-user", "device": "tap0"}, "only tap and netdev ports have a device"),
        ({"kind": "netdev"}, "needs a device"),
        ({"kind": "netdev", "device": "eth1", "queues": 2}, "has one queue"),
        ({"kind": "netdev", "device": "e 1"}, "no spaces"),
        ({"kind": "pcap"}, "a pcap port needs a file"),
        ({"kind": "vhost-user", "socket": "x.sock"}, "is not absolute"),
        ({"kind": "vhost-user", "socket": "/" + "x" * 107}, "longer than the 107 bytes"),
        ({"kind": "tap", "mtu": 9001}, "an MTU of 9001 is not possible: 68 to 9000"),
        ({"kind": "tap", "mac": "nonsense"}, "is not a MAC address"),
        ({"kind": "tap", "queues": 17}, "a number of queues of 17"),
        ({"kind": "tap", "connection_limit": 0}, "a connection limit of 0"),
    ],
)
def test_ports_that_cannot_be_are_refused_with_the_reason(fields: dict[str, Any], said: str) -> None:
    assert said in sentence(Port, name="lab/a", **fields)


def test_macs_are_written_one_way() -> None:
    assert Nic(mac="52-54-00-AA-BB-CC").mac == "52:54:00:aa:bb:cc"


def test_a_vm_with_nothing_to_boot_or_odd_memory_is_refused() -> None:
    assert "nothing to boot" in sentence(VmCreate, name="web")
    assert "a memory of 4 TiB is not possible" in sentence(
        VmCreate, name="web", kernel="/k", memory_bytes=4 << 40
    )
    assert "63 MiB is not possible" in sentence(VmCreate, name="web", kernel="/k", memory_bytes=63 << 20)


def test_vlan_modes_read_as_people_say_them() -> None:
    port = Port.model_validate(
        {"name": "lab/a", "kind": "tap", "vlan": {"mode": "trunk", "allowed": "20,1-10", "native_vid": 5}}
    )
    assert vlan_text(port.vlan) == "trunk 1-10,20 native 5"


@pytest.mark.parametrize(
    "error", [errors.NotFoundError("a", "b"), errors.StoreError("c"), errors.VswitchError("d")]
)
def test_errors_are_the_same_at_the_other_end_of_the_api(error: errors.VswitchError) -> None:
    back = errors.from_json(error.to_json())
    assert type(back) is type(error)
    assert (str(back), back.exit_code if back else 0) == (str(error), error.exit_code)


@pytest.mark.parametrize("body", [None, [], {}, {"error": 1}, {"detail": "x"}])
def test_other_bodies_are_no_errors_of_ours(body: object) -> None:
    assert errors.from_json(body) is None
