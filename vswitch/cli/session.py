"""How a command is made: a function of a Session and typed arguments.

`command` adds `--json`, `--socket` and the examples.
A parameter whose type is a dataclass stands for the options that are its fields, so that commands share
groups of options and still have few parameters.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import ValidationError

from vswitch import errors
from vswitch.cli.output import Output, print_error
from vswitch.client import Client

T = TypeVar("T")

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Write the answer as JSON, and errors as JSON to standard error.")
]
SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        readable=False,  # who may not use it is told so by the client, in its words
        metavar="PATH",
        help="The daemon's socket; by default $VSWITCH_SOCKET or /run/vswitch/api.sock.",
    ),
]


class Session:
    """What a command works with: the daemon's client, and where its words go.

    Args:
        socket: The daemon's socket; None: where it usually is.
        as_json: See Output.
    """

    def __init__(self, socket: Path | None = None, as_json: bool = False) -> None:
        self.socket = socket
        self.out = Output(as_json)

    @functools.cached_property
    def client(self) -> Client:
        """The client; made when it is asked for first."""
        return Client(self.socket)


@dataclasses.dataclass
class Defaults:
    """What was given before the command's name: `vswitch --json port list`."""

    socket: Path | None = None
    as_json: bool = False


def noun(name: str, help_text: str) -> typer.Typer:
    """A group of commands; named alone, it shows what they are."""
    app = typer.Typer(name=name, help=help_text, invoke_without_command=True, rich_markup_mode=None)

    @app.callback()
    def show_help(context: typer.Context) -> None:
        help_without_command(context)

    return app


def help_without_command(context: typer.Context) -> None:
    """Shows the group's help and ends, the user's mistake, when no command follows."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(errors.UserError.exit_code)


def command(
    app: typer.Typer, name: str, examples: Sequence[str], socket_option: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a command of `app`.

    Args:
        app: The noun's group, or the root.
        name: The verb.
        examples: Command lines for the help text and the manual.
        socket_option: False where `--socket` has another meaning; the daemon's goes before the command's name
            then.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        parameters, groups = _flatten(function, hints)
        extra = {"json_": JsonFlag, "api_socket": SocketOption} if socket_option else {"json_": JsonFlag}
        for extra_name, annotation in extra.items():
            default = None if extra_name == "api_socket" else False
            parameters.append(_keyword(extra_name, annotation, default))
        context = _keyword("context", typer.Context, inspect.Parameter.empty)

        def run(context: typer.Context, **values: Any) -> None:
            defaults = context.find_object(Defaults) or Defaults()
            as_json = values.pop("json_") or defaults.as_json
            session = Session(values.pop("api_socket", None) or defaults.socket, as_json)
            for group, kind in groups.items():
                fields = [field.name for field in dataclasses.fields(kind)]
                values[group] = kind(**{field: values.pop(field) for field in fields})
            function(session, **values)

        run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [context, *parameters]}
        run.__name__ = function.__name__
        text = inspect.cleandoc(function.__doc__ or "")
        app.command(name, help=text, epilog=_epilog(examples), short_help=text.partition("\n")[0])(run)
        return function

    return register


EXAMPLES = "Examples:"


def _epilog(examples: Sequence[str]) -> str:
    # The mark keeps lines as they are; without it they would be joined to one paragraph.
    return "\n".join(["\b", EXAMPLES, *(f"  {example}" for example in examples)])


def _flatten(
    function: Callable[..., None], hints: dict[str, Any]
) -> tuple[list[inspect.Parameter], dict[str, type[Any]]]:
    """The command-line parameters of a function, and its parameters that are groups of options."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(_keyword(parameter.name, kind, parameter.default))
            continue
        assert isinstance(kind, type)
        groups[parameter.name] = kind
        field_hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(_keyword(field.name, field_hints[field.name], default))
    return parameters, groups


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def build(what: str, make: Callable[..., T], **fields: Any) -> T:
    """Makes a model from the user's words.

    Args:
        what: What the words describe, for the error: `port web/eth0`.
        make: The model.
        fields: Its fields; those that are None were not given.

    Raises:
        errors.InvalidInputError: In one sentence, naming the field.
    """
    try:
        return make(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        wrong = errors.invalid(error)
        if what and not wrong.sentence.startswith(f"{what} "):  # many a sentence names it already
            wrong = errors.invalid(error, what)
        raise wrong from None


def report(error: errors.VswitchError, as_json: bool) -> int:
    """Writes an error for whoever asked and returns the exit code."""
    print_error(error.to_json() if as_json else None, error.sentence, error.way_out)
    return error.exit_code


def report_usage(error: typer.TyperException, as_json: bool) -> int:
    """A command line that cannot be understood, in the same form as all errors."""
    context: typer.Context | None = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "vswitch"
    message = error.format_message().rstrip(".")
    usage = errors.UserError(message[:1].lower() + message[1:], f"{path} --help")
    return report(usage, as_json)
