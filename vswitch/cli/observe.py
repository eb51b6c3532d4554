"""What became of frames, what this machine offers, who did what: the commands without a noun."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from vswitch import errors
from vswitch.cli import capture as capturing
from vswitch.cli.completion import PortArgument, port_names
from vswitch.cli.output import Column
from vswitch.cli.session import Session, command
from vswitch.doctor import examine
from vswitch.model import Change, DropCount

_CAPTURE_FILES = (".pcap", ".pcapng", ".cap")
_WATCH_S = 1.0

PortOption = Annotated[
    str | None,
    typer.Option("--port", metavar="OWNER/PORT", help="Only this port's.", autocompletion=port_names),
]
WatchFlag = Annotated[
    bool, typer.Option("--watch", help="Show them every second, with the rate, until Ctrl-C.")
]
FrameArgument = Annotated[
    str,
    typer.Argument(
        metavar="FRAME",
        help="Scapy-like text, hex digits, or the name of a pcap file (its first frame is taken).",
    ),
]
LimitOption = Annotated[int, typer.Option("--limit", metavar="N", help="How many, the latest first.")]


def register(app: typer.Typer) -> None:
    """Makes the commands of this module commands of the root."""

    @command(app, "drops", examples=["vswitch drops", "vswitch drops --port web/eth0 --watch"])
    def drops(session: Session, port: PortOption = None, watch: WatchFlag = False) -> None:
        """Show which frames were lost, where and why.

        With --watch --json, each second's state is one line.
        """
        if watch:
            _watch(session, port)
            return
        counts = session.client.drops(port)
        session.out.show(counts, lambda: _render_drops(session, counts))

    @command(
        app,
        "trace",
        examples=[
            "vswitch trace web/eth0 'Ether(dst=\"52:54:00:00:00:02\")/IP()/ICMP()'",
            "vswitch trace web/eth0 ffffffffffff5254000000010806...",
            "vswitch trace web/eth0 frame.pcap",
        ],
    )
    def trace(session: Session, port: PortArgument, frame: FrameArgument) -> None:
        """Ask what would happen to a frame that the port's VM sends.

        It walks the real tables without being sent: entries that match, the reason for a drop, the ports
        where it would leave.
        """
        answer = session.client.trace(port, _frame(frame))
        session.out.show(answer, lambda: session.out.line(answer.text.rstrip("\n")))

    @command(
        app,
        "capture",
        examples=[
            "vswitch capture web/eth0 --write web.pcapng",
            "vswitch capture web/eth0 | tcpdump -n -r -",
            "vswitch capture web/eth0 --seconds 10 | tshark -r -",
        ],
    )
    def capture(session: Session, port: PortArgument, options: capturing.CaptureOptions) -> None:
        """Record a port's frames, from the VM and to it, as pcapng; Ctrl-C ends it.

        Without --write, it goes to standard output, for tcpdump or wireshark. Other ports are not slowed
        down.
        """
        capturing.capture(session, port, options)

    @command(app, "doctor", examples=["vswitch doctor", "vswitch doctor --json"])
    def doctor(session: Session) -> None:
        """Examine what this machine offers, and what would be gained; works without the daemon."""
        with session.out.progress("Examining this machine …"):
            checks = examine()
        rows = [("ok" if c.ok else "missing", c.name, c.seen, "" if c.ok else c.gain) for c in checks]
        session.out.show(checks, lambda: session.out.table(["", "WHAT", "SEEN", "WOULD BE GAINED"], rows))

    @command(app, "changes", examples=["vswitch changes --limit 5"])
    def changes(session: Session, limit: LimitOption = 20) -> None:
        """Show who changed what, and when."""
        if limit < 1:
            raise errors.InvalidInputError(f"a limit of {limit} is not possible", "1 or more")
        made = session.client.changes(limit)
        rows = [(_time(c.when), c.who.name, c.who.uid, c.who.pid, c.what, _difference(c)) for c in made]
        columns: list[Column | str] = [
            "WHEN (UTC)",
            "WHO",
            Column("UID", right=True),
            Column("PID", right=True),
            "WHAT",
            "CHANGED",
        ]
        session.out.show(made, lambda: session.out.table(columns, rows))


def _frame(text: str) -> str | Path:
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:  # longer than names may be: no file
        is_file = False
    if is_file:
        return path
    if path.suffix in _CAPTURE_FILES:
        raise errors.UserError(
            f"there is no file {text}", "the name of a pcap file, hex digits, or Ether(…)/IP(…)/…"
        )
    return text


def _render_drops(session: Session, counts: Sequence[DropCount]) -> None:
    if not counts:
        session.out.line("No frame was lost.")
        return
    rows = [(d.port, d.reason, d.packets, d.sentence) for d in counts]
    session.out.table(["PORT", "REASON", Column("PACKETS", right=True), "DROPPED BECAUSE"], rows)


def _watch(session: Session, port: str | None) -> None:
    before: dict[tuple[str, str], int] | None = None
    try:
        while True:
            counts = session.client.drops(port)
            now = {(d.port, d.reason): d.packets for d in counts}
            if session.out.as_json:
                session.out.json(counts, one_line=True)
            elif session.out.is_terminal or now != before:
                _render_watch(session, counts, before or now)
            before = now
            time.sleep(_WATCH_S)
    except KeyboardInterrupt:  # the way to end it, no failure
        return


def _render_watch(session: Session, counts: Sequence[DropCount], before: dict[tuple[str, str], int]) -> None:
    session.out.clear()
    if not counts:
        session.out.line("No frame was lost.")
        return
    rows = [
        (d.port, d.reason, d.packets, d.packets - before.get((d.port, d.reason), 0), d.sentence)
        for d in counts
    ]
    columns: list[Column | str] = ["PORT", "REASON", Column("PACKETS", right=True), Column("+", right=True)]
    session.out.table([*columns, "DROPPED BECAUSE"], rows)


def _time(text: str) -> str:
    """An ISO time in UTC, to the second."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _difference(change: Change) -> str:
    """The settings that differ, of things that were there before and after; WHAT says it of the others."""
    words = []
    for thing, old in change.before.items():
        new = change.after.get(thing)
        if isinstance(old, dict) and isinstance(new, dict):
            fields = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
            words += [f"{key}: {_value(old.get(key))} → {_value(new.get(key))}" for key in fields]
    return ", ".join(words)


def _value(value: object) -> str:
    """A setting in a few words: `{'mode': 'access', 'vid': 5}` as `access 5`."""
    if isinstance(value, dict):
        return " ".join(str(part) for part in value.values() if part is not None)
    return "-" if value is None else str(value)
