"""Who takes part in the demo, and the checks that many steps make."""

from dataclasses import dataclass

from demo.report import StepContext
from demo.world import Guest, Ping, World


@dataclass
class Cast:
    """Who takes part: the world, its two guests."""

    world: World
    alice: Guest
    bob: Guest


async def ping(step: StepContext, guest: Guest, address: str, name: str) -> Ping:
    """Pings from a guest and keeps the raw output under `name`."""
    result = await guest.ping(address)
    step.keep(name, result.output)
    return result


def works(step: StepContext, what: str, result: Ping) -> None:
    """Every ping must be answered."""
    step.check(what, "every ping answered", str(result), ok=result.works)


def stopped(step: StepContext, what: str, result: Ping) -> None:
    """No ping may be answered."""
    step.check(what, "no ping answered", str(result), ok=result.stopped)
