"""The command line: `vswitch NOUN VERB`.

It does nothing but call `vswitch.client`; one module per noun, and `session.command` makes their functions
commands. Every error ends here as one sentence and a way out: exit code 2 for the user's mistake, 1
otherwise, and never a traceback (VSWITCH_DEBUG=1 shows it).
"""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vswitch import __version__, errors
from vswitch.cli import acls, connections, daemon, fdb, nics, observe, ports, switches, vms, why
from vswitch.cli.session import Defaults, SocketOption, help_without_command, report, report_usage

_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
_NOBODY_READS = 141  # 128 + SIGPIPE

_HELP = """A virtual switch for virtual machines: VLANs, port rules, and what became of every frame.

A port's name is OWNER/PORT: web/eth0 is a VM's NIC, lab/host the host's own port on the switch lab. In rules,
`in` is to the VM and `out` is from the VM.
"""


@functools.cache
def make_app() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        name="vswitch",
        help=_HELP,
        epilog="Environment: VSWITCH_SOCKET (the daemon's socket), NO_COLOR, VSWITCH_DEBUG=1 (tracebacks).",
        invoke_without_command=True,
        # Panels squeeze the descriptions into a third of a terminal of 80 columns.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_root)
    daemon.register(app)
    for module in (switches, ports, acls, connections, fdb, vms, nics):
        app.add_typer(module.app)
    observe.register(app)
    why.register(app)
    return app


def _root(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --json after the command.")] = False,
    socket: SocketOption = None,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    context.obj = Defaults(socket, as_json)
    if version:
        typer.echo(f"vswitch {__version__}")
        raise typer.Exit
    help_without_command(context)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line, without the program's name, and returns its exit code."""
    as_json = "--json" in arguments
    try:
        result = make_app()(list(arguments), prog_name="vswitch", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except errors.VswitchError as error:
        return report(error, as_json)
    except typer.TyperException as error:
        return report_usage(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except Exception as error:
        if os.environ.get("VSWITCH_DEBUG") == "1":
            raise
        bug = errors.VswitchError(
            f"something went wrong that should not: {type(error).__name__}: {error}",
            "VSWITCH_DEBUG=1 before the command shows where; please report it",
        )
        return report(bug, as_json)


def main() -> None:
    """The program `vswitch`."""
    sys.exit(run(sys.argv[1:]))
