"""The step about `vswitch why`: each cause is named, and the command that it advises is typed as it is."""

import asyncio
import contextlib
import io
import shlex

from demo.cast import Cast, ping, stopped, works
from demo.report import StepContext
from vswitch.cli import run
from vswitch.model import AclRule, PortChange, VlanAccess

BOB = "10.77.0.2"


def _type(line: str) -> tuple[int, str]:
    """Types a vswitch command. Returns its exit code and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run(shlex.split(line))
    return code, printed.getvalue()


async def _asked_and_mended(cast: Cast, step: StepContext, fault: str, culprit: str) -> None:
    """Something is wrong: `why` must name the culprit, and its command must mend it."""
    socket = shlex.quote(str(cast.world.client.socket))
    name = fault.replace(" ", "-")
    stopped(step, fault, await ping(step, cast.alice, BOB, f"ping-{name}"))
    _code, text = await asyncio.to_thread(_type, f"why alice bob --socket {socket}")
    step.keep(f"why-{name}", text)
    causes = [line for line in text.splitlines() if line.startswith("- ")]
    mends = [line.partition("mend:")[2].strip() for line in text.splitlines() if "mend:" in line]
    step.check(
        "vswitch why alice bob", f"names {culprit}", causes[0][2:] if causes else text.strip(),
        ok=bool(causes) and culprit in causes[0],
    )  # fmt: skip
    for mend in mends[:1]:
        code, answer = await asyncio.to_thread(_type, f"{mend.removeprefix('vswitch ')} --socket {socket}")
        step.check("its advice, typed", mend, mend if code == 0 else answer, ok=code == 0)
    works(step, "mended", await ping(step, cast.alice, BOB, f"ping-{name}-mended"))


async def why(cast: Cast, step: StepContext) -> None:
    """A VLAN, a rule on the way back, and a cable are found out and mended."""
    client = cast.world.client
    cast.world.keep_counters(step, "before")
    works(step, "at first", await ping(step, cast.alice, BOB, "ping-first"))
    client.set_port("bob/eth0", PortChange(vlan=VlanAccess(vid=200)))
    await _asked_and_mended(cast, step, "bob in VLAN 200", "bob/eth0 (access 200)")
    rule = client.add_acl(
        "bob/eth0", AclRule(direction="out", action="deny", weight=9, protocol="icmp", comment="quiet")
    )
    await _asked_and_mended(cast, step, "a rule that stops the answers", f"rule {rule.id} of bob/eth0")
    client.disconnect_nic("bob/eth0")
    await _asked_and_mended(cast, step, "bob's cable pulled", "the cable of bob/eth0 is out")
    cast.world.keep_counters(step, "after")
