"""How commands write: tables and sentences for people, JSON for programs, colours on terminals only.

Standard output carries the answer and nothing else; progress, hints and errors go to standard error. Text
that came from elsewhere (a VM's last words, a comment) is shown without the control characters that could
steer a terminal.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A pipe has no width: nothing may be cut or folded for grep.
_PIPE_WIDTH = 100_000
_NARROW = 20

STYLES = {
    "allow": "green",
    "deny": "red",
    "running": "green",
    "up": "green",
    "yes": "green",
    "ok": "green",
    "missing": "yellow",
    "crashed": "bold red",
    "fault": "bold red",
    "down": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "stopped": "dim",
    "-": "dim",
}


def plain(value: object) -> str:
    """A value as text that cannot steer a terminal: control characters become U+FFFD, `None` becomes `-`."""
    text = "-" if value is None else str(value)
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def yes_no(value: bool) -> str:
    """`yes` or `no`."""
    return "yes" if value else "no"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


@dataclass(frozen=True)
class Column:
    """A column of a table. `right`: numbers."""

    title: str
    right: bool = False


class Output:
    """Where a command's words go.

    Args:
        as_json: Machine output on standard output; errors as JSON on standard error.
        stdout: Where answers go; by default the process's.
        stderr: Where progress, hints and errors go.
    """

    def __init__(
        self, as_json: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self._out = _console(stdout or sys.stdout)
        self._err = _console(stderr or sys.stderr)

    @property
    def is_terminal(self) -> bool:
        """True when a person watches standard output."""
        return self._out.is_terminal

    def json(self, value: object, one_line: bool = False) -> None:
        """Writes a model, a list of models, or plain values as JSON."""
        text = to_json(value, indent=None if one_line else 2).decode()
        print(text, file=self._out.file, flush=True)

    def show(self, value: object, render: Callable[[], None]) -> None:
        """The answer of a command: `value` as JSON, or what `render` writes for a person."""
        if self.as_json:
            self.json(value)
        else:
            render()

    def line(self, text: str = "", style: str = "") -> None:
        """One line of the answer."""
        self._out.print(Text(plain(text), style), soft_wrap=True)

    def done(self, value: object, sentence: str) -> None:
        """The answer of a command that changed something."""
        self.show(value, lambda: self.line(sentence))

    def hint(self, text: str) -> None:
        """A remark that is no part of the answer."""
        if not self.as_json:
            self._err.print(Text(plain(text), "dim"), soft_wrap=True)

    def table(self, columns: Sequence[Column | str], rows: Sequence[Sequence[object]]) -> None:
        """A table without a frame, so that it can be cut and grepped."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for given in columns:
            column = Column(given) if isinstance(given, str) else given
            table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self._print(table)

    def fields(self, rows: Sequence[tuple[str, object]]) -> None:
        """A thing's properties, one a line."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, _cell(value))
        self._print(table)

    def _print(self, table: Table) -> None:
        with self._out.capture() as captured:
            self._out.print(table)
        # Tables are padded to their width; whoever copies a line does not want that.
        for line in captured.get().splitlines():
            print(line.rstrip(), file=self._out.file)

    def clear(self) -> None:
        """Empties the screen before a table that is shown again and again; nothing on a pipe."""
        self._out.clear()

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Says what is being waited for, while it lasts; on a terminal only."""
        if self.as_json or not self._err.is_terminal:
            yield
            return
        with self._err.status(Text(plain(text))):
            yield


def print_error(error_json: dict[str, object] | None, sentence: str, way_out: str) -> None:
    """An error on standard error: as JSON when there is some, else a sentence and the way out."""
    if error_json is not None:
        print(to_json(error_json).decode(), file=sys.stderr)
        return
    console = _console(sys.stderr)
    if not sentence.endswith((".", "?", "!")):
        sentence += "."
    text = Text.assemble(("error: ", "bold red"), plain(sentence))
    if way_out:
        text.append_text(Text.assemble("\n", ("try: ", "bold"), plain(way_out)))
    console.print(text, soft_wrap=True)


class _Console(Console):
    """A console that leaves a reader's going away to the caller; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(file: TextIO) -> Console:
    width = None
    if not file.isatty() and "COLUMNS" not in os.environ:
        width = _PIPE_WIDTH
    console = _Console(file=file, width=width, highlight=False, emoji=False, markup=False)
    console.width = max(console.width, _NARROW)
    return console


def _cell(value: object) -> Text:
    text = plain(yes_no(value) if isinstance(value, bool) else value)
    if text == "":
        text = "-"
    return Text(text, STYLES.get(text, ""))
