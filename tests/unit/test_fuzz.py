"""The fuzz targets over their committed inputs: once in `make check`, for seconds in `make test`."""

import subprocess

import pytest

from tests.builds import ROOT

TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in (ROOT / "tests" / "fuzz").glob("fuzz_*.c"))
SECONDS = 20


def fuzz(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([ROOT / "scripts" / "fuzz", *arguments], capture_output=True, text=True)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("target", TARGETS)
def test_committed_inputs_break_nothing(target: str) -> None:
    done = fuzz("--replay", target)

    assert done.returncode == 0, done.stderr
    assert "committed inputs" in done.stdout


@pytest.mark.system
@pytest.mark.fuzz
@pytest.mark.timeout(240)
@pytest.mark.parametrize("target", TARGETS)
def test_seconds_of_fuzzing_find_nothing(target: str) -> None:
    done = fuzz("--seconds", str(SECONDS), target)

    assert done.returncode == 0, done.stderr


def test_fuzz_script_refuses_an_unknown_target_and_names_the_list() -> None:
    refused = fuzz("--replay", "nonsense")

    assert refused.returncode == 1
    assert "there is no tests/fuzz/fuzz_nonsense.c; scripts/fuzz --list names all" in refused.stderr


def test_fuzz_script_refuses_a_time_that_is_no_number() -> None:
    refused = fuzz("--seconds", "soon")

    assert refused.returncode == 1
    assert "--seconds wants a number" in refused.stderr
