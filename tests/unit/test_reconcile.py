"""A plan leads from any state to any other, and nothing is ever on the air without its rules."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from controller.messages import Command, FlowMod, decode
from tests.unit.test_wanted import lab, rule
from vswitch import errors, orders, wanted
from vswitch.model import AclRule, FdbStatic, Nic, Port, PortChange, Switch, SwitchChange, VmCreate
from vswitch.reconcile import Target, plan, target
from vswitch.wanted import State

RUN = Path("/run/vswitch")
Entries = dict[tuple[int, int, object], FlowMod]


def made(model: "Model") -> dict[int, orders.PortAdd]:
    """Its ports, without their shares of the table, which stay when a port moves."""
    return {number: replace(port, fdb_limit=0) for number, port in model.ports.items()}


class Model:
    """What a data plane would hold: carries out orders as api.h says, refusing what it would refuse."""

    def __init__(self) -> None:
        self.switches: dict[int, tuple[int, int]] = {}
        self.ports: dict[int, orders.PortAdd] = {}
        self.settings: dict[int, orders.PortSet] = {}
        self.tables: dict[tuple[int, int], Entries] = {}
        self.statics: dict[tuple[int, int, bytes], int] = {}

    def run(self, order: orders.Order) -> None:
        match order:
            case orders.SwitchSet():
                self.switches[order.switch_id] = (self.switches[order.switch_id][0], order.ageing_s)
            case orders.SwitchAdd():
                assert order.switch_id not in self.switches
                self.switches[order.switch_id] = (order.fdb_size, order.ageing_s)
            case orders.SwitchDelete():
                assert order.switch_id not in {setting.switch_id for setting in self.settings.values()}
                del self.switches[order.switch_id]
                self.statics = {key: port for key, port in self.statics.items() if key[0] != order.switch_id}
            case orders.PortAdd():
                assert order.port_id not in self.ports
                self.ports[order.port_id] = order
                self.settings[order.port_id] = orders.PortSet(order.port_id)
            case orders.PortDelete():
                del self.ports[order.port_id], self.settings[order.port_id]
                self.tables = {key: value for key, value in self.tables.items() if key[0] != order.port_id}
                self.statics = {key: port for key, port in self.statics.items() if port != order.port_id}
            case orders.PortSet():
                self.set_port(order)
            case orders.OpenFlow():
                self.openflow(order)
            case orders.FdbDelete():
                del self.statics[order.switch_id, order.vid, order.mac]
            case orders.FdbAdd():
                assert self.settings[order.port_id].switch_id == order.switch_id
                self.statics[order.switch_id, order.vid, order.mac] = order.port_id
            case orders.FdbFlush():
                pass
            case _:
                raise AssertionError(order)

    def set_port(self, order: orders.PortSet) -> None:
        assert order.switch_id == 0 or order.switch_id in self.switches
        if order.flags & orders.FLAG_UP:
            assert self.tables[order.port_id, 1], "on the air without rules"
            assert self.tables[order.port_id, 2], "on the air without rules"
        if self.settings[order.port_id].switch_id != order.switch_id:
            self.statics = {key: port for key, port in self.statics.items() if port != order.port_id}
        self.settings[order.port_id] = order

    def openflow(self, order: orders.OpenFlow) -> None:
        table = self.tables.setdefault((order.target, order.pipeline), {})
        for mod in decode(order.messages):
            assert isinstance(mod, FlowMod)
            key = (mod.table, mod.priority, mod.match)
            if mod.command == Command.DELETE_STRICT:
                del table[key]
            else:
                table[key] = mod


def carried_out(states: list[State]) -> tuple[Model, Target]:
    """The model after plans from nothing through all the states."""
    model, actual = Model(), Target()
    for state in states:
        new = target(state, RUN, actual)
        for order in plan(new, actual):
            model.run(order)
        actual = new
    return model, actual


def check_is(model: Model, state: State) -> None:
    fresh, _ = carried_out([state])
    assert model.switches.keys() == fresh.switches.keys()
    assert (made(model), model.settings, model.statics) == (made(fresh), fresh.settings, fresh.statics)
    assert model.tables == fresh.tables


def test_a_port_gets_its_rules_before_it_is_put_on_the_air() -> None:
    names = [type(order).__name__ for order in plan(target(lab(), RUN), Target())]
    assert names == ["SwitchAdd"] * 2 + ["PortAdd"] * 4 + ["OpenFlow"] * 8 + ["PortSet"] * 4


def test_nothing_is_ordered_when_all_is_as_wanted() -> None:
    state = lab()
    assert plan(target(state, RUN), target(state, RUN)) == []


def test_one_more_rule_costs_one_order_and_touches_no_other_rule() -> None:
    state = wanted.add_rules(lab(), "lab/db", [rule(weight) for weight in range(100, 1100)])
    actual = target(state, RUN)
    more = wanted.add_rules(
        state, "lab/db", [AclRule(direction="in", action="deny", weight=5, protocol="icmp")]
    )
    (order,) = plan(target(more, RUN, actual), actual)
    assert isinstance(order, orders.OpenFlow)
    assert (order.target, order.pipeline) == (state.ports["lab/db"].id, orders.TO_PORT)
    assert len(order.messages) < 1000


def test_vms_are_connected_to_and_others_are_listened_for() -> None:
    ports = target(lab(), RUN).ports
    assert ports[3].add.address == b"/run/vswitch/vms/web/eth0.sock"
    state = wanted.add_port(lab(), Port(name="lab/x", kind="vhost-user", listen=True))
    assert target(state, RUN).ports[5].add.flags == orders.ADD_LISTEN


def test_learning_is_forgotten_when_a_port_may_not_spoof_any_more() -> None:
    state = wanted.set_port(lab(), "lab/db", PortChange(allow_spoofing=True))
    actual = target(state, RUN)
    after = wanted.set_port(state, "lab/db", PortChange(allow_spoofing=False))
    assert orders.FdbFlush(1, state.ports["lab/db"].id) in plan(target(after, RUN, actual), actual)


CHANGES = [
    lambda s: wanted.add_switch(s, Switch(name="new", type="internal")),
    lambda s: wanted.delete_switch(s, "new"),
    lambda s: wanted.set_switch(s, "lab", SwitchChange(ageing_s=5)),
    lambda s: wanted.add_port(s, Port(name="new/a", kind="vhost-user")),
    lambda s: wanted.delete_port(s, "new/a"),
    lambda s: wanted.delete_port(s, "lab/db"),
    lambda s: wanted.add_port(s, Port(name="lab/db", kind="tap")),
    lambda s: wanted.set_port(s, "web/eth0", PortChange(switch="new")),
    lambda s: wanted.set_port(s, "web/eth0", PortChange(switch=None)),
    lambda s: wanted.set_port(s, "web/eth0", PortChange(switch="dark", mac="52:54:00:00:00:77")),
    lambda s: wanted.set_port(
        s, "web/eth0", PortChange.model_validate({"vlan": {"mode": "access", "vid": 9}})
    ),
    lambda s: wanted.set_port(s, "lab/db", PortChange(enabled=False, allow_spoofing=True)),
    lambda s: wanted.set_port(s, "lab/db", PortChange(enabled=True, allow_spoofing=False)),
    lambda s: wanted.add_rules(s, "lab/db", [rule(1), rule(2)]),
    lambda s: wanted.delete_rules(
        s, "lab/db", {s.ports["lab/db"].rules[0].id} if s.ports["lab/db"].rules else {0}
    ),
    lambda s: wanted.add_static(s, "lab", FdbStatic(mac="52:54:00:00:00:09", port="lab/db")),
    lambda s: wanted.add_static(s, "new", FdbStatic(mac="52:54:00:00:00:09", port="web/eth0")),
    lambda s: wanted.delete_static(s, "lab", 0, "52:54:00:00:00:09"),
    lambda s: wanted.delete_vm(s, "web"),
    lambda s: wanted.add_vm(
        s, VmCreate(name="web", kernel="/k", nics=[Nic(switch="lab"), Nic(switch="lab")])
    ),
]


@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.booleans()), max_size=12))
def test_plans_converge_on_what_is_wanted_whatever_happened_before(steps: list[tuple[object, bool]]) -> None:
    state = lab()
    states = [state]
    for change, apply in steps:
        try:
            state = change(state)  # type: ignore[operator]
        except (errors.VswitchError, KeyError):
            continue
        if apply:
            states.append(state)  # else several changes go in one plan
    states.append(state)
    model, _ = carried_out(states)
    check_is(model, state)


def test_one_port_alone_never_fills_a_table_of_addresses() -> None:
    for size, share in ((16, 4), (400, 100), (16384, 1024)):
        state = wanted.add_switch(State(), Switch(name="small", type="private", fdb_size=size))
        state = wanted.add_port(state, Port(name="small/a", kind="vhost-user", allow_spoofing=True))
        assert [port.add.fdb_limit for port in target(state, RUN).ports.values()] == [share]


def test_a_nic_that_moves_to_a_smaller_switch_is_not_made_anew() -> None:
    state = wanted.add_vm(lab(), VmCreate(name="mover", kernel="/k", nics=[Nic(switch="lab")]))
    old = target(state, RUN)
    state = wanted.add_switch(state, Switch(name="small", type="private", fdb_size=16))
    state = wanted.set_port(state, "mover/eth0", PortChange(switch="small"))
    new = target(state, RUN, old)
    number = state.ports["mover/eth0"].id
    assert new.ports[number].add.fdb_limit == 4  # of the next data plane
    assert not [order for order in plan(new, old) if isinstance(order, orders.PortAdd | orders.PortDelete)]
