"""Runs the tests of the switch's behaviour (tests/switch) in a process with another build of the engine."""

import os
import subprocess
import sys
from pathlib import Path

from tests.builds import ROOT

SWITCH_TESTS = ROOT / "tests" / "switch"
DIFFERENTIAL_TESTS = SWITCH_TESTS / "test_differential.py"


def run_switch_tests(
    build: Path, tests: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs tests of tests/switch with the engine of `build`.

    Args:
        build: The build's folder.
        tests: One of the files, or the folder.
        arguments: For pytest, beside the usual ones.
        environment: Variables beside this process's own.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.other_engine", "-p", "no:cacheprovider"]
    own = {
        "VSWITCH_TEST_BUILD": str(build),
        # The editable install steps aside: its finder would build and take its own module.
        "MESONPY_EDITABLE_SKIP": str(ROOT / "build" / "dev"),
        "HYPOTHESIS_PROFILE": "fast",
    }
    return subprocess.run(
        [*command, *arguments, str(tests)],
        cwd=ROOT,
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
    )


def sanitizer_environment(**more: str) -> dict[str, str]:
    """Variables for programs and modules of the sanitized build.

    Python itself is not sanitized and keeps its memory until it ends, so a module in it is not asked about
    leaks; the C programs are.
    """
    return {
        "ASAN_OPTIONS": "abort_on_error=0:exitcode=99:detect_stack_use_after_return=1:strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
    } | more


def sanitizer_runtime() -> str:
    """The libraries that have to be loaded before a Python that is not sanitized loads a module that is."""
    found = []
    for library in ("libasan.so", "libubsan.so"):
        path = subprocess.run(
            ["cc", f"-print-file-name={library}"], capture_output=True, text=True, check=True
        )
        found.append(path.stdout.strip())
    return " ".join(found)
