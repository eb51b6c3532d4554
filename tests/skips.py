"""A pytest plug-in: a test may be skipped for reasons that are written down, and for no other.

`tests/allowed-skips.txt` has a line for each allowed skip: a pattern for the test, one for the reason, and
why that is all right, separated by ` | ` (patterns as a shell's). Any other skip fails the run; all are
listed at its end, with the promises in docs/status.md that they leave untested.
"""

import fnmatch
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.promises import Promise, promises_of, read_promises

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class AllowedSkip:
    """One line of the list.

    Attributes:
        test: A pattern for the test's id, such as `tests/system/*`.
        reason: A pattern for the reason that the test gives.
        why: Why this may be.
    """

    test: str
    reason: str
    why: str

    def covers(self, test: str, reason: str) -> bool:
        """Whether it allows this skip."""
        return fnmatch.fnmatchcase(test, self.test) and fnmatch.fnmatchcase(reason, self.reason)


def read_allowed(path: Path) -> list[AllowedSkip]:
    """Reads the list.

    Raises:
        ValueError: A line has not three parts; the message has its number.
    """
    allowed = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split(" | ")]
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{path.name}:{number}: not `test | reason | why`: {line}")
        allowed.append(AllowedSkip(*parts))
    return allowed


class SkipPolicy:
    """Collects the skips of a run and judges them at its end."""

    def __init__(self, allowed: list[AllowedSkip], promises: list[Promise]) -> None:
        self._allowed = allowed
        self._promises = promises
        self._skips: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes a skip."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Notes a file that is skipped as a whole."""
        if report.skipped:
            self._note(report.nodeid, report.longrepr)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails the run for a skip that is not allowed."""
        if self._forbidden() and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Lists the skips."""
        forbidden = self._forbidden()
        for test, reason in sorted(self._skips.items()):
            word = "SKIP NOT ALLOWED" if test in forbidden else "skipped, as allowed"
            terminalreporter.write_line(f"{word}: {test}: {reason}")
            for promise in promises_of(self._promises, test):
                terminalreporter.write_line(f"  not seen in this run: {promise.text}")
        if forbidden:
            terminalreporter.write_line(
                f"{len(forbidden)} skips that tests/allowed-skips.txt does not allow fail this run", red=True
            )

    def _note(self, test: str, longrepr: object) -> None:
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        self._skips[test] = str(reason).removeprefix("Skipped: ")

    def _forbidden(self) -> set[str]:
        return {
            test
            for test, reason in self._skips.items()
            if not any(allowed.covers(test, reason) for allowed in self._allowed)
        }


def pytest_addoption(parser: pytest.Parser) -> None:
    """The list's place can be given, for tests of this plug-in."""
    parser.addoption(
        "--allowed-skips",
        type=Path,
        default=ROOT / "tests" / "allowed-skips.txt",
        metavar="FILE",
        help="the skips that are allowed, one a line: test | reason | why",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Starts to watch, in the process that reports."""
    if not hasattr(config, "workerinput"):
        path: Path = config.getoption("--allowed-skips")
        try:
            policy = SkipPolicy(read_allowed(path), read_promises(ROOT / "docs" / "status.md"))
        except (OSError, ValueError) as error:
            raise pytest.UsageError(str(error)) from error
        config.pluginmanager.register(policy, "skip-policy")
