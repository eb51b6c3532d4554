"""Finds the commands in the manual's pages and runs them as a reader would.

A block that begins with ```console is a session: lines with `$ ` in front are commands, the lines behind
one are what it prints. Any run of characters may stand where the page has `…`; lines that the page leaves
out are of no interest, but those it shows must come, in this order. A command's exit code is 0, unless the
page says `[exit N]` on a line of its own. Other blocks (```sh, ```text, indented) are not run.

A page is one session: the blocks share a folder, a shell's variables and a daemon of their own.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

_EXIT = re.compile(r"^\[exit (\d+)\]$")
_SPACE = re.compile(r"\s+")


@dataclass
class Command:
    """A command of a page.

    Attributes:
        line: Where it stands, counted from 1.
        text: What is typed, with lines that are continued by a backslash.
        expected: The lines that it prints, as the page shows them.
        exit_code: What it ends with.
    """

    line: int
    text: str
    expected: list[str] = field(default_factory=list)
    exit_code: int = 0


def read_commands(text: str) -> list[Command]:
    """The commands of a page, in order.

    Raises:
        ValueError: A block begins with output, or does not end.
    """
    commands: list[Command] = []
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not inside:
            inside = stripped == "```console"
            fresh = True
        elif stripped == "```":
            inside = False
        elif stripped.startswith("$ "):
            commands.append(Command(number, stripped[2:]))
            fresh = False
        elif fresh:
            raise ValueError(f"line {number}: output without a command")
        elif commands[-1].text.endswith("\\"):
            commands[-1].text += f"\n{stripped}"
        elif code := _EXIT.match(stripped):
            commands[-1].exit_code = int(code[1])
        elif stripped:
            commands[-1].expected.append(stripped)
    if inside:
        raise ValueError("the last block does not end")
    return commands


def missing_line(expected: list[str], printed: str) -> str | None:
    """The first line that the page shows and the command did not print in its place; None when all came."""
    lines = iter([_SPACE.sub(" ", line.strip()) for line in printed.splitlines()])
    for line in expected:
        pattern = re.compile(".*".join(re.escape(part) for part in _SPACE.sub(" ", line).split("…")))
        if not any(pattern.fullmatch(each) for each in lines):
            return line
    return None


def pages(root: Path) -> list[Path]:
    """The pages whose commands are run."""
    return [page for page in (root / "README.md", *sorted((root / "docs").glob("**/*.md"))) if page.exists()]
