"""Every change of the wanted state is whole or refused with a sentence that names what is in the way."""

from collections.abc import Callable

import pytest

from vswitch import errors, wanted
from vswitch.model import AclRule, FdbStatic, Nic, Port, PortChange, Switch, VmCreate
from vswitch.wanted import State


def lab() -> State:
    """An internal switch `lab` with a port, a private one `dark`, a VM `web` with two NICs."""
    state = wanted.add_switch(State(), Switch(name="lab", type="internal"))
    state = wanted.add_switch(state, Switch(name="dark", type="private"))
    state = wanted.add_port(state, Port(name="lab/db", kind="vhost-user", mac="52:54:00:00:00:01"))
    nics = [Nic(switch="lab", mac="52:54:00:00:00:02"), Nic()]
    return wanted.add_vm(state, VmCreate(name="web", kernel="/k", nics=nics))


def rule(weight: int) -> AclRule:
    return AclRule(direction="in", action="deny", weight=weight)


def test_internal_switches_come_with_a_host_port_and_private_ones_without() -> None:
    state = lab()
    assert [row.port.name for row in wanted.ports_of(state, "lab")] == ["lab/host", "lab/db"]
    assert state.ports["lab/host"].port.allow_spoofing
    assert wanted.ports_of(state, "dark") == []


def test_a_vm_comes_with_its_ports() -> None:
    ports = wanted.ports_of(lab(), "web")
    assert [(row.port.name, row.port.switch) for row in ports] == [("web/eth0", "lab"), ("web/eth1", None)]
    assert ports[1].port.mac is not None
    assert ports[1].port.mac.startswith("52:54:00:")


REFUSED: list[tuple[Callable[[State], State], type[errors.VswitchError], str]] = [
    (
        lambda s: wanted.add_switch(s, Switch(name="lab", type="private")),
        errors.AlreadyExistsError,
        "a switch is named lab",
    ),
    (
        lambda s: wanted.add_switch(s, Switch(name="web", type="private")),
        errors.AlreadyExistsError,
        "a VM is named web",
    ),
    (
        lambda s: wanted.add_vm(s, VmCreate(name="lab", kernel="/k")),
        errors.AlreadyExistsError,
        "a switch is named lab",
    ),
    (
        lambda s: wanted.add_vm(s, VmCreate(name="web", kernel="/k")),
        errors.AlreadyExistsError,
        "a VM is named web",
    ),
    (
        lambda s: wanted.add_vm(s, VmCreate(name="x", kernel="/k", nics=[Nic(switch="nope")])),
        errors.NotFoundError,
        "no switch is named nope",
    ),
    (lambda s: wanted.delete_switch(s, "nope"), errors.NotFoundError, "there are: dark, lab"),
    (
        lambda s: wanted.delete_switch(s, "lab"),
        errors.ConflictError,
        "switch lab has ports: lab/db, web/eth0",
    ),
    (
        lambda s: wanted.add_port(s, Port(name="nope/a", kind="tap")),
        errors.NotFoundError,
        "no switch is named nope",
    ),
    (lambda s: wanted.add_port(s, Port(name="web/a", kind="tap")), errors.ConflictError, "web is a VM"),
    (
        lambda s: wanted.add_port(s, Port(name="lab/db", kind="tap")),
        errors.AlreadyExistsError,
        "a port named lab/db",
    ),
    (
        lambda s: wanted.add_port(s, Port(name="dark/host", kind="host")),
        errors.ConflictError,
        "the host's own port",
    ),
    (
        lambda s: wanted.add_port(s, Port(name="dark/t", kind="tap")),
        errors.ConflictError,
        "switch dark is private",
    ),
    (
        lambda s: wanted.add_port(s, Port(name="lab/x", kind="tap", mac="52:54:00:00:00:02")),
        errors.AlreadyExistsError,
        "web/eth0 on switch lab has it",
    ),
    (
        lambda s: wanted.set_port(s, "lab/db", PortChange(mac="52:54:00:00:00:02")),
        errors.AlreadyExistsError,
        "lab/db cannot have the MAC 52:54:00:00:00:02",
    ),
    (
        lambda s: wanted.set_port(s, "web/eth9", PortChange()),
        errors.NotFoundError,
        "web has web/eth0, web/eth1",
    ),
    (
        lambda s: wanted.set_port(s, "nope/eth0", PortChange()),
        errors.NotFoundError,
        "no VM or switch named nope",
    ),
    (
        lambda s: wanted.set_port(s, "web/eth0", PortChange(switch="nope")),
        errors.NotFoundError,
        "no switch is named nope",
    ),
    (
        lambda s: wanted.set_port(s, "lab/db", PortChange(switch="dark")),
        errors.ConflictError,
        "belongs to switch lab",
    ),
    (
        lambda s: wanted.set_port(s, "lab/db", PortChange(mtu=None)),
        errors.InvalidInputError,
        "mtu cannot be nothing",
    ),
    (
        lambda s: wanted.delete_port(s, "lab/host"),
        errors.ConflictError,
        "the host's port of its switch",
    ),
    (lambda s: wanted.delete_port(s, "web/eth0"), errors.ConflictError, "is a NIC of VM web"),
    (lambda s: wanted.delete_rules(s, "lab/db", {7}), errors.NotFoundError, "lab/db has no rule 7"),
    (
        lambda s: wanted.add_static(s, "dark", FdbStatic(mac="52:54:00:00:00:09", port="lab/db")),
        errors.ConflictError,
        "lab/db is not connected to switch dark",
    ),
    (lambda s: wanted.delete_vm(s, "lab"), errors.NotFoundError, "no VM is named lab"),
]


@pytest.mark.parametrize(("change", "kind", "said"), REFUSED)
def test_what_cannot_be_is_refused_naming_what_is_in_the_way(
    change: Callable[[State], State], kind: type[errors.VswitchError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        change(lab())
    assert said in str(caught.value)


def test_a_taken_weight_is_refused_naming_the_rule() -> None:
    state = wanted.add_rules(lab(), "lab/db", [rule(5)])
    number = state.ports["lab/db"].rules[0].id
    with pytest.raises(
        errors.AlreadyExistsError, match=f"lab/db has a rule to VM with weight 5: rule {number}"
    ):
        wanted.add_rules(state, "lab/db", [rule(6), rule(5)])
    other = AclRule(direction="out", action="deny", weight=5)
    assert len(wanted.add_rules(state, "lab/db", [other]).ports["lab/db"].rules) == 2


def test_rules_are_all_added_or_none() -> None:
    state = lab()
    with pytest.raises(errors.AlreadyExistsError):
        wanted.add_rules(state, "lab/db", [rule(1), rule(1)])
    assert state.ports["lab/db"].rules == ()


def test_numbers_of_rules_are_never_used_again() -> None:
    state = wanted.add_rules(lab(), "lab/db", [rule(1)])
    first = state.ports["lab/db"].rules[0].id
    state = wanted.delete_rules(state, "lab/db", {first})
    state = wanted.add_rules(state, "lab/db", [rule(1)])
    assert state.ports["lab/db"].rules[0].id == first + 1


def test_a_nic_keeps_its_settings_and_rules_on_another_switch() -> None:
    state = wanted.set_port(lab(), "web/eth0", PortChange(mtu=1400))
    state = wanted.add_rules(state, "web/eth0", [rule(1)])
    state = wanted.add_static(state, "lab", FdbStatic(mac="52:54:00:00:00:09", port="web/eth0"))
    moved = wanted.set_port(state, "web/eth0", PortChange(switch="dark"))
    row = moved.ports["web/eth0"]
    assert (row.port.switch, row.port.mtu, len(row.rules), row.id) == (
        "dark",
        1400,
        1,
        state.ports["web/eth0"].id,
    )
    assert moved.statics == {}  # that address was behind it on the other switch


def test_deleting_a_vm_frees_its_names_and_numbers() -> None:
    state = wanted.delete_vm(lab(), "web")
    assert not [name for name in state.ports if name.startswith("web/")]
    assert wanted.add_vm(state, VmCreate(name="web", kernel="/k", nics=[Nic()])).ports["web/eth0"].id == 3


def test_only_what_was_given_changes() -> None:
    state = wanted.set_port(lab(), "lab/db", PortChange(mtu=1400))
    state = wanted.set_port(state, "lab/db", PortChange(trust_pcp=True))
    assert (state.ports["lab/db"].port.mtu, state.ports["lab/db"].port.trust_pcp) == (1400, True)


def test_a_capture_file_may_have_many_senders() -> None:
    state = wanted.add_port(lab(), Port(name="lab/p", kind="pcap", replay="/f"))
    assert state.ports["lab/p"].port.allow_spoofing
    state = wanted.add_port(state, Port(name="lab/q", kind="pcap", replay="/f", allow_spoofing=False))
    assert not state.ports["lab/q"].port.allow_spoofing
