"""`vswitch why` names what stops frames, and its command mends it: faults are seeded one by one.

A daemon of the test's own, two guests in this process that ping each other, and the command line as typed.
"""

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, wait_for
from tests.stations import PATIENCE_S, Station, address
from vswitch.cli import run
from vswitch.model import Port, Switch, VlanAccess

A, B, OTHER = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "52:54:00:00:00:99"
IP_A, IP_B = "10.0.0.1", "10.0.0.2"


class Lab:
    """Two stations on a switch, in VLAN 100, that reach each other."""

    def __init__(self, daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        client = daemon.client
        client.create_switch(Switch(name="lab", type="private"))
        sockets = []
        for name, mac in (("a", A), ("b", B)):
            port = Port(name=f"lab/{name}", kind="vhost-user", mac=mac, vlan=VlanAccess(vid=100))
            sockets.append(Path(client.add_port(port).socket or ""))
        self.a = Station(address(A, IP_A), sockets[0])
        self.b = Station(address(B, IP_B), sockets[1])
        for name in ("a", "b"):
            wait_for(lambda name=name: (state := client.port(f"lab/{name}").state) and state.link)  # type: ignore[misc]
        self.size = 84

    def close(self) -> None:
        self.a.close()
        self.b.close()

    def vswitch(self, line: str) -> Any:
        """What a command that must succeed answers."""
        self._capsys.readouterr()
        code = run(["--json", *shlex.split(line)])
        written = self._capsys.readouterr()
        assert code == 0, written.err
        return json.loads(written.out)

    def mend(self, cause: dict[str, Any]) -> None:
        """Runs what `why` advises, word by word."""
        for words in cause["mend"]:
            assert words[0] == "vswitch"
            assert run(words[1:]) == 0, words

    def pings(self) -> bool:
        return self.a.ping(self.b, self.size)

    def reaches(self) -> bool:
        """Whether A reaches B; on a busy machine not at once."""
        return any(self.pings() for _ in range(10))

    @contextmanager
    def trying(self) -> Iterator[None]:
        """A goes on pinging B inside this block."""
        stop = threading.Event()

        def go_on() -> None:
            while not stop.is_set():
                self.pings()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def lab(daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("VSWITCH_SOCKET", str(daemon.socket))
    lab = Lab(daemon, capsys)
    yield lab
    lab.close()
    lab.vswitch("switch delete lab --force")


def _forge(lab: Lab) -> None:
    lab.a.address = address(OTHER, IP_A)


def _move(lab: Lab) -> None:
    """B is another station than its port says, and A believes to know it."""
    lab.b.address = address(OTHER, IP_B)
    lab.a.asks = False


def _grow(lab: Lab) -> None:
    lab.size = 1400


def _shout(lab: Lab) -> None:
    lab.a.noise = 50


@dataclass(frozen=True)
class Fault:
    """What is done to the lab, what is asked, and whom the answer must name."""

    name: str
    seed: str
    kind: str
    port: str
    way: str | None = None
    guest: Callable[[Lab], None] | None = None
    question: str = ""
    mend: str = ""

    @property
    def seconds(self) -> float:
        """How long counters must be watched, where only they show it: longer than two tries of A take."""
        return 2.5 * PATIENCE_S if self.guest is not None or "nobody told" in self.name else 0


FAULTS = [
    Fault("vlan of B", "port set lab/b --vlan 200", "vlan", "lab/b", mend="port set lab/b --vlan 100"),
    Fault("vlan of A", "port set lab/a --vlan-mode untagged", "vlan", "lab/a"),
    Fault(
        "acl of A, from VM",
        "acl add lab/a --direction out --action deny --weight 9 --protocol icmp",
        "acl",
        "lab/a",
        "there",
    ),
    Fault(
        "acl of B, to VM",
        "acl add lab/b --direction in --action deny --weight 9 --protocol icmp",
        "acl",
        "lab/b",
        "there",
    ),
    Fault(
        "acl of B, from VM",
        "acl add lab/b --direction out --action deny --weight 9 --protocol icmp --icmp-type 0",
        "acl",
        "lab/b",
        "back",
    ),
    Fault(
        "acl of A, to VM",
        "acl add lab/a --direction in --action deny --weight 9 --remote-ip 10.0.0.0/24",
        "acl",
        "lab/a",
        "back",
        question=f"--from-ip {IP_A} --to-ip {IP_B}",
    ),
    Fault(
        "acl that denies all",
        "acl add lab/b --direction in --action deny --weight 1",
        "acl",
        "lab/b",
        "there",
        mend="acl add lab/b --direction in --action allow --weight 2 --protocol icmp",
    ),
    Fault(
        "acl on ARP",
        "acl add lab/b --direction in --action deny --weight 5 --ethertype arp",
        "acl",
        "lab/b",
        "there",
    ),
    Fault(
        "acl that names an address, which nobody told",
        "acl add lab/b --direction in --action deny --weight 5 --remote-ip 10.0.0.1",
        "acl",
        "lab/b",
    ),
    Fault("spoof guard", "fdb flush lab", "spoof_guard", "lab/a", "there", _forge),
    Fault("cable", "port set lab/b --unplug", "cable", "lab/b", mend="port set lab/b --switch lab"),
    Fault("disabled", "port set lab/a --disable", "disabled", "lab/a", mend="port set lab/a --enable"),
    Fault("mtu", "port set lab/b --mtu 1000", "mtu", "lab/b", "there", _grow, "--size 1400"),
    Fault("mtu, seen in the counters", "port set lab/a --mtu 1000", "mtu", "lab/a", None, _grow),
    Fault("storm limit", "port set lab/a --storm-limit 1", "storm_limit", "lab/a", "there", _shout),
    Fault("no fdb entry", "fdb flush lab", "no_fdb_entry", "lab/b", "there", _move, f"--to-mac {OTHER}"),
    Fault(
        "fdb entry of another port",
        f"fdb add lab {OTHER} lab/a --vlan 100",
        "fdb_elsewhere",
        "lab/a",
        "there",
        _move,
        f"--to-mac {OTHER}",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_culprit_is_named_and_its_mend_makes_it_work(lab: Lab, fault: Fault) -> None:
    assert lab.reaches(), "it works before"
    if fault.name.startswith("fdb entry"):
        lab.vswitch("port set lab/b --allow-spoofing")
    seeded = lab.vswitch(fault.seed)
    if fault.guest is not None:
        fault.guest(lab)
    assert not lab.pings(), "the fault is one"

    with lab.trying():
        why = lab.vswitch(f"why lab/a lab/b {fault.question} --seconds {fault.seconds}")

    assert not why["ok"]
    cause = why["causes"][0]
    assert (cause["kind"], cause["port"], cause["way"]) == (fault.kind, fault.port, fault.way)
    if fault.kind == "acl":
        assert cause["rule"] == seeded["id"]
    if fault.mend:
        assert cause["mend"] == [["vswitch", *fault.mend.split()]]
    if not fault.seed.startswith("fdb"):
        noun, verb, *_ = fault.seed.split()
        assert cause["since"]["what"].startswith(f"{noun} {verb} ")
        assert cause["since"]["who"]
    lab.mend(cause)
    assert lab.reaches(), cause["sentence"]


def test_nothing_is_found_where_nothing_is_wrong(lab: Lab) -> None:
    assert lab.reaches()
    with lab.trying():
        why = lab.vswitch("why lab/a lab/b")
    assert why["ok"]
    assert why["causes"] == []
    assert [walk["arrives"] for walk in why["walks"]] == [True, True, True, True]
    assert len({walk["what"] for walk in why["walks"]}) == 4
    for subject in ("tcp/22", "udp/53", "47", "icmpv6"):
        assert lab.vswitch(f"why lab/a lab/b {subject} --seconds 0")["ok"], subject


def test_a_receiver_that_hangs_is_named(lab: Lab) -> None:
    assert lab.reaches()
    lab.b.hangs = True
    lab.a.noise = 300
    with lab.trying():
        why = lab.vswitch("why lab/a lab/b")
    cause = why["causes"][0]
    assert (cause["kind"], cause["port"], cause["reason"]) == ("rx_full", "lab/b", "rx_full")
    assert cause["mend"] == []
    assert "reset its driver" in cause["advice"]
    lab.b.guest.reset()
    lab.b.hangs, lab.a.noise = False, 0
    assert lab.reaches()


def test_a_guest_that_is_not_there_is_named(lab: Lab, daemon: Daemon) -> None:
    lab.b.guest.disconnect()
    wait_for(lambda: not (daemon.client.port("lab/b").state or 0).link)  # type: ignore[union-attr]
    why = lab.vswitch("why lab/a lab/b --seconds 0")
    assert [(cause["kind"], cause["port"]) for cause in why["causes"]] == [("link_down", "lab/b")]
    assert "vswitch port show lab/b --qemu-args" in why["causes"][0]["advice"]


def test_a_ring_that_its_guest_broke_is_named(lab: Lab, daemon: Daemon) -> None:
    lab.b.guest.tx[0].write_avail(300, [0])
    lab.b.guest.tx[0].kick()
    wait_for(lambda: (state := daemon.client.port("lab/b").state) and state.fault)
    cause = lab.vswitch("why lab/a lab/b --seconds 0")["causes"][0]
    assert (cause["kind"], cause["port"]) == ("fault", "lab/b")
    assert "available index jumped" in cause["sentence"]
    assert cause["advice"].startswith("reset its guest's driver")
    lab.b.guest.reset()
    assert lab.reaches()


def test_a_person_reads_who_did_it_and_what_to_type(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    rule = lab.vswitch(
        "acl add lab/b --direction in --action deny --weight 9 --protocol tcp --comment 'no ssh'"
    )
    assert run(["why", "lab/a", "lab/b", "tcp/22", "--seconds", "0"]) == 0
    text = capsys.readouterr().out
    assert "tcp/22 from lab/a to lab/b does not work:" in text
    assert f"rule {rule['id']} of lab/b drops a tcp segment to port 22, to VM" in text
    assert "no ssh" in text
    assert "acl add lab/b" in text.partition("since:")[2]
    assert f"mend:   vswitch acl delete lab/b --rule {rule['id']}" in text


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("why lab/a nowhere", "no VM, switch or port is named nowhere"),
        ("why lab/a lab/zz", "no port is named lab/zz"),
        ("why lab/a lab/a", "lab/a and lab/a are the same port"),
        ("why lab/a lab", "switch lab has no host port"),
        ("why lab/a lab/b tcp", "tcp needs a port"),
        ("why lab/a lab/b icmp/7", "icmp has no ports"),
        ("why lab/a lab/b tcp/x", "no protocol with a port"),
        ("why lab/a lab/b --from-ip 10.0.0.1 --to-ip 2001:db8::1", "different IP versions"),
        ("why lab/a lab/b --size 10", "10"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    lab: Lab, line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shlex.split(line)) == 2
    assert sentence in capsys.readouterr().err
