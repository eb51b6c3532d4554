"""What people type for sizes, VLANs and NICs means what the manual says."""

import pytest

from vswitch import errors
from vswitch.cli import parse
from vswitch.cli.acls import match_text
from vswitch.cli.output import duration, plain
from vswitch.model import AclRule, VlanAccess, VlanAny, VlanTrunk, VlanUntagged
from vswitch.words import size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("1.5G", 3 << 29),
        ("64 MiB", 64 << 20),
        ("1gb", 1 << 30),
        ("4096K", 4 << 20),
    ],
)
def test_memory_is_a_number_with_a_binary_unit(text: str, expected: int) -> None:
    assert parse.memory_bytes(text) == expected


@pytest.mark.parametrize("text", ["512", "", "M", "-1G", "1e3M", "lots"])
def test_memory_without_a_unit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(errors.InvalidInputError) as raised:
        parse.memory_bytes(text)
    assert repr(text) in raised.value.sentence
    assert "512M" in raised.value.way_out


def test_vlan_options_make_each_mode() -> None:
    assert parse.vlan() is None
    assert parse.vlan(vid=100) == VlanAccess(vid=100)
    assert parse.vlan(trunk="20,1-10", native_vid=1) == VlanTrunk(allowed="1-10,20", native_vid=1)
    assert parse.vlan(mode="any") == VlanAny()
    assert parse.vlan(mode="untagged") == VlanUntagged()


def test_the_mode_travels_with_a_vlan() -> None:
    made = parse.vlan(vid=100)
    assert made is not None
    assert made.model_dump(exclude_unset=True) == {"mode": "access", "vid": 100}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"vid": 1, "trunk": "2"}, "--vlan and --trunk"),
        ({"trunk": "2", "mode": "any"}, "--trunk and --vlan-mode"),
        ({"native_vid": 5}, "--native-vlan"),
        ({"mode": "weird"}, "'weird'"),
        ({"vid": 0}, "VLAN 0"),
        ({"vid": 4095}, "VLAN 4095"),
        ({"trunk": "1-10,5"}, "overlap"),
        ({"trunk": "1-x"}, "1-x"),
        ({"trunk": "1-10", "native_vid": 4095}, "VLAN 4095"),
    ],
)
def test_vlan_options_that_make_no_sense_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(errors.InvalidInputError) as raised:
        parse.vlan(**options)  # type: ignore[arg-type]
    assert named in raised.value.sentence


def test_a_nic_has_the_settings_of_a_port() -> None:
    nic = parse.nic(
        "lab,vlan=100,mac=52-54-00-AA-BB-CC,mtu=1500,queues=2,storm-limit=0,allow-spoofing,trust-pcp=no"
    )
    assert nic.model_dump(exclude_unset=True) == {
        "switch": "lab",
        "vlan": {"mode": "access", "vid": 100},
        "mac": "52:54:00:aa:bb:cc",
        "mtu": 1500,
        "queues": 2,
        "storm_limit": 0,
        "allow_spoofing": True,
        "trust_pcp": False,
    }


def test_a_trunk_nic_may_have_commas_in_its_ranges() -> None:
    nic = parse.nic("lab,trunk=1-10,20,native-vlan=1")
    assert nic.vlan == VlanTrunk(allowed="1-10,20", native_vid=1)


def test_a_nic_without_a_switch_is_unplugged() -> None:
    assert parse.nic(",vlan=5").switch is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lab,vlam=100", "'vlam'"),
        ("lab,vlan=x", "'x'"),
        ("lab,vlan=100,vlan=101", "twice"),
        ("lab,20", "'20'"),
        ("lab,vlan=4095", "VLAN 4095"),
        ("lab,mac=zz", "'zz'"),
        ("lab,trust-pcp=maybe", "'maybe'"),
        ("lab,vlan=1,trunk=2", "exclude"),
        ("la b", "'la b'"),
    ],
)
def test_a_nic_with_a_mistake_is_shown_with_it(text: str, named: str) -> None:
    with pytest.raises(errors.InvalidInputError) as raised:
        parse.nic(text)
    assert raised.value.sentence.startswith(f"--nic {text}: ")
    assert named in raised.value.sentence


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "everything"),
        ({"protocol": "tcp", "local_port": "80"}, "tcp local port 80"),
        ({"protocol": "icmp", "icmp_type": 8, "icmp_code": 0}, "icmp type 8 code 0"),
        ({"remote_ip": "10.0.0.0/8", "vlan": 7}, "VLAN 7 remote 10.0.0.0/8"),
        ({"ethertype": "arp", "local_mac": "52:54:00:00:00:01"}, "arp local 52:54:00:00:00:01"),
        ({"ethertype": 0x9000}, "0x9000"),
        ({"protocol": 99}, "IP protocol 99"),
    ],
)
def test_a_rule_is_said_in_words(fields: dict[str, object], expected: str) -> None:
    rule = AclRule(direction="in", action="deny", weight=1, **fields)  # type: ignore[arg-type]
    assert match_text(rule) == expected


def test_figures_are_said_as_people_say_them() -> None:
    assert [size(n) for n in (900, 512 << 20, 3 << 29)] == ["900 B", "512 MiB", "1.5 GiB"]
    assert [duration(s) for s in (45, 720, 11100, 187200)] == ["45 s", "12 min", "3 h 5 min", "2 d 4 h"]


def test_foreign_text_cannot_steer_a_terminal() -> None:
    assert plain("dead\x1b[2J\x07 end") == "dead\ufffd[2J\ufffd end"
