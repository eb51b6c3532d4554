"""What the demo shows while it runs, and what it keeps: raw outputs, counters, and summary.json."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.table import Table


@dataclass
class Check:
    """One thing that a step had to show."""

    what: str
    expected: str
    seen: str
    ok: bool


@dataclass
class Step:
    """One step of the demo, in the form in which summary.json has it."""

    name: str
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        """True when the step showed all that it must."""
        return bool(self.checks) and not self.error and all(check.ok for check in self.checks)

    def summary(self) -> dict[str, Any]:
        """The step as summary.json has it: `expected` and `seen` as text, the checks one by one behind."""
        return {
            "name": self.name,
            "expected": "; ".join(f"{check.what}: {check.expected}" for check in self.checks),
            "seen": "; ".join(f"{check.what}: {check.seen}" for check in self.checks) or self.error,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "error": self.error,
            "checks": [asdict(check) for check in self.checks],
        }


class Report:
    """Collects the steps, prints them as they go, and writes the files.

    Args:
        folder: where summary.json and the raw outputs go; made when missing.
        console: where people look.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self.steps: list[Step] = []
        self.accelerator = ""
        self._began = time.monotonic()
        (folder / "raw").mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A line about what is going on."""
        self.console.print(f"  [dim]{text}[/dim]", highlight=False)

    def step(self, name: str) -> "StepContext":
        """Begins a step: `with report.step("…") as step: step.check(…)`. An exception ends that step only."""
        step = Step(name)
        self.steps.append(step)
        self.console.print(f"\n[bold]{len(self.steps)}. {name}[/bold]", highlight=False)
        return StepContext(self, step)

    def write(self, lacks: str = "") -> Path:
        """Writes summary.json. `lacks`: what the machine does not have, when the demo could not run.

        Returns:
            The file's path.
        """
        path = self.folder / "summary.json"
        summary = {
            "ok": self.ok and not lacks,
            "accelerator": self.accelerator,
            "seconds": round(time.monotonic() - self._began, 1),
            "lacks": lacks,
            "steps": [step.summary() for step in self.steps],
        }
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        return path

    @property
    def ok(self) -> bool:
        """True when every step showed what it must."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def print_summary(self, expected_steps: int) -> None:
        """The table at the end. Steps that were never reached are named as such."""
        table = Table(title="Summary", title_justify="left", show_edge=False)
        for column in ("", "step", "shown", "seconds"):
            table.add_column(column)
        for number, step in enumerate(self.steps, 1):
            good = sum(check.ok for check in step.checks)
            mark = "[green]ok[/green]" if step.ok else "[red]FAILED[/red]"
            table.add_row(mark, f"{number}. {step.name}", f"{good}/{len(step.checks)}", f"{step.seconds:.1f}")
        for number in range(len(self.steps) + 1, expected_steps + 1):
            table.add_row("[red]not run[/red]", f"{number}.", "", "")
        self.console.print()
        self.console.print(table)


class StepContext:
    """A step that is running."""

    def __init__(self, report: Report, step: Step) -> None:
        self._report = report
        self._step = step
        self._began = time.monotonic()
        self._raw = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._step.seconds = time.monotonic() - self._began
        if error is None:
            return False
        self._step.error = f"{type(error).__name__}: {error}"
        # Ctrl-C ends the demo; anything else ends this step, and the next one shows what it can.
        if not isinstance(error, Exception):
            return False
        self._report.console.print(f"  [red]failed[/red] {self._step.error}", highlight=False)
        return True

    def check(self, what: str, expected: str, seen: str, *, ok: bool) -> None:
        """Notes one thing that was to be shown, and prints it."""
        self._step.checks.append(Check(what, expected, seen, ok))
        mark = "[green]✓[/green]" if ok else "[red]✗[/red]"
        tail = seen if ok else f"{seen} [red](expected: {expected})[/red]"
        self._report.console.print(f"  {mark} {what}: {tail}", highlight=False)

    def say(self, text: str) -> None:
        """A line about what is going on."""
        self._report.say(text)

    def keep(self, name: str, content: str) -> Path:
        """Stores a raw output in the order in which it came. Returns its path."""
        self._raw += 1
        number = len(self._report.steps)
        path = self._report.folder / "raw" / f"{number}-{self._raw:02d}-{name}.txt"
        path.write_text(content, encoding="utf-8")
        return path
