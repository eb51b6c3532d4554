"""Runs every session of README and manual, each page against a daemon of its own.

As root, because switches make network interfaces and guests want memory; interfaces, sockets and state are
the page's own and go away with it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builds import ROOT
from tests.docs.console import Command, missing_line, pages, read_commands

SECONDS = 120
SESSIONS = {
    str(page.relative_to(ROOT)): read_commands(page.read_text(encoding="utf-8")) for page in pages(ROOT)
}


class Session:
    """A reader's shell: what one command sets, the next one finds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._variables = folder / ".variables"
        self._variables.touch()
        # A page begins where the project is, but what it writes does not belong there.
        (folder / ".venv").symlink_to(ROOT / ".venv")
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "VSWITCH_SOCKET": str(folder / "run" / "api.sock"),
            "VSWITCH_STATE": str(folder / "state"),
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }

    def run(self, text: str) -> "subprocess.CompletedProcess[str]":
        """Types one command; its errors are part of what it prints."""
        script = (
            f"set -a; . {self._variables}\n{text}\n"
            f"ended_with=$?; declare -px >{self._variables}; exit $ended_with\n"
        )
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )

    def clean_up(self) -> None:
        """Ends what a page that went wrong has left: its guests, its interfaces, its daemon."""
        if (self._folder / "run" / "api.sock").exists():
            self.run("vswitch down --force")


@pytest.fixture
def session() -> Iterator[Session]:
    """A shell in an empty folder; what the page leaves is ended."""
    with tempfile.TemporaryDirectory(prefix="vsd-") as name:
        made = Session(Path(name))
        yield made
        made.clean_up()


def check(command: Command, done: "subprocess.CompletedProcess[str]", page: str) -> None:
    where = f"{page}:{command.line}: $ {command.text}"
    assert done.returncode == command.exit_code, f"{where}\nended with {done.returncode}:\n{done.stdout}"
    missing = missing_line(command.expected, done.stdout)
    assert missing is None, f"{where}\ndid not print: {missing}\nbut:\n{done.stdout}"


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page, commands in SESSIONS.items() if commands])
def test_commands_of_a_page_do_what_the_page_shows(page: str, session: Session) -> None:
    if os.geteuid() != 0:
        pytest.skip("wants root")

    for command in SESSIONS[page]:
        check(command, session.run(command.text), page)


def test_session_keeps_variables_and_shows_errors(tmp_path: Path) -> None:
    session = Session(tmp_path)

    session.run("name=web")
    done = session.run('echo "$name"; echo no >&2; false')

    assert (done.returncode, done.stdout) == (1, "web\nno\n")
