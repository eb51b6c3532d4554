"""The C units: each program of tests/c, as it is built for use and once more with ASan and UBSan."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.builds import DEVELOPMENT, ROOT, SANITIZED, make
from tests.engines import sanitizer_environment

PROGRAMS = sorted(path.stem for path in (ROOT / "tests" / "c").glob("test_*.c"))
SKIPPED = 77


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """The build with sanitizers."""
    return make(SANITIZED)


def run_program(build: Path, name: str, folder: Path) -> None:
    """Runs one program to its end; its exit code 77 skips the test with the last line that it printed."""
    program = build / "tests" / "c" / name
    assert program.exists(), f"tests/c/{name}.c is not built: name it in tests/c/meson.build"

    done = subprocess.run(
        [program],
        cwd=folder,
        env=os.environ | sanitizer_environment(),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=100,
    )

    said = (done.stdout + done.stderr).strip()
    if done.returncode == SKIPPED:
        pytest.skip(said.splitlines()[-1] if said else "it did not say why")
    assert done.returncode == 0, said
    closing = re.search(r"^(\d+) passed, 0 failed$", done.stdout, re.MULTILINE)
    assert closing and int(closing[1]) > 0, f"no closing line with what passed: {said}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_c_unit_passes(name: str, tmp_path: Path) -> None:
    run_program(DEVELOPMENT.folder, name, tmp_path)


@pytest.mark.parametrize("name", PROGRAMS)
def test_c_unit_passes_under_sanitizers(name: str, tmp_path: Path, sanitized: Path) -> None:
    run_program(sanitized, name, tmp_path)


def test_every_test_function_of_a_c_unit_is_run() -> None:
    forgotten = []
    for name in PROGRAMS:
        text = (ROOT / "tests" / "c" / f"{name}.c").read_text(encoding="utf-8")
        for function in re.findall(r"^static void (\w+)\(void\)$", text, re.MULTILINE):
            # Its definition is one mention; being run, or called as a helper, is another.
            if len(re.findall(rf"\b{function}\b", text)) < 2:
                forgotten.append(f"{name}: {function}")

    assert forgotten == []
