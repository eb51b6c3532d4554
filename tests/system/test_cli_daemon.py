"""The command line against the real daemon and data plane: what it says is what happens to frames."""

import json
import os
import shlex
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils import rdpcap, wrpcap

from vswitch.cli import run

pytestmark = pytest.mark.system

SOURCE, TARGET = "52:54:00:00:00:01", "52:54:00:00:00:02"
DEADLINE_S = 20.0


class Cli:
    """`vswitch` with a daemon of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], state: Path) -> None:
        self._capsys = capsys
        self.state = state

    def __call__(self, line: str) -> Any:
        """What a command that must succeed answers as JSON."""
        code, out, err = self.run(f"--json {line}")
        assert code == 0, err
        return json.loads(out)

    def run(self, line: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self._capsys.readouterr()
        code = run(shlex.split(line))
        written = self._capsys.readouterr()
        return code, written.out, written.err

    def refused(self, line: str) -> str:
        """The sentence of a command that must be the user's mistake."""
        code, _, err = self.run(f"--json {line}")
        assert code == 2, err
        return str(json.loads(err)["error"]["sentence"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the daemon of these tests lives; it is started once, and by tests that ended it."""
    home = tmp_path_factory.mktemp("cli")
    options = ["--socket", f"{home}/run/api.sock", "--state", f"{home}/state"]
    assert run(["up", *options]) == 0
    yield home
    assert run(["down", "--force", *options]) == 0


@pytest.fixture
def cli(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cli]:
    monkeypatch.setenv("VSWITCH_SOCKET", f"{home}/run/api.sock")
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys, home / "state")
    yield cli
    for switch in cli("switch list"):
        cli(f"switch delete {switch['name']} --force")


def _replay(name: str, frames: list[Packet]) -> str:
    wrpcap(name, frames)
    return name


def _eventually(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not fact():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _icmp(tagged: int | None = None) -> Packet:
    ether = Ether(src=SOURCE, dst=TARGET)
    return (ether / Dot1Q(vlan=tagged) if tagged else ether) / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP()


def _udp() -> Packet:
    return Ether(src=SOURCE, dst=TARGET) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=9) / bytes(64)


def test_a_rule_counts_drops_and_shows_what_the_data_plane_did(cli: Cli) -> None:
    cli("switch create lab --type private")
    cli(f"port add lab/dst --kind pcap --write got.pcap --mac {TARGET}")
    rule = cli("acl add lab/dst --direction in --action deny --weight 10 --protocol icmp")
    file = _replay("sent.pcap", [_icmp(), _udp(), _icmp(), _udp(), _udp()])
    cli(f"port add lab/src --kind pcap --replay {file} --mac {SOURCE}")
    _eventually(lambda: cli("port stats lab/dst")[0]["to_packets"] == 3)
    _eventually(lambda: cli("acl list lab/dst")[0]["packets"] == 2)
    assert cli("acl list lab/dst")[0]["id"] == rule["id"]
    [drop] = cli("drops --port lab/dst")
    assert (drop["reason"], drop["packets"]) == ("acl_deny", 2)
    stats = cli("port stats lab/src")[0]
    assert (stats["from_packets"], stats["to_packets"]) == (5, 0)
    cli("port delete lab/dst")
    assert [packet.haslayer(UDP) for packet in rdpcap("got.pcap")] == [1, 1, 1]


def test_trace_names_the_entry_that_decides(cli: Cli) -> None:
    cli("switch create lab --type private")
    cli(f"port add lab/a --kind pcap --write a.pcap --mac {SOURCE} --vlan 100")
    cli(f"port add lab/b --kind pcap --write b.pcap --mac {TARGET} --vlan 200")
    question = f'trace lab/a \'Ether(src="{SOURCE}",dst="{TARGET}")/IP(dst="10.0.0.2")/ICMP()\''
    assert cli(question)["drops"] == ["vlan_not_member"]
    cli("port set lab/b --vlan 100")
    rule = cli("acl add lab/b --direction in --action deny --weight 7 --protocol icmp")
    trace = cli(question)
    assert trace["drops"] == ["acl_deny"]
    assert [step["rule"] for step in trace["steps"] if step["rule"] is not None] == [rule["id"]]
    cli("acl delete lab/b --direction in --weight 7")
    assert cli("acl list lab/b") == []
    assert "acl_deny" not in cli(question)["drops"]


def test_a_frame_can_be_given_as_hex_or_as_a_capture(cli: Cli) -> None:
    cli("switch create lab --type private")
    cli(f"port add lab/a --kind vhost-user --mac {SOURCE}")
    arp = Ether(src=SOURCE, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.0.2")
    by_hex = cli(f"trace lab/a {bytes(arp).hex()}")
    by_file = cli(f"trace lab/a {_replay('arp.pcap', [arp])}")
    assert by_hex["steps"] == by_file["steps"]
    assert by_hex["frame_bytes"] == len(arp)


def test_capture_writes_what_passes_and_ends_at_its_count(cli: Cli) -> None:
    cli("switch create lab --type private")
    cli(f"port add lab/dst --kind pcap --write got.pcap --mac {TARGET} --vlan 5")
    gaps = [_udp() for _ in range(30)]
    for number, frame in enumerate(gaps):
        frame.time = 1000 + 0.2 * number
    cli(f"port add lab/src --kind pcap --replay {_replay('sent.pcap', gaps)} --timed --mac {SOURCE} --vlan 5")
    assert cli("capture lab/dst --write seen.pcapng --count 3") == {
        "file": "seen.pcapng",
        "frames": 3,
        "lost": 0,
    }
    assert [bytes(packet) for packet in rdpcap("seen.pcapng")] == 3 * [bytes(_udp())]


def test_a_mistake_is_named_and_nothing_changes(cli: Cli) -> None:
    cli("switch create lab --type private")
    cli(f"port add lab/a --kind vhost-user --mac {SOURCE} --socket {Path.cwd()}/a.sock --listen")
    cli("acl add lab/a --direction in --action deny --weight 10")
    before = (cli("switch list"), cli("port list"), cli("acl list lab/a"), len(cli("changes")))
    for line, named in [
        ("switch create lab --type internal", "lab"),
        ("vm create lab --kernel /etc/hostname", "lab"),
        ("port add lab/a --kind tap --device tap0", "lab/a"),
        (f"port add lab/b --kind vhost-user --mac {SOURCE}", SOURCE),
        (f"port add lab/b --kind vhost-user --listen --socket {Path.cwd()}/a.sock", "a.sock"),
        ("port add nowhere/b --kind vhost-user", "nowhere"),
        ("port set lab/z --vlan 5", "lab/z"),
        ("port set lab/a --switch nowhere", "nowhere"),
        ("acl add lab/a --direction in --action allow --weight 10", "10"),
        ("acl delete lab/a --rule 999", "999"),
        ("fdb add lab 02:00:00:00:00:01 lab/z", "lab/z"),
        ("switch delete lab", "lab/a"),
        ("switch delete nowhere", "nowhere"),
        ("vm start ghost", "ghost"),
        ("trace lab/a 00f", "3 hex digits"),
    ]:
        assert named in cli.refused(line), line
    assert (cli("switch list"), cli("port list"), cli("acl list lab/a"), len(cli("changes"))) == before


def test_a_static_address_comes_and_goes(cli: Cli) -> None:
    cli("switch create lab --type private")
    cli(f"port add lab/a --kind vhost-user --mac {SOURCE} --allow-spoofing")
    cli("fdb add lab 02:00:00:00:00:09 lab/a --vlan 5")
    assert {(entry["mac"], entry["vid"]) for entry in cli("fdb list lab")} == {
        (SOURCE, None),
        ("02:00:00:00:00:09", 5),
    }
    cli("fdb delete lab 02:00:00:00:00:09 --vlan 5")
    cli("fdb flush lab")
    assert [entry["mac"] for entry in cli("fdb list lab")] == [SOURCE]


def test_settings_outlive_down_and_up(cli: Cli) -> None:
    cli("switch create lab --type private")
    cli("port add lab/a --kind vhost-user --trunk 1-10,20 --native-vlan 1 --mtu 1500")
    before = cli("port show lab/a")
    cli("down")
    assert cli(f"up --state {cli.state}")["started"] is True
    after = cli("port show lab/a")
    for field in ("id", "mac", "vlan", "mtu", "socket"):
        assert after[field] == before[field]


def test_down_cleans_up_what_a_killed_daemon_left(cli: Cli) -> None:
    status = cli("status")
    os.kill(status["pid"], signal.SIGKILL)
    _eventually(lambda: cli.run("status")[0] == 1)
    assert _runs(status["dataplane_pid"]), "it outlives the daemon"
    assert cli(f"down --state {cli.state}") == {"stopped": True}
    assert not _runs(status["dataplane_pid"])
    cli(f"up --state {cli.state}")


def test_a_new_data_plane_takes_switches_before_any_port(cli: Cli) -> None:
    cli("down")
    cli(f"up --state {cli.state}")
    for _ in range(3):
        cli("switch create lab --type private")
        cli("switch delete lab")
    status = cli("status")
    assert (status["dataplane_restarts"], status["dataplane_error"]) == (0, "")


def test_the_socket_is_for_the_group_only(cli: Cli) -> None:
    mode = Path(cli("status")["socket"]).stat()
    assert stat.S_IMODE(mode.st_mode) == 0o660


def test_changes_say_who_did_what(cli: Cli) -> None:
    cli("switch create lab --type private")
    [change] = cli("changes --limit 1")
    assert change["who"]["uid"] == os.geteuid()
    assert change["who"]["pid"] == os.getpid()
    assert change["what"] == "switch create lab"
