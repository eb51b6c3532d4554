"""`vswitch why` without guests: which NICs are meant, which VLAN fits, whose change it was, what mends it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.control import ROOT, with_engine
from vswitch import errors, wanted
from vswitch.cli import parse
from vswitch.dataplane import Engine
from vswitch.diagnosis import Cause, Question
from vswitch.frames import parse_frame
from vswitch.inquiry import endpoints
from vswitch.model import (
    AclRule,
    Nic,
    Port,
    PortChange,
    Switch,
    TraceRequest,
    Vlan,
    VlanAccess,
    VlanAny,
    VlanTrunk,
    VlanUntagged,
    VmCreate,
    Who,
)
from vswitch.probes import common_vid, probes
from vswitch.service import Service
from vswitch.wanted import State

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
EVA = Who(uid=1001, pid=7, name="eva (vswitch)")

vids = st.integers(1, 12)
vlans: st.SearchStrategy[Vlan] = st.one_of(
    st.just(VlanUntagged()),
    st.just(VlanAny()),
    st.builds(VlanAccess, vid=vids),
    st.builds(
        VlanTrunk,
        allowed=st.sampled_from(["1-3", "2,7", "5-9,11", "12"]),
        native_vid=st.one_of(st.none(), vids),
    ),
)


def with_lab(folder: Path, vlan_a: Vlan, vlan_b: Vlan, test: Callable[[Service], Awaitable[None]]) -> None:
    """A service over the engine with two ports on a private switch."""

    async def run(service: Service, _engine: Engine) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        for name, mac, vlan in (("a", A, vlan_a), ("b", B, vlan_b)):
            port = Port(
                name=f"lab/{name}",
                kind="pcap",
                write=str(folder / name),
                mac=mac,
                vlan=vlan,
                allow_spoofing=False,
            )
            await service.add_port(ROOT, port)
        await test(service)

    with_engine(folder, run)


def asked(**more: object) -> Question:
    return Question.model_validate({"a": "lab/a", "b": "lab/b", "seconds": 0} | more)


def mended_vlan(cause: Cause) -> Vlan:
    """The VLAN mode that a port has after its mend."""
    [words] = cause.mend
    assert words[:3] == ["vswitch", "port", "set"]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    vlan = parse.vlan(
        int(options["--vlan"]) if "--vlan" in options else None,
        options.get("--trunk"),
        int(options["--native-vlan"]) if "--native-vlan" in options else None,
        options.get("--vlan-mode"),
    )
    assert vlan is not None
    return vlan


@given(vlan_a=vlans, vlan_b=vlans)
def test_any_two_vlan_modes_work_or_are_mended(
    tmp_path_factory: pytest.TempPathFactory, vlan_a: Vlan, vlan_b: Vlan
) -> None:
    async def test(service: Service) -> None:
        why = await service.why(asked())
        assert why.ok == (common_vid(vlan_a, vlan_b) is not None)
        if not why.ok:
            assert [cause.kind for cause in why.causes] == ["vlan"]
            change = PortChange(vlan=mended_vlan(why.causes[0]))
            await service.set_port(ROOT, why.causes[0].port, change)
            after = await service.why(asked())
            assert after.ok, after.causes

    with_lab(tmp_path_factory.mktemp("lab"), vlan_a, vlan_b, test)


def test_who_changed_it_last_is_named_and_their_port_is_mended(tmp_path: Path) -> None:
    async def test(service: Service) -> None:
        await service.set_port(EVA, "lab/a", PortChange(vlan=VlanAccess(vid=9)))
        await service.set_port(ROOT, "lab/b", PortChange(mtu=1400))
        [cause] = (await service.why(asked())).causes
        assert (cause.port, cause.kind) == ("lab/a", "vlan")
        assert cause.since is not None
        assert (cause.since.who, cause.since.what) == ("eva (vswitch)", "port set lab/a")
        assert cause.mend == [["vswitch", "port", "set", "lab/a", "--vlan-mode", "untagged"]]

    with_lab(tmp_path, VlanUntagged(), VlanUntagged(), test)


def test_both_directions_are_told_and_each_has_its_rule(tmp_path: Path) -> None:
    async def test(service: Service) -> None:
        (there,) = await service.add_rules(
            EVA, "lab/b", [AclRule(direction="in", action="deny", weight=1, comment="closed")]
        )
        (back,) = await service.add_rules(ROOT, "lab/a", [AclRule(direction="in", action="deny", weight=4)])
        why = await service.why(asked(protocol="tcp", port=22))
        assert [(cause.port, cause.rule, cause.way) for cause in why.causes] == [
            ("lab/b", there.id, "there"),
            ("lab/a", back.id, "back"),
        ]
        assert "closed" in why.causes[0].sentence
        assert why.causes[0].since is not None
        assert why.causes[0].since.who == "eva (vswitch)"
        # What is narrow stays narrow: the port is B's, on A's side the remote one.
        assert why.causes[0].mend[0][-4:] == ["--protocol", "tcp", "--local-port", "22"]
        assert why.causes[1].mend[0][-4:] == ["--protocol", "tcp", "--remote-port", "22"]

    with_lab(tmp_path, VlanUntagged(), VlanUntagged(), test)


def test_a_rule_above_others_that_deny_is_not_deleted_in_vain(tmp_path: Path) -> None:
    async def test(service: Service) -> None:
        rules = [
            AclRule(direction="in", action="deny", weight=20, protocol="icmp"),
            AclRule(direction="in", action="deny", weight=1),
            AclRule(direction="in", action="allow", weight=21, protocol="tcp"),
        ]
        await service.add_rules(ROOT, "lab/b", rules)
        [cause] = (await service.why(asked())).causes
        [words] = cause.mend
        assert words[4:] == ["--direction", "in", "--action", "allow", "--weight", "22", "--protocol", "icmp"]

    with_lab(tmp_path, VlanUntagged(), VlanUntagged(), test)


def test_rules_that_name_addresses_are_remarked_where_addresses_are_not_known(tmp_path: Path) -> None:
    async def test(service: Service) -> None:
        rule = AclRule(direction="in", action="deny", weight=7, remote_ip="10.0.0.0/8")
        (made,) = await service.add_rules(ROOT, "lab/b", [rule])
        why = await service.why(asked())
        assert why.ok
        assert any(f"rule {made.id} of lab/b" in remark for remark in why.remarks)
        why = await service.why(asked(from_ip="10.1.1.1", to_ip="10.1.1.2"))
        assert [cause.rule for cause in why.causes] == [made.id]

    with_lab(tmp_path, VlanUntagged(), VlanUntagged(), test)


@pytest.mark.parametrize("stateful", [True, False])
def test_an_answer_passes_where_its_question_has_made_a_connection(tmp_path: Path, stateful: bool) -> None:
    async def test(service: Service) -> None:
        closed = [AclRule(direction=way, action="deny", weight=1) for way in ("in", "out")]
        web = AclRule(
            direction="in", action="allow", weight=10, protocol="tcp", local_port="80", stateful=stateful
        )
        made = await service.add_rules(ROOT, "lab/b", [*closed, web])
        why = await service.why(asked(protocol="tcp", port=80))
        if stateful:
            assert why.ok
            # What lies behind the connection is walked, too.
            deny = await service.add_rules(ROOT, "lab/a", [closed[0]])
            why = await service.why(asked(protocol="tcp", port=80))
            assert [(cause.rule, cause.way) for cause in why.causes] == [(deny[0].id, "back")]
        else:
            assert [(cause.rule, cause.way) for cause in why.causes] == [(made[1].id, "back")]
        assert [cause.rule for cause in (await service.why(asked())).causes] == [made[0].id, made[1].id]

    with_lab(tmp_path, VlanUntagged(), VlanUntagged(), test)


def test_a_connection_of_the_asker_lets_the_answer_in(tmp_path: Path) -> None:
    async def test(service: Service) -> None:
        rules = [
            AclRule(direction="in", action="deny", weight=1),
            AclRule(direction="out", action="allow", weight=5, protocol="icmp", stateful=True),
        ]
        await service.add_rules(ROOT, "lab/a", rules)
        why = await service.why(asked())
        assert why.ok
        assert not any("connection" in remark for remark in why.remarks)

    with_lab(tmp_path, VlanUntagged(), VlanUntagged(), test)


def test_a_trunk_is_told_which_tag_was_taken_for_granted(tmp_path: Path) -> None:
    async def test(service: Service) -> None:
        why = await service.why(asked())
        assert why.ok
        assert "lab/a is a trunk: its guest is taken to send tagged with VLAN 7" in why.remarks

    with_lab(tmp_path, VlanTrunk(allowed="1-10", native_vid=1), VlanAccess(vid=7), test)


# ---- what is meant ----


def two_vms() -> State:
    """web has a NIC on lab and one on office, db has one on office only; box's are on none."""
    state = State()
    for name, kind in (("lab", "private"), ("office", "internal")):
        state = wanted.add_switch(state, Switch.model_validate({"name": name, "type": kind}))
    nics: dict[str, list[str | None]] = {
        "web": ["lab", "office"],
        "db": ["office"],
        "box": [None],
        "bare": [],
    }
    for name, switches in nics.items():
        vm = VmCreate(name=name, kernel="/k", nics=[Nic(switch=switch) for switch in switches])
        state = wanted.add_vm(state, vm)
    return state


@pytest.mark.parametrize(
    ("one", "other", "meant"),
    [
        ("web", "db", ("web/eth1", "db/eth0")),
        ("db", "web", ("db/eth0", "web/eth1")),
        ("web/eth0", "db", ("web/eth0", "db/eth0")),
        ("web", "office", ("web/eth1", "office/host")),
        ("web", "box", ("web/eth0", "box/eth0")),
    ],
)
def test_of_several_nics_those_on_one_switch_are_meant(one: str, other: str, meant: tuple[str, str]) -> None:
    a, b = endpoints(two_vms(), one, other)
    assert (a.port.name, b.port.name) == meant


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    [
        ("web", "bare", "VM bare has no NIC"),
        ("web", "lab", "switch lab has no host port"),
        ("db", "db/eth0", "db and db/eth0 are the same port"),
        ("nobody", "web", "no VM, switch or port is named nobody"),
    ],
)
def test_what_is_no_port_is_said(one: str, other: str, sentence: str) -> None:
    with pytest.raises(errors.UserError, match=sentence):
        endpoints(two_vms(), one, other)


# ---- frames ----


@pytest.mark.parametrize("size", [None, 20, 64, 1500, 9000])
@pytest.mark.parametrize(
    "more", [{}, {"protocol": "icmpv6"}, {"protocol": "tcp", "port": 22}, {"protocol": "udp", "port": 53}]
)
def test_probes_have_the_size_that_is_asked_about(more: dict[str, object], size: int | None) -> None:
    question = asked(size=size, **more)
    ends = [Port(name=f"lab/{name}", kind="vhost-user", mac=mac) for name, mac in (("a", A), ("b", B))]
    made = list(probes(question, *ends))
    assert [probe.way for probe in made] == ["there", "back", "there", "back"]
    for probe in made[:2]:
        frame = parse_frame(TraceRequest(frame=probe.frame, format="text"), A)
        headers = {"icmp": 28, "icmpv6": 48, "tcp": 40, "udp": 28}[question.protocol]
        assert len(frame) == 14 + max(size or 84, headers)
