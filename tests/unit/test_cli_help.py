"""Every command explains itself, its examples are real, the manual has all, the shell completes names."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from tests.unit.fake_daemon import FakeDaemon, fake_daemon
from vswitch.cli import make_app, run
from vswitch.cli.session import EXAMPLES
from vswitch.model import PortInfo, SwitchInfo, VmInfo

ROOT = Path(__file__).parents[2]


def _commands(group: typer.core.TyperGroup, path: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, f"{path} {name}")
        else:
            assert isinstance(command, typer.core.TyperCommand)
            yield f"{path} {name}", command


_ROOT_COMMAND = typer.main.get_command(make_app())
assert isinstance(_ROOT_COMMAND, typer.core.TyperGroup)
COMMANDS = dict(_commands(_ROOT_COMMAND, "vswitch"))


def _examples(command: typer.core.TyperCommand) -> list[str]:
    """The examples as a shell would see them: lines that end in a backslash go on."""
    lines = (command.epilog or "").replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines[lines.index(EXAMPLES) + 1 :]]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path) as fake:
        monkeypatch.setenv("VSWITCH_SOCKET", str(fake.socket))
        monkeypatch.chdir(tmp_path)
        yield fake


def test_the_commands_are_those_that_were_promised() -> None:
    promised = """
        up down status doctor drops trace why capture changes
        switch:create,list,show,set,delete port:add,list,show,set,delete,stats acl:add,list,delete
        connections:list,flush fdb:list,add,delete,flush vm:create,start,stop,list,show,console,delete
        nic:attach,detach,connect,disconnect
    """
    expected = set()
    for word in promised.split():
        noun, _, verbs = word.partition(":")
        expected |= {f"vswitch {noun} {verb}" for verb in verbs.split(",")} if verbs else {f"vswitch {noun}"}
    assert set(COMMANDS) == expected


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_a_purpose_examples_and_a_word_on_every_option(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path.split()[1:], "--help"]) == 0
    text = capsys.readouterr().out
    command = COMMANDS[path]
    assert EXAMPLES in text
    assert path in text.partition(EXAMPLES)[2], "an example shows the command itself"
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"
    for line in (command.epilog or "").splitlines():
        assert len(line) <= 78, "an example fits on a terminal, to be copied"


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_json(path: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[path].params)


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in ("vswitch up", "vswitch doctor")])
def test_examples_are_understood(path: str, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    Path("frame.pcap").write_bytes(b"")
    for example in _examples(COMMANDS[path]):
        # What is for vswitch, of pipes and of other programs' arguments.
        part = next(part for part in example.replace("$(", "|").split("|") if "vswitch" in part)
        words = shlex.split(part.partition(")")[0] if "$(" in example else part)
        words = words[words.index("vswitch") + 1 :]
        assert run(words) == 1, example
        assert "not faked" in capsys.readouterr().err, "it got as far as to ask the daemon"


def test_the_manual_has_every_command_and_option_as_they_are() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts/cli-reference", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    manual = (ROOT / "docs/cli.md").read_text()
    for path, command in COMMANDS.items():
        section = manual.partition(f"### {path}\n")[2].partition("\n### ")[0]
        assert section, f"{path} is not in docs/cli.md"
        options = [name for parameter in command.params for name in parameter.opts if name.startswith("-")]
        assert all(f"`{name}" in section for name in options), path


# ---- completion ----


def _completed(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("_VSWITCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit) as ended:  # typer ends the process after a completion
        run([])
    assert ended.value.code == 0
    written = capsys.readouterr()
    assert written.err == ""
    return written.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vswitch swi", ["switch"]),
        ("vswitch port sh", ["show"]),
        ("vswitch switch show ", ["lab", "office"]),
        ("vswitch switch show of", ["office"]),
        ("vswitch port set we", ["web/eth0"]),
        ("vswitch acl list ", ["web/eth0", "lab/db"]),
        ("vswitch vm stop ", ["web"]),
        ("vswitch vm create x --nic l", ["lab"]),
        ("vswitch port add l", ["lab/"]),
        ("vswitch drops --port lab", ["lab/db"]),
        ("vswitch acl add web/eth0 --action d", ["deny"]),
        ("vswitch acl add web/eth0 --protocol icm", ["icmp", "icmpv6"]),
        ("vswitch switch create x --type p", ["private"]),
    ],
)
def test_names_are_completed_from_the_daemon(
    daemon: FakeDaemon,
    line: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    switches = [SwitchInfo(name=name, type="private", ports=[]) for name in ("lab", "office")]
    ports = [PortInfo(id=1, name="web/eth0", kind="vhost-user"), PortInfo(id=2, name="lab/db", kind="tap")]
    daemon.answers("GET /v1/switches", switches)
    daemon.answers("GET /v1/ports", ports)
    daemon.answers("GET /v1/vms", [VmInfo(name="web", kernel="/k", memory_bytes=1 << 29, state="stopped")])
    assert _completed(line, monkeypatch, capsys) == expected


@pytest.mark.parametrize("line", ["vswitch switch show ", "vswitch port set w", "vswitch vm start "])
def test_completion_is_silent_without_a_daemon(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VSWITCH_SOCKET", str(tmp_path / "none.sock"))
    assert _completed(line, monkeypatch, capsys) == []


def test_completion_asks_the_daemon_of_the_line(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers("GET /v1/vms", [VmInfo(name="web", kernel="/k", memory_bytes=1 << 29, state="stopped")])
    monkeypatch.setenv("VSWITCH_SOCKET", "/nonexistent")
    assert _completed(f"vswitch --socket {daemon.socket} vm start ", monkeypatch, capsys) == ["web"]
    assert _completed(f"vswitch vm start --socket {daemon.socket} ", monkeypatch, capsys) == ["web"]
