"""`vswitch why`: what stops frames between two ports, whose doing it is, and the command that mends it."""

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from vswitch import errors
from vswitch.cli.completion import place_names
from vswitch.cli.session import Session, build, command
from vswitch.diagnosis import Cause, Question, Since, Why

_WAYS = {"there": "on the way there", "back": "on the way back"}

FromArgument = Annotated[
    str,
    typer.Argument(
        metavar="A", help="Who sends: a VM, a switch (its host), or OWNER/PORT.", autocompletion=place_names
    ),
]
ToArgument = Annotated[
    str, typer.Argument(metavar="B", help="Who is to be reached.", autocompletion=place_names)
]
SubjectArgument = Annotated[
    str,
    typer.Argument(metavar="PROTOCOL[/PORT]", help="icmp (the default), icmpv6, tcp/22, udp/53, 47, …"),
]


@dataclass
class QuestionOptions:
    """What is known of the packets, and how long they are watched."""

    size: Annotated[
        int | None,
        typer.Option("--size", metavar="BYTES", help="The IP packet's, 20 to 9000; a ping's by default."),
    ] = None
    from_ip: Annotated[
        str | None, typer.Option("--from-ip", metavar="ADDRESS", help="A's, for rules that name some.")
    ] = None
    to_ip: Annotated[str | None, typer.Option("--to-ip", metavar="ADDRESS", help="B's.")] = None
    from_mac: Annotated[
        str | None,
        typer.Option("--from-mac", metavar="MAC", help="A's, where it is not that of its port."),
    ] = None
    to_mac: Annotated[str | None, typer.Option("--to-mac", metavar="MAC", help="B's, likewise.")] = None
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", metavar="S", help="How long losses are watched, 0 to 60: try it meanwhile."
        ),
    ] = 1.0


def register(app: typer.Typer) -> None:
    """Makes `why` a command of the root."""

    @command(
        app,
        "why",
        examples=[
            "vswitch why web db",
            "vswitch why web db tcp/22 --from-ip 10.0.0.1 --to-ip 10.0.0.2",
            "vswitch why web/eth0 lab/host --size 1500",
            "vswitch why web db --json | jq '.causes[0].mend'",
        ],
    )
    def why(
        session: Session,
        a: FromArgument,
        b: ToArgument,
        options: QuestionOptions,
        subject: SubjectArgument = "icmp",
    ) -> None:
        """Find out why A does not reach B, who made it so and when, and the command that mends it.

        Both directions are walked through the real tables, ARP or neighbour discovery too; VMs, cables, links
        and MTUs are looked at, and what is lost meanwhile is counted: spoofing, storms, full receivers.
        Nothing is sent and nothing is changed.
        """
        question = build("why", Question, a=a, b=b, **_subject(subject), **vars(options))
        with session.out.progress(f"Looking at the way from {a} to {b} …"):
            answer = session.client.why(question)
        session.out.show(answer, lambda: _render(session, answer))


def _subject(text: str) -> dict[str, Any]:
    """`tcp/22` as protocol and port."""
    protocol, slash, port = text.partition("/")
    if not slash:
        return {"protocol": protocol}
    if not port.isdecimal():
        raise errors.InvalidInputError(f"{text!r} is no protocol with a port", "such as tcp/22 or udp/53")
    return {"protocol": protocol, "port": int(port)}


def _render(session: Session, why: Why) -> None:
    out = session.out
    where = f"{why.subject} from {why.from_port} to {why.to_port}"
    if why.ok:
        out.line(f"Nothing was found that stops {where}, in either direction.")
    elif any(cause.certain for cause in why.causes):
        out.line(f"{where} does not work:")
    else:
        out.line(f"{where} may not work: frames were lost meanwhile.")
    for cause in why.causes:
        _render_cause(session, cause)
    for remark in why.remarks:
        out.hint(f"note: {remark}.")


def _render_cause(session: Session, cause: Cause) -> None:
    way = f" ({_WAYS[cause.way]})" if cause.way else ""
    session.out.line(f"- {cause.sentence}{way}.")
    if cause.since is not None:
        session.out.line(f"  since:  {_since(cause.since)}")
    for words in cause.mend:
        session.out.line(f"  mend:   {shlex.join(words)}")
    if cause.advice:
        session.out.line(f"  advice: {cause.advice}")


def _since(since: Since) -> str:
    when = datetime.fromisoformat(since.when).astimezone(UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC, {since.who}: {since.what}"
