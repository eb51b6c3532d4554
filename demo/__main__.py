"""`python -m demo`: runs the steps and prints a summary. Exit status 0: every step showed what it must."""

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from demo.report import Report
from demo.steps import STEPS, prepare
from demo.world import GUEST_MEMORY_BYTES, World
from vm.errors import VmError
from vm.image import GuestImage, guest_image
from vswitch.errors import VswitchError

FOLDER = Path("build/demo")
PROGRAMS = ("qemu-system-x86_64", "tshark", "ping", "ip")


def lacks() -> list[str]:
    """What this machine does not have, each with a way out."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root: the demo makes a network device for the host's port; run `sudo make demo`")
    missing += [
        f"the program {program}: run scripts/setup" for program in PROGRAMS if shutil.which(program) is None
    ]
    if not Path("/dev/net/tun").exists():
        missing.append("/dev/net/tun: the kernel's tun module; run `modprobe tun`")
    available = _memory_available_bytes()
    needed = 2 * GUEST_MEMORY_BYTES + (512 << 20)
    if available < needed:
        missing.append(
            f"memory: {needed >> 20} MiB are needed, {available >> 20} MiB are available; stop something"
        )
    return missing


def _memory_available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


async def _run(report: Report, image: GuestImage) -> None:
    async with World(report, image) as world:
        cast = None
        with report.step("two guests on a private switch") as step:
            cast = await prepare(world, report)
            kernel = (await cast.alice.run("uname -sr")).output.strip()
            step.check("both guests answer", "a Linux kernel", kernel, ok=kernel.startswith("Linux"))
        if cast is None:
            return
        for name, run in STEPS:
            with report.step(name) as step:
                await run(cast, step)


def _get_image(report: Report) -> GuestImage:
    report.say("guest image: Debian's cloud kernel and busybox (downloaded and built once)")
    return guest_image(progress=lambda step, _done: report.say(step))


def main() -> int:
    """Runs the demo. Returns the exit status."""
    console = Console()
    report = Report(FOLDER, console)
    console.print("[bold]vswitch demo[/bold]: two real guests, one switch")
    missing = lacks()
    if missing:
        for item in missing:
            console.print(f"[red]this machine lacks {item}[/red]", highlight=False)
        report.write(lacks="; ".join(missing))
        return 1
    # Ctrl-C and kill both end the demo through the clean-up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    interrupted = False
    try:
        asyncio.run(_run(report, _get_image(report)))
    except KeyboardInterrupt:
        interrupted = True
    except (VswitchError, VmError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
    report.print_summary(len(STEPS) + 1)
    path = report.write()
    ok = report.ok and len(report.steps) == len(STEPS) + 1 and not interrupted
    console.print(
        f"accelerator: {report.accelerator or 'none'}; details in {path} and {FOLDER}/raw", highlight=False
    )
    if interrupted:
        console.print("interrupted; all that was made has been removed", highlight=False)
        return 130
    if ok:
        console.print(
            "\nGo on from here: `sudo .venv/bin/vswitch up`, then the five-minute tour in README.md; "
            "`vswitch --help` lists the commands.",
            highlight=False,
        )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
