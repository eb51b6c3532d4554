"""`vswitch up`, `down` and `status`: the daemon."""

from pathlib import Path
from typing import Annotated

import typer

from vswitch import errors
from vswitch.cli.output import Column, duration
from vswitch.cli.session import Session, command
from vswitch.launch import up as launch
from vswitch.model import Status
from vswitch.words import size

StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="Where settings and logs are kept (/var/lib/vswitch for root)."
    ),
]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers", metavar="CPULIST", help="The processors of the data plane's workers, such as 2,3."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Stop running VMs, too.")]


def register(app: typer.Typer) -> None:
    """Makes the commands of this module commands of the root."""

    @command(app, "up", examples=["sudo vswitch up", "sudo vswitch up --workers 2,3"])
    def up(session: Session, state: StateOption = None, workers: WorkersOption = None) -> None:
        """Start vswitchd in the background, unless it runs; all that was set up comes back."""
        with session.out.progress("Starting vswitchd …"):
            status, started = launch(state, session.socket, workers)
        word = "is up" if started else "was up already"
        session.out.done(
            {"started": started, "status": status},
            f"vswitchd {word} (process {status.pid}, {status.socket}).",
        )
        if not started and workers is not None:
            session.out.hint(
                "It keeps the workers that it was started with: vswitch down, then up, changes them."
            )

    @command(app, "down", examples=["sudo vswitch down", "sudo vswitch down --force"])
    def down(session: Session, force: ForceOption = False, state: StateOption = None) -> None:
        """Stop vswitchd and the data plane, and remove their taps and sockets; settings stay.

        While VMs run it is refused: they would lose their network. --force stops them first. After a
        crash, vswitchd is started once more to clean up what it left.
        """
        with session.out.progress("Stopping vswitchd …"):
            stopped = _stop(session, force, state)
        words = (
            "vswitchd is down; settings are kept." if stopped else "vswitchd does not run: nothing to stop."
        )
        session.out.done({"stopped": stopped}, words)

    @command(app, "status", examples=["vswitch status", "vswitch status --json"])
    def status(session: Session) -> None:
        """Show what runs: the daemon, the data plane, its workers."""
        now = session.client.status()
        session.out.show(now, lambda: _render(session, now))


def _stop(session: Session, force: bool, state: Path | None) -> bool:
    """Stops all of it; False when there was nothing."""
    client = session.client
    try:
        client.stop(force)
    except errors.UnavailableError:
        if not client.socket.exists():
            return False
        # Killed, it removed nothing: only a daemon knows what is to be removed, and which VMs run.
        launch(state, session.socket)
        client.stop(force)
    return True


def _render(session: Session, status: Status) -> None:
    plane = (
        f"process {status.dataplane_pid}"
        if status.dataplane_pid
        else f"not running: {status.dataplane_error}"
    )
    if status.dataplane_restarts:
        plane += f", started again {status.dataplane_restarts} times"
    session.out.fields(
        [
            ("vswitchd", f"{status.version}, process {status.pid}, up for {duration(status.uptime_s)}"),
            ("data plane", plane),
            ("socket", status.socket),
            ("state", status.state_dir),
            ("switches", status.switches),
            ("ports", status.ports),
            ("VMs", f"{status.vms}, {status.vms_running} running"),
            ("VMs run with", status.accelerator or "-"),
        ]
    )
    if not status.workers:
        return
    session.out.line()
    titles = ("QUEUES", "PACKETS", "CACHE HITS", "MISSES", "ENTRIES", "SLEEPS", "TO GUESTS")
    columns: list[Column | str] = ["WORKER", "CPU", *(Column(title, right=True) for title in titles)]
    rows = [
        (
            number,
            "any" if w.cpu is None else w.cpu,
            w.queues,
            w.packets,
            w.cache_hits,
            w.cache_misses,
            w.cache_entries,
            w.sleeps,
            size(w.guest_bytes),
        )
        for number, w in enumerate(status.workers)
    ]
    session.out.table(columns, rows)
