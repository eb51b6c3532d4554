"""The client's own words: when nobody answers, and when this user may not ask."""

import os
import socket
from pathlib import Path

import pytest

from vswitch import errors
from vswitch.cli import run
from vswitch.client import Client


@pytest.fixture
def closed_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A daemon's socket that this user may not use. (Root always may: so access is told to say no.)"""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.chmod(0)
    monkeypatch.setattr(os, "access", lambda *_args, **_more: False)
    return path


def test_who_may_not_use_the_socket_is_told_which_group_to_join(closed_socket: Path) -> None:
    with Client(closed_socket) as client, pytest.raises(errors.NotPermittedError) as caught:
        client.status()
    assert caught.value.sentence == f"this user may not use {closed_socket}"
    assert "join the group vswitch" in caught.value.way_out


def test_the_command_line_says_so_too(closed_socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--socket", str(closed_socket), "status"]) == errors.NotPermittedError.exit_code
    assert f"error: this user may not use {closed_socket}" in capsys.readouterr().err


def test_nobody_there_is_told_with_how_to_start_it(tmp_path: Path) -> None:
    with Client(tmp_path / "none.sock") as client, pytest.raises(errors.UnavailableError) as caught:
        client.status()
    assert "vswitchd is not running" in caught.value.sentence
    assert "vswitch up" in caught.value.way_out
