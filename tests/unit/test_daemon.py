"""vswitchd, its data plane and the client as processes: who may ask, what survives, what stays behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.daemons import TRACED, Daemon, alive, wait_for
from vswitch import Client, errors, up
from vswitch.daemon import parse_workers
from vswitch.model import PortChange, Switch, VlanAccess


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """One for a test that does something to it."""
    made = Daemon()
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """One for all tests that only ask, with the lab."""
    made = Daemon()
    made.start()
    made.lab()
    yield made
    made.close()


def test_the_socket_is_for_its_owner_and_group_alone(shared: Daemon) -> None:
    assert shared.socket.stat().st_mode & 0o777 == 0o660
    assert shared.socket.parent.stat().st_mode & 0o007 == 0


def test_who_asked_is_kept_with_each_change(shared: Daemon) -> None:
    shared.client.create_switch(Switch(name="asked", type="private"))
    change = shared.client.changes()[0]
    assert (change.who.uid, change.who.pid, change.what) == (os.geteuid(), os.getpid(), "switch create asked")


def test_errors_of_the_daemon_are_raised_in_the_client(shared: Daemon) -> None:
    with pytest.raises(errors.NotFoundError, match="no switch is named nope") as caught:
        shared.client.switch("nope")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("request_line", "body", "status", "code"),
    [
        ("GET /v1/nope", b"", 404, "not_found"),
        ("DELETE /v1/status", b"", 405, "not_found"),
        ("POST /v1/switches", b"{", 400, "invalid"),
        ("POST /v1/switches", b'{"name": "lab"}', 400, "invalid"),
        ("POST /v1/switches", b'{"name": 1, "type": "private"}', 400, "invalid"),
        ("PATCH /v1/ports/lab/a", b'{"vlan": {"mode": "access", "vid": 4095}}', 400, "invalid"),
        ("GET /v1/changes?limit=x", b"", 400, "invalid"),
        ("DELETE /v1/ports/lab/a/acls", b"", 400, "invalid"),
    ],
)
def test_odd_requests_get_a_clear_error(
    shared: Daemon, request_line: str, body: bytes, status: int, code: str
) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(shared.socket)), base_url="http://x") as http:
        answer = http.request(
            *request_line.split(), content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["sentence"]
        assert http.get("/docs").status_code == 200
        assert "/v1/ports/{owner}/{port}/trace" in http.get("/openapi.json").json()["paths"]


def test_a_second_daemon_on_the_same_state_is_refused(shared: Daemon) -> None:
    command = [sys.executable, "-m", "vswitch.daemon", "--state", str(shared.state_dir)]
    for api, said in ((shared.folder / "x" / "api.sock", "runs already"), (shared.socket, "runs already")):
        ended = subprocess.run([*command, "--socket", str(api)], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert said in ended.stderr
    assert up(shared.state_dir, shared.socket)[1] is False


@pytest.mark.parametrize("name", ["api.sock", "other.sock"])
def test_two_daemons_never_share_a_directory_of_sockets(shared: Daemon, name: str) -> None:
    """Each would take the other's data plane for one that an earlier daemon left, and end it."""
    api = shared.socket.parent / name
    before = shared.client.status()
    command = [sys.executable, "-m", "vswitch.daemon", "--state", str(shared.folder / "other")]
    ended = subprocess.run([*command, "--socket", str(api)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"another vswitchd uses {api.parent}. give this one a --socket" in ended.stderr
    after = shared.client.status()
    assert (after.pid, after.dataplane_pid, after.dataplane_restarts) == (
        before.pid,
        before.dataplane_pid,
        before.dataplane_restarts,
    )


def test_the_group_and_mode_of_a_directory_that_was_there_stay() -> None:
    made = Daemon()
    theirs = made.socket.parent
    theirs.mkdir(mode=0o755)
    if os.geteuid() == 0:
        os.chown(theirs, -1, 1)
    before = theirs.stat()
    try:
        made.start()
        after = theirs.stat()
        assert (after.st_gid, after.st_mode) == (before.st_gid, before.st_mode)
    finally:
        made.close()


def test_a_daemon_never_takes_the_socket_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(1)
        command = [sys.executable, "-m", "vswitch.daemon", "--state", str(tmp_path / "state")]
        ended = subprocess.run([*command, "--socket", str(path)], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, "another program listens" in ended.stderr) == (2, True)
        assert path.exists()


def test_a_dead_data_plane_is_replaced_with_all_its_rules(daemon: Daemon) -> None:
    daemon.lab()
    old = daemon.client.status().dataplane_pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: daemon.client.status().dataplane_pid not in (None, old))
    wait_for(lambda: daemon.client.status().dataplane_restarts == 1)
    assert daemon.client.trace("lab/a", TRACED).drops == ["acl_deny"]


def test_a_killed_daemon_is_followed_by_one_that_wants_the_same(daemon: Daemon) -> None:
    daemon.lab()
    before = daemon.client.status()
    os.kill(before.pid, signal.SIGKILL)
    wait_for(lambda: not alive(before.pid))
    assert before.dataplane_pid is not None
    assert alive(before.dataplane_pid)  # frames go on
    daemon.start()
    assert not alive(before.dataplane_pid)
    assert daemon.client.trace("lab/a", TRACED).drops == ["acl_deny"]


def test_the_data_plane_goes_on_when_the_daemon_is_terminated(daemon: Daemon) -> None:
    before = daemon.client.status()
    os.kill(before.pid, signal.SIGTERM)
    wait_for(lambda: not alive(before.pid))
    assert alive(before.dataplane_pid or 0)
    assert not daemon.socket.exists()
    daemon.start()


def test_down_leaves_nothing_behind() -> None:
    daemon = Daemon()
    daemon.start()
    daemon.lab()
    status = daemon.client.status()
    path = Path(daemon.client.port("lab/a").socket or "")
    assert path.is_socket()
    daemon.client.stop()
    assert not alive(status.pid)
    assert not alive(status.dataplane_pid or 0)
    assert not path.exists()
    assert not daemon.socket.exists()
    with pytest.raises(errors.UnavailableError, match="vswitchd is not running"):
        daemon.client.status()
    daemon.close()


def test_a_capture_ends_with_its_reader_and_can_be_started_again(shared: Daemon) -> None:
    for _ in range(2):
        with shared.client.capture("lab/a") as chunks:
            assert next(chunks).startswith(b"\x0a\x0d\x0d\x0a")
            with (
                pytest.raises(errors.ConflictError, match="being captured already"),
                shared.client.capture("lab/a"),
            ):
                pass
        wait_for(lambda: _can_capture(shared))


def _can_capture(daemon: Daemon) -> bool:
    try:
        with daemon.client.capture("lab/a"):
            return True
    except errors.ConflictError:
        return False


def test_settings_change_while_others_stay(shared: Daemon) -> None:
    shared.client.set_port("lab/a", PortChange(vlan=VlanAccess(vid=100)))
    port = shared.client.set_port("lab/a", PortChange(mtu=1400))
    assert (port.vlan, port.mtu) == (VlanAccess(vid=100), 1400)
    assert shared.client.trace("lab/a", TRACED).drops == ["vlan_not_member"]


def test_a_client_without_a_daemon_says_how_to_start_one() -> None:
    with pytest.raises(errors.UnavailableError) as caught:
        Client("/nope/api.sock").status()
    assert caught.value.way_out == "start it with `vswitch up`"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("text", ["", "x", "0,0", "9999", "1-", "-2"])
def test_worker_lists_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(errors.InvalidInputError, match="--workers"):
        parse_workers(text)


def test_worker_lists_are_cpus() -> None:
    first = min(os.sched_getaffinity(0))
    assert parse_workers(f"{first}") == (first,)
    assert parse_workers("-1") == (-1,)


def test_a_daemon_that_hangs_is_told_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vswitch.client._QUICK_S", 0.2)
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen(1)
        before = time.monotonic()
        with pytest.raises(errors.UnavailableError, match="does not answer"):
            Client(path).status()
        assert time.monotonic() - before < 30  # not the 60 s that a change may take
