"""The contract of the command line: what each command asks of the daemon, what it prints, how it fails.

The daemon is a fake on a real socket (fake_daemon.py), so requests are seen as they travel.
"""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.fake_daemon import FakeDaemon, fake_daemon
from vswitch import errors
from vswitch.cli import run
from vswitch.connections import Connection
from vswitch.diagnosis import Cause, Since, Why
from vswitch.model import (
    AclRuleInfo,
    Change,
    Console,
    DropCount,
    FdbEntry,
    PortInfo,
    PortState,
    PortStats,
    QemuArgs,
    Status,
    SwitchInfo,
    Trace,
    TraceStep,
    VlanAccess,
    VmInfo,
    Who,
    WorkerStatus,
)

LAB = SwitchInfo(name="lab", type="private", ports=["web/eth0", "lab/db"])
STATE = PortState(
    link=True,
    connected=True,
    fault=None,
    queues=1,
    packed=True,
    features=1 << 34 | 1,
    reconnects=2,
    learned=0,
)
WEB = PortInfo(
    id=1,
    name="web/eth0",
    kind="vhost-user",
    switch="lab",
    mac="52:54:00:00:00:01",
    vlan=VlanAccess(vid=100),
    state=STATE,
)
DB = PortInfo(
    id=2,
    name="lab/db",
    kind="vhost-user",
    switch="lab",
    mac="52:54:00:00:00:02",
    socket="/tmp/db",
    listen=True,
)
STATS = PortStats(
    name="web/eth0",
    from_packets=10,
    from_bytes=1000,
    from_group_packets=1,
    to_packets=20,
    to_bytes=2000,
    to_group_packets=2,
    drops={"acl_deny": 3},
)
TALK = Connection(
    port="web/eth0",
    direction="in",
    protocol="tcp",
    from_ip="10.0.0.1",
    from_port=40000,
    to_ip="10.0.0.2",
    to_port=80,
    vid=100,
    state="established",
    idle_s=1,
    left_s=254,
    from_packets=3,
    from_bytes=180,
    to_packets=2,
    to_bytes=120,
)
DROP = DropCount(port="web/eth0", reason="acl_deny", sentence="an ACL rule denies it", packets=3)
RULE = AclRuleInfo(id=7, direction="in", action="deny", weight=10, protocol="icmp", packets=4, bytes=400)
ENTRY = FdbEntry(mac="52:54:00:00:00:01", vid=None, port="web/eth0", static=True, idle_s=0)
VM = VmInfo(
    name="web",
    memory_bytes=512 << 20,
    kernel="/k",
    state="running",
    pid=4,
    accelerator="tcg",
    ports=["web/eth0"],
)
TRACE = Trace(
    port="web/eth0",
    frame_bytes=60,
    steps=[TraceStep(kind="drop", text="dropped: an ACL rule denies it", reason="acl_deny")],
    outputs=[],
    drops=["acl_deny"],
    text="It enters at web/eth0.\nIt is dropped: an ACL rule denies it.",
)
CHANGE = Change(
    id=1,
    when="2026-11-24T21:00:00Z",
    who=Who(uid=0, pid=9, name="root"),
    what="port web/eth0",
    before={"ports 1": {"mtu": 9000, "vlan": {"mode": "untagged"}}},
    after={"ports 1": {"mtu": 9000, "vlan": {"mode": "access", "vid": 100}}},
)
WHY = Why(
    from_port="web/eth0",
    to_port="lab/db",
    subject="tcp/22",
    ok=False,
    causes=[
        Cause(
            kind="acl",
            port="lab/db",
            way="there",
            rule=7,
            sentence="rule 7 of lab/db drops a tcp segment",
            since=Since(when="2026-11-24T21:00:00Z", who="root", what="acl add lab/db"),
            mend=[["vswitch", "acl", "delete", "lab/db", "--rule", "7"]],
        )
    ],
    walks=[],
    remarks=[],
)
WORKER = WorkerStatus(
    cpu=None,
    queues=2,
    turns=1,
    empty_turns=1,
    sleeps=1,
    packets=30,
    cache_hits=28,
    cache_misses=2,
    cache_entries=2,
    guest_bytes=3000,
)
STATUS = Status(
    version="0.1.0",
    pid=4194303,  # nobody's
    uptime_s=61.0,
    socket="/s",
    state_dir="/d",
    dataplane_pid=2,
    dataplane_restarts=0,
    workers=[WORKER],
    switches=1,
    ports=2,
    vms=1,
    vms_running=1,
    accelerator="tcg: /dev/kvm is missing",
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, whatever the terminal behind the tests: parallel runs hand its width down."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path) as fake:
        monkeypatch.setenv("VSWITCH_SOCKET", str(fake.socket))
        monkeypatch.chdir(tmp_path)
        yield fake


Capture = pytest.CaptureFixture[str]


def called(line: str, code: int = 0) -> None:
    """Runs a command line, as a shell would cut it, and checks its exit code."""
    assert run(shlex.split(line)) == code


def printed(capsys: Capture) -> Any:
    """What the command wrote as JSON."""
    return json.loads(capsys.readouterr().out)


# ---- each command that reads: its --json is the model's, its text has the facts ----

READS: list[tuple[str, dict[str, object], object, list[str]]] = [
    ("switch list", {"GET /v1/switches": [LAB]}, [LAB], ["lab", "private", "2"]),
    ("switch show lab", {"GET /v1/switches/lab": LAB}, LAB, ["web/eth0, lab/db", "300 s"]),
    ("port list", {"GET /v1/ports": [WEB, DB]}, [WEB, DB], ["web/eth0", "access 100", "up", "unknown"]),
    (
        "port stats web/eth0",
        {"GET /v1/ports/web/eth0/stats": STATS},
        [STATS],
        ["FROM VM", "TO VM", "2000", "3"],
    ),
    (
        "port show lab/db --qemu-args",
        {"GET /v1/ports/lab/db/qemu-args": QemuArgs(args=["-netdev", "x y"], version="7.2")},
        QemuArgs(args=["-netdev", "x y"], version="7.2"),
        ["-netdev 'x y'"],
    ),
    ("acl list web/eth0", {"GET /v1/ports/web/eth0/acls": [RULE]}, [RULE], ["to VM", "deny", "icmp", "400"]),
    ("fdb list lab", {"GET /v1/switches/lab/fdb": [ENTRY]}, [ENTRY], ["all", "static", "web/eth0"]),
    (
        "connections list --port web/eth0",
        {"GET /v1/connections": [TALK]},
        [TALK],
        ["web/eth0", "to VM", "tcp", "10.0.0.1:40000", "10.0.0.2:80", "established"],
    ),
    ("drops", {"GET /v1/drops": [DROP]}, [DROP], ["acl_deny", "3", "an ACL rule denies it"]),
    (
        "trace web/eth0 ff00",
        {"POST /v1/ports/web/eth0/trace": TRACE},
        TRACE,
        ["It is dropped: an ACL rule denies it."],
    ),
    ("vm list", {"GET /v1/vms": [VM]}, [VM], ["web", "running", "512 MiB", "tcg", "web/eth0"]),
    (
        "why web db tcp/22",
        {"POST /v1/why": WHY},
        WHY,
        [
            "tcp/22 from web/eth0 to lab/db does not work:",
            "- rule 7 of lab/db drops a tcp segment (on the way there).",
            "since:  2026-11-24 21:00:00 UTC, root: acl add lab/db",
            "mend:   vswitch acl delete lab/db --rule 7",
        ],
    ),
    (
        "status",
        {"GET /v1/status": STATUS},
        STATUS,
        ["process 2", "1 min", "/dev/kvm is missing", "28", "any"],
    ),
    (
        "changes",
        {"GET /v1/changes": [CHANGE]},
        [CHANGE],
        ["2026-11-24 21:00:00", "root", "port web/eth0", "vlan: untagged → access 100\n"],
    ),
]


def _jsonable(value: object) -> Any:
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value.model_dump(mode="json")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("line", "answers", "model", "_words"), READS, ids=[read[0] for read in READS])
def test_json_of_a_command_is_the_models_json(
    daemon: FakeDaemon,
    capsys: Capture,
    line: str,
    answers: dict[str, object],
    model: object,
    _words: list[str],
) -> None:
    for request, answer in answers.items():
        daemon.answers(request, answer)
    called(f"{line} --json")
    assert printed(capsys) == _jsonable(model)


@pytest.mark.parametrize(("line", "answers", "_model", "words"), READS, ids=[read[0] for read in READS])
def test_text_of_a_command_has_the_facts(
    daemon: FakeDaemon,
    capsys: Capture,
    line: str,
    answers: dict[str, object],
    _model: object,
    words: list[str],
) -> None:
    for request, answer in answers.items():
        daemon.answers(request, answer)
    called(line)
    written = capsys.readouterr()
    for word in words:
        assert word in written.out
    assert "\x1b" not in written.out, "colours belong on terminals"


def test_json_before_the_command_is_the_same(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/switches", [LAB])
    called("--json switch list")
    assert printed(capsys)[0]["name"] == "lab"


def test_port_show_has_settings_state_counters_and_drops(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/ports/web/eth0", WEB)
    daemon.answers("GET /v1/ports/web/eth0/stats", STATS)
    daemon.answers("GET /v1/drops", [DROP])
    called("port show web/eth0")
    text = capsys.readouterr().out
    for fact in (
        "VLAN access 100",
        "csum ring_packed",
        "10 packets, 1000 bytes",
        "3 acl_deny: an ACL rule denies it",
    ):
        assert fact in text
    called("port show web/eth0 --json")
    shown = printed(capsys)
    assert shown["stats"]["to_packets"] == 20
    assert shown["drops"][0]["reason"] == "acl_deny"
    assert shown["state"]["packed"] is True


def test_port_show_says_the_fault_in_its_sentence(daemon: FakeDaemon, capsys: Capture) -> None:
    fault = "the guest's available index jumped by more than the ring's size"
    faulty = WEB.model_copy(update={"state": STATE.model_copy(update={"fault": fault, "link": False})})
    daemon.answers("GET /v1/ports/web/eth0", faulty)
    daemon.answers("GET /v1/ports/web/eth0/stats", STATS)
    daemon.answers("GET /v1/drops", [])
    called("port show web/eth0")
    assert fault in capsys.readouterr().out


def test_port_show_says_what_is_wrong_with_a_file_and_that_a_replay_is_through(
    daemon: FakeDaemon, capsys: Capture
) -> None:
    said = "/r.pcap is damaged: its replay has ended there"
    state = STATE.model_copy(update={"file_error": said, "replay_ended": True})
    port = PortInfo(id=1, name="web/eth0", kind="pcap", switch="lab", replay="/r.pcap", state=state)
    daemon.answers("GET /v1/ports/web/eth0", port)
    daemon.answers("GET /v1/ports/web/eth0/stats", STATS)
    daemon.answers("GET /v1/drops", [])
    called("port show web/eth0")
    text = " ".join(capsys.readouterr().out.split())
    assert said in text
    assert "replay has ended" in text


def test_vm_show_has_its_nics(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/vms/web", VM)
    daemon.answers("GET /v1/ports", [WEB])
    called("vm show web --json")
    assert printed(capsys)["nics"][0]["mac"] == "52:54:00:00:00:01"
    assert daemon.last.query == {"owner": ["web"]}


# ---- each command that changes: what it asks for, what it says ----


class Changing(NamedTuple):
    """A command line that changes something, and the one request that it makes."""

    line: str
    request: str
    body: object
    query: dict[str, list[str]]
    answer: object


CHANGES = [
    Changing(
        "switch create lab --type private", "POST /v1/switches", {"name": "lab", "type": "private"}, {}, LAB
    ),
    Changing(
        "switch create lab --type internal --ageing 60 --fdb-size 100",
        "POST /v1/switches",
        {"name": "lab", "type": "internal", "ageing_s": 60, "fdb_size": 100},
        {},
        LAB,
    ),
    Changing(
        "nic attach web lab,vlan=5",
        "POST /v1/vms/web/nics",
        {"switch": "lab", "vlan": {"mode": "access", "vid": 5}},
        {},
        WEB,
    ),
    Changing("nic detach web/eth0", "DELETE /v1/vms/web/nics/eth0", None, {}, {}),
    Changing("nic connect web/eth0 lab", "PUT /v1/vms/web/nics/eth0/switch", {"switch": "lab"}, {}, WEB),
    Changing("nic disconnect web/eth0", "PUT /v1/vms/web/nics/eth0/switch", {"switch": None}, {}, WEB),
    Changing("switch set lab --ageing 0", "PATCH /v1/switches/lab", {"ageing_s": 0}, {}, LAB),
    Changing("switch delete lab", "DELETE /v1/switches/lab", None, {}, {}),
    Changing(
        "port add lab/db --kind vhost-user --listen --socket /tmp/db --queues 2 --vlan 5",
        "POST /v1/ports",
        {
            "name": "lab/db",
            "kind": "vhost-user",
            "switch": "lab",
            "socket": "/tmp/db",
            "listen": True,
            "queues": 2,
            "vlan": {"mode": "access", "vid": 5},
        },
        {},
        DB,
    ),
    Changing(
        "port set web/eth0 --vlan 100",
        "PATCH /v1/ports/web/eth0",
        {"vlan": {"mode": "access", "vid": 100}},
        {},
        WEB,
    ),
    Changing(
        "port set web/eth0 --trunk 1-10,20 --native-vlan 1",
        "PATCH /v1/ports/web/eth0",
        {"vlan": {"mode": "trunk", "allowed": "1-10,20", "native_vid": 1}},
        {},
        WEB,
    ),
    Changing(
        "port set web/eth0 --vlan-mode any", "PATCH /v1/ports/web/eth0", {"vlan": {"mode": "any"}}, {}, WEB
    ),
    Changing(
        "port set web/eth0 --no-allow-spoofing --mtu 1500 --storm-limit 0 --trust-pcp --disable"
        " --mac 52-54-00-00-00-09",
        "PATCH /v1/ports/web/eth0",
        {
            "allow_spoofing": False,
            "mtu": 1500,
            "storm_limit": 0,
            "trust_pcp": True,
            "enabled": False,
            "mac": "52:54:00:00:00:09",
        },
        {},
        WEB,
    ),
    Changing("port set web/eth0 --switch office", "PATCH /v1/ports/web/eth0", {"switch": "office"}, {}, WEB),
    Changing(
        "port set web/eth0 --unplug --enable",
        "PATCH /v1/ports/web/eth0",
        {"enabled": True, "switch": None},
        {},
        WEB,
    ),
    Changing("port delete lab/db", "DELETE /v1/ports/lab/db", None, {}, {}),
    Changing(
        "acl add web/eth0 --direction in --action allow --weight 10 --protocol 6 --local-port 80-81"
        " --remote-ip 10.0.0.0/8",
        "POST /v1/ports/web/eth0/acls",
        {
            "direction": "in",
            "action": "allow",
            "weight": 10,
            "protocol": "tcp",
            "local_port": "80-81",
            "remote_ip": "10.0.0.0/8",
        },
        {},
        RULE,
    ),
    Changing(
        "acl add web/eth0 --direction in --action allow --weight 10 --stateful --idle-timeout 30",
        "POST /v1/ports/web/eth0/acls",
        {"direction": "in", "action": "allow", "weight": 10, "stateful": True, "idle_timeout_s": 30},
        {},
        RULE,
    ),
    Changing(
        "connections flush --port web/eth0",
        "POST /v1/connections/flush",
        None,
        {"port": ["web/eth0"]},
        {"ended": 3},
    ),
    Changing(
        "port set web/eth0 --connection-limit 5",
        "PATCH /v1/ports/web/eth0",
        {"connection_limit": 5},
        {},
        WEB,
    ),
    Changing("acl delete web/eth0 --rule 7", "DELETE /v1/ports/web/eth0/acls/7", None, {}, {}),
    Changing(
        "acl delete web/eth0 --direction out --weight 5",
        "DELETE /v1/ports/web/eth0/acls",
        None,
        {"direction": ["out"], "weight": ["5"]},
        {},
    ),
    Changing("acl delete web/eth0 --all", "DELETE /v1/ports/web/eth0/acls", None, {"all": ["true"]}, {}),
    Changing(
        "fdb add lab 02:00:00:00:00:01 lab/db --vlan 9",
        "POST /v1/switches/lab/fdb",
        {"mac": "02:00:00:00:00:01", "port": "lab/db", "vid": 9},
        {},
        {},
    ),
    Changing(
        "fdb delete lab 02:00:00:00:00:01",
        "DELETE /v1/switches/lab/fdb/02:00:00:00:00:01",
        None,
        {"vid": ["0"]},
        {},
    ),
    Changing(
        "fdb flush lab --port lab/db", "POST /v1/switches/lab/fdb/flush", None, {"port": ["lab/db"]}, {}
    ),
    Changing(
        "vm create web --kernel /k --initrd /i --memory 256M --cpus 2 --nic lab,vlan=7 --nic office"
        " --cmdline 'a b'",
        "POST /v1/vms",
        {
            "name": "web",
            "memory_bytes": 256 << 20,
            "cpus": 2,
            "kernel": "/k",
            "initrd": "/i",
            "cmdline": "a b",
            "disks": [],
            "nics": [{"switch": "lab", "vlan": {"mode": "access", "vid": 7}}, {"switch": "office"}],
        },
        {},
        VM,
    ),
    Changing("vm start web", "POST /v1/vms/web/start", None, {}, VM),
    Changing("vm stop web --timeout 5", "POST /v1/vms/web/stop", {"timeout_s": 5.0, "force": False}, {}, VM),
    Changing("vm stop web --force", "POST /v1/vms/web/stop", {"timeout_s": 30.0, "force": True}, {}, VM),
    Changing("vm delete web", "DELETE /v1/vms/web", None, {}, {}),
]


def _only_given(body: Any, given: Any) -> Any:
    """`body` without the fields that `given` does not have."""
    if isinstance(body, dict) and isinstance(given, dict):
        return {key: _only_given(value, given[key]) for key, value in body.items() if key in given}
    if isinstance(body, list) and isinstance(given, list):
        return [_only_given(value, other) for value, other in zip(body, given, strict=True)]
    return body


@pytest.mark.parametrize("change", CHANGES, ids=[change.line for change in CHANGES])
def test_a_change_is_one_request_with_just_what_was_given(
    daemon: FakeDaemon, capsys: Capture, change: Changing
) -> None:
    daemon.answers(change.request, change.answer)
    called(change.line)
    [request] = daemon.requests
    assert f"{request.method} {request.path}" == change.request
    # A new thing's defaults may be sent or not; a change must not touch what was not given.
    given = _only_given(request.body, change.body) if request.method == "POST" else request.body
    assert given == change.body
    assert request.query == change.query
    written = capsys.readouterr().out
    assert written.count("\n") == 1, "one sentence says what was done"
    called(f"--json {change.line}")
    json.loads(capsys.readouterr().out)


def test_relative_files_reach_the_daemon_absolute(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.answers("POST /v1/vms", VM)
    called("vm create web --disk a.qcow2")
    assert daemon.last.body["disks"] == [str(tmp_path / "a.qcow2")]


def test_deleting_a_switch_with_force_takes_its_ports_away_first(daemon: FakeDaemon) -> None:
    host = PortInfo(id=3, name="lab/host", kind="host", switch="lab", device="lab")
    daemon.answers("GET /v1/ports", [DB, host, WEB])
    daemon.answers("DELETE /v1/ports/lab/db", {})
    daemon.answers("PATCH /v1/ports/web/eth0", WEB)
    daemon.answers("DELETE /v1/switches/lab", {})
    called("switch delete lab --force")
    assert [(r.method, r.path, r.body) for r in daemon.requests[1:]] == [
        ("DELETE", "/v1/ports/lab/db", None),
        ("PATCH", "/v1/ports/web/eth0", {"switch": None}),
        ("DELETE", "/v1/switches/lab", None),
    ]


def test_trace_sends_text_as_text_and_a_file_as_a_capture(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.answers("POST /v1/ports/web/eth0/trace", TRACE)
    called("trace web/eth0 'Ether()/IP()'")
    assert daemon.last.body == {"frame": "Ether()/IP()"}
    (tmp_path / "one.pcap").write_bytes(b"\xd4\xc3\xb2\xa1")
    called("trace web/eth0 one.pcap")
    assert daemon.last.body == {"frame": "1MOyoQ==", "format": "pcap"}


def test_console_with_json_says_where_it_is(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/vms/web/console", Console(socket="/run/c", log="/var/l"))
    called("vm console web --json")
    assert printed(capsys) == {"socket": "/run/c", "log": "/var/l"}


# ---- up and down ----


def test_up_says_whether_it_started_the_daemon(
    daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def launch(*arguments: object) -> tuple[Status, bool]:
        asked.extend(arguments)
        return STATUS, True

    monkeypatch.setattr("vswitch.cli.daemon.launch", launch)
    called("up --workers 1 --state /d --json")
    assert printed(capsys)["started"] is True
    assert asked == [Path("/d"), None, "1"]


def test_down_refused_while_vms_run_names_the_way_out(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/status", STATUS)
    daemon.answers("POST /v1/stop", errors.ConflictError("VM web runs", "stop it, or vswitch down --force"))
    called("down", code=2)
    assert capsys.readouterr().err == "error: VM web runs.\ntry: stop it, or vswitch down --force\n"


def test_down_stops_vms_only_with_force(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/status", STATUS)
    daemon.answers("POST /v1/stop", {})
    called("down")
    assert daemon.last.query == {"force": ["false"]}
    called("down --force")
    assert daemon.last.query == {"force": ["true"]}
    assert capsys.readouterr().out == 2 * "vswitchd is down; settings are kept.\n"


def test_down_without_a_daemon_is_done_already(tmp_path: Path, capsys: Capture) -> None:
    called(f"down --socket {tmp_path}/none.sock")
    assert "nothing to stop" in capsys.readouterr().out


def test_down_after_a_crash_starts_the_daemon_to_clean_up(
    daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers("GET /v1/status", errors.UnavailableError("nobody listens"))
    daemon.answers("POST /v1/stop", {})
    asked: list[object] = []

    def launch(*arguments: object) -> tuple[Status, bool]:
        asked.extend(arguments)
        daemon.answers("GET /v1/status", STATUS)
        return STATUS, True

    monkeypatch.setattr("vswitch.cli.daemon.launch", launch)
    called("down --state /d --json")
    assert printed(capsys) == {"stopped": True}
    assert asked == [Path("/d"), None]


# ---- mistakes: one sentence, a way out, exit code 2 ----

MISTAKES: list[tuple[str, str, str]] = [
    ("port lst", "'lst'", "vswitch port --help"),
    ("port show", "OWNER/PORT", "vswitch port show --help"),
    ("port set web/eth0 --frob", "--frob", "vswitch port set --help"),
    ("port set web/eth0 --vlan x", "--vlan", "vswitch port set --help"),
    ("port set web/eth0", "web/eth0", "vswitch port set --help"),
    ("port set web/eth0 --vlan 0", "VLAN 0", ""),
    ("port set web/eth0 --vlan 4095", "VLAN 4095", ""),
    ("port set web/eth0 --trunk 1-10,5-6", "5-6", ""),
    ("port set web/eth0 --vlan 1 --trunk 2", "--vlan and --trunk", "--vlan alone"),
    ("port set web/eth0 --switch lab --unplug", "--switch and --unplug", "one of them"),
    ("port set web/eth0 --mtu 10", "MTU of 10", ""),
    ("port set eth0 --vlan 1", "'eth0'", ""),
    ("port add lab --kind tap", "'lab'", "SWITCH/NAME"),
    ("port add lab/x --kind carrier-pigeon", "carrier-pigeon", ""),
    ("port add lab/x --kind tap --listen", "lab/x is a tap port", ""),
    ("port show web/eth0 --qemu q", "--qemu", "--qemu-args"),
    ("switch create lab --type external", "external", ""),
    ("switch create lab --type external --uplink a --uplink b", "one uplink, not 2", "one --uplink"),
    ("switch create lab --type private --uplink a", "only an external switch", ""),
    ("port add lab/x --kind netdev", "needs a device", ""),
    ("switch create 'l b' --type private", "'l b'", ""),
    ("switch set lab", "lab", "--ageing SECONDS"),
    ("acl add web/eth0 --direction up --action deny --weight 1", "direction", ""),
    ("acl add web/eth0 --direction in --action deny --weight 0", "weight of 0", ""),
    ("acl add web/eth0 --direction in --action deny --weight 1 --local-port 80", "tcp, udp or sctp", ""),
    ("acl add web/eth0 --direction in --action deny --weight 1 --remote-ip 10.0.0.1/8", "10.0.0.0/8", ""),
    ("acl delete web/eth0", "web/eth0", "--rule ID"),
    ("acl delete web/eth0 --weight 1", "direction and its weight", "--direction"),
    ("acl delete web/eth0 --all --rule 1", "web/eth0", "--rule ID"),
    ("acl delete web/eth0 --direction up --weight 1", "'up'", "in (to the VM)"),
    ("fdb add lab nonsense lab/db", "nonsense", ""),
    ("vm create web --memory 512 --disk d", "'512'", "512M"),
    ("vm create web", "nothing to boot", ""),
    ("vm create web --disk d --nic lab,vlam=1", "'vlam'", "vlan"),
    ("trace web/eth0 missing.pcap", "missing.pcap", "hex digits"),
    ("capture web/eth0 --write f --count 0", "--count 0", "above 0"),
    ("changes --limit 0", "limit of 0", "1 or more"),
]


@pytest.mark.parametrize(("line", "named", "way_out"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_sentence_that_names_the_thing(
    daemon: FakeDaemon, capsys: Capture, line: str, named: str, way_out: str
) -> None:
    called(line, code=2)
    written = capsys.readouterr()
    assert written.out == ""
    error, *tries = written.err.splitlines()
    assert error.startswith("error: ")
    assert named in error
    assert len(tries) <= 1
    assert way_out in "".join(tries)
    assert daemon.requests == [], "nothing was changed"


@pytest.mark.parametrize(("line", "named", "_way_out"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_with_json_is_json_on_standard_error(
    daemon: FakeDaemon, capsys: Capture, line: str, named: str, _way_out: str
) -> None:
    called(f"--json {line}", code=2)
    written = capsys.readouterr()
    assert written.out == ""
    error = json.loads(written.err)["error"]
    assert named in error["sentence"]
    assert error["exit_code"] == 2
    assert error["code"] in ("user", "invalid")


def test_a_rule_without_weight_is_told_one_that_is_free(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/ports/web/eth0/acls", [RULE])
    called("acl add web/eth0 --direction in --action deny", code=2)
    assert capsys.readouterr().err.splitlines()[1] == "try: --weight 20"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFoundError("there is no port web/eth9", "vswitch port list"), 2),
        (errors.AlreadyExistsError("weight 10 is taken by rule 7"), 2),
        (errors.DataplaneError("the data plane is gone"), 1),
        (errors.StoreError("the disk under /var/lib/vswitch is full"), 1),
    ],
)
def test_the_daemons_error_arrives_with_its_words_and_its_exit_code(
    daemon: FakeDaemon, capsys: Capture, error: errors.VswitchError, code: int
) -> None:
    daemon.answers("DELETE /v1/ports/web/eth9", error)
    called("port delete web/eth9", code)
    assert error.sentence in capsys.readouterr().err
    called("port delete web/eth9 --json", code)
    assert json.loads(capsys.readouterr().err) == error.to_json()


def test_without_a_daemon_the_way_out_is_up(tmp_path: Path, capsys: Capture) -> None:
    called(f"switch list --socket {tmp_path}/none.sock", code=1)
    error = capsys.readouterr().err
    assert f"{tmp_path}/none.sock" in error
    assert "vswitch up" in error


def test_a_bug_is_one_sentence_and_never_a_traceback(
    daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("vswitch.client.Client.switches", broken)
    called("switch list", code=1)
    error = capsys.readouterr().err
    assert "KeyError" in error
    assert "VSWITCH_DEBUG=1" in error
    assert "Traceback" not in error
    monkeypatch.setenv("VSWITCH_DEBUG", "1")
    with pytest.raises(KeyError):
        run(["switch", "list"])


def test_nonsense_instead_of_an_answer_is_an_error(daemon: FakeDaemon, capsys: Capture) -> None:
    daemon.answers("GET /v1/switches", {"surprise": 1})
    called("switch list", code=1)
    assert "does not fit this client" in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_the_command_quietly(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers("GET /v1/switches", [LAB])
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert run(["switch", "list"]) == 141


# ---- a little more than words ----


def test_drops_watch_shows_what_came_since(
    daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers("GET /v1/drops", [DROP])
    sleeps: list[float] = []

    def wait(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            raise KeyboardInterrupt
        daemon.answers("GET /v1/drops", [DROP.model_copy(update={"packets": 8})])

    monkeypatch.setattr("vswitch.cli.observe.time.sleep", wait)
    called("drops --watch")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:4] == ["web/eth0", "acl_deny", "3", "0"]
    assert lines[3][:4] == ["web/eth0", "acl_deny", "8", "5"]


def test_drops_watch_with_json_is_one_line_per_second(
    daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers("GET /v1/drops", [DROP])

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vswitch.cli.observe.time.sleep", stop)
    called("drops --watch --json")
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)[0]["packets"] == 3


def test_tables_are_never_cut_on_a_pipe(
    daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    reason = "QEMU ended with status 1: " + "x" * 300
    daemon.answers("GET /v1/vms", [VM.model_copy(update={"state": "crashed", "reason": reason})])
    called("vm list")
    assert reason in capsys.readouterr().out


def test_socket_option_goes_before_the_environment(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWITCH_SOCKET", "/nonexistent")
    daemon.answers("GET /v1/switches", [])
    called(f"switch list --socket {daemon.socket}")
    called(f"--socket {daemon.socket} switch list")
    assert len(daemon.requests) == 2
