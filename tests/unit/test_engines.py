"""The tests of the switch's behaviour, tested: wrong engines fail them, the right one passes sanitized."""

import shutil

import pytest

from tests.builds import SANITIZED, make
from tests.engines import SWITCH_TESTS, run_switch_tests, sanitizer_environment, sanitizer_runtime
from tests.mutants import MUTANTS, find


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.timeout(300)
def test_engine_that_is_wrong_on_purpose_fails_the_differential_tests(name: str) -> None:
    code, output = find(name)

    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert "FAILED tests/switch/test_differential.py::" in output, output


@pytest.mark.timeout(300)
def test_engine_with_sanitizers_passes_the_tests_of_its_behaviour() -> None:
    assert shutil.which("cc"), "the compiler that made the build knows where its sanitizers are"
    build = make(SANITIZED)
    # hypothesis and scapy may look at leaks of their own: only the engine's memory errors are of interest
    # here.
    environment = sanitizer_environment(LD_PRELOAD=sanitizer_runtime())
    environment["ASAN_OPTIONS"] += ":detect_leaks=0"

    # Many rules are tests/c/test_flow_table_large.c's, which is sanitized and quicker.
    few = ("-k", "not ten_thousand")
    done = run_switch_tests(build, SWITCH_TESTS, *few, PYTHONMALLOC="malloc", **environment)

    assert done.returncode == pytest.ExitCode.OK, done.stdout[-6000:] + done.stderr[-6000:]
    assert " passed" in done.stdout.splitlines()[-1]
