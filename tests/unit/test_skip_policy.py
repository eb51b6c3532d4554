"""Which skips fail a run: runs of pytest on a file of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.builds import ROOT
from tests.skips import AllowedSkip, read_allowed

TESTS = """\
import pytest

def test_that_passes():
    pass

def test_that_is_skipped():
    pytest.skip("wants a unicorn")

@pytest.mark.xfail(reason="known")
def test_that_is_known_to_fail():
    assert False
"""


def run(folder: Path, allowed: str) -> "subprocess.CompletedProcess[str]":
    tests, listed = folder / "test_it.py", folder / "allowed.txt"
    tests.write_text(TESTS)
    listed.write_text(allowed)
    alone = ["-p", "tests.skips", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *alone, "--allowed-skips", listed, tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_skip_that_is_not_allowed_fails_the_run_and_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "SKIP NOT ALLOWED: test_it.py::test_that_is_skipped: wants a unicorn" in done.stdout
    assert "1 skips that tests/allowed-skips.txt does not allow fail this run" in done.stdout


def test_allowed_skip_passes_and_is_listed(tmp_path: Path) -> None:
    done = run(tmp_path, "test_it.py::* | wants a * | unicorns are rare\n")

    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "skipped, as allowed: test_it.py::test_that_is_skipped: wants a unicorn" in done.stdout


def test_allowed_skip_covers_its_own_reason_only(tmp_path: Path) -> None:
    done = run(tmp_path, "test_it.py::* | wants a horse | horses are rare\n")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED


def test_line_without_a_reason_why_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "# a comment\ntest_it.py::* | wants a *\n")

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "allowed.txt:2: not `test | reason | why`" in done.stderr


def test_committed_list_can_be_read() -> None:
    assert all(isinstance(each, AllowedSkip) for each in read_allowed(ROOT / "tests" / "allowed-skips.txt"))
