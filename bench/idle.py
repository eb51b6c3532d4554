"""What an idle switch costs, and how long the first frame takes to wake it: `python -m bench.idle`.

Ten connected ports, no traffic: CPU time of the data plane's process. Then single frames, each after a pause
that lets the worker fall asleep: from the driver's kick to the receiver's interrupt, in one thread.
"""

import argparse
import asyncio
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from bench.driver import Guest, GuestConfig
from bench.rig import Rig, mac_of, running

PORTS = 10
PAUSE_S = 0.005  # a worker sleeps after 50 µs of silence


def cpu_seconds(pid: int) -> float:
    """CPU time of a process's threads until now, to the nanosecond (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def round_trips(sender: Guest, receiver: Guest, count: int, pause_s: float) -> list[float]:
    """Microseconds from the kick to the interrupt, for single frames with a pause before each."""
    frame = mac_of(2) + mac_of(1) + b"\x88\xb5" + bytes(46)
    seen = []
    for _ in range(count):
        if pause_s:
            time.sleep(pause_s)
        began = time.perf_counter_ns()
        sender.send(frame)
        receiver.receive_frames(1, timeout=2)
        seen.append((time.perf_counter_ns() - began) / 1000)
    return seen


async def measure(seconds: float, count: int) -> dict[str, float]:
    """The figures, by name."""
    async with running(PORTS) as rig:
        with ExitStack() as stack:
            guests = [stack.enter_context(Guest(GuestConfig(event_idx=True))) for _ in range(PORTS)]
            for port, guest in enumerate(guests, 1):
                await asyncio.to_thread(guest.connect, str(rig.socket(port)))
            return await asyncio.to_thread(_figures, rig, guests, seconds, count)


def _figures(rig: Rig, guests: list[Guest], seconds: float, count: int) -> dict[str, float]:
    round_trips(guests[0], guests[1], 20, PAUSE_S)
    before, began = cpu_seconds(rig.process.pid), time.monotonic()
    time.sleep(seconds)
    idle = (cpu_seconds(rig.process.pid) - before) / (time.monotonic() - began)
    seen = round_trips(guests[0], guests[1], count, PAUSE_S)
    awake = round_trips(guests[0], guests[1], count, 0)
    percentiles = statistics.quantiles(seen, n=100)
    return {
        "ports": PORTS,
        "idle_cpu_percent": round(idle * 100, 3),
        "wake_up_p50_us": round(percentiles[49], 1),
        "wake_up_p99_us": round(percentiles[98], 1),
        "awake_p50_us": round(statistics.median(awake), 1),
        "wake_ups": count,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to watch the idle switch")
    parser.add_argument("--count", type=int, default=1000, help="how often to wake it")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.seconds, arguments.count))
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"idle, {PORTS} connected ports: {figures['idle_cpu_percent']} % of a core")
    print(
        f"first frame after a pause: p50 {figures['wake_up_p50_us']} µs, "
        f"p99 {figures['wake_up_p99_us']} µs ({arguments.count} times); without a pause, "
        f"so with what this program costs and no sleep: p50 {figures['awake_p50_us']} µs"
    )


if __name__ == "__main__":
    main()
