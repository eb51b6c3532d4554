"""Other builds of the data plane for tests: with sanitizers, or wrong on purpose.

Each has its folder below build/, is made on demand and brought up to date in a moment afterwards. A lock
lets several test processes ask for the same build at once.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Build:
    """A build of the C part.

    Attributes:
        name: The folder's name below build/.
        options: What `meson setup` is given.
        targets: What is built; nothing means all of it.
    """

    name: str
    options: tuple[str, ...]
    targets: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is built."""
        return ROOT / "build" / self.name


# The build that scripts/setup makes; it is up to date when tests run.
DEVELOPMENT = Build("dev", ())
# The optimiser's first level keeps the build short and the reports readable.
SANITIZED = Build(
    "asan",
    (
        "-Ddevelopment=true",
        "-Db_sanitize=address,undefined",
        "-Db_lundef=false",
        "-Doptimization=1",
        # A finding of UBSan ends the program as one of ASan does.
        "-Dc_args=-fno-sanitize-recover=all -fno-omit-frame-pointer",
    ),
)
# The module, as ninja calls it.
_MODULE = "dataplane/_dataplane" + str(sysconfig.get_config_var("EXT_SUFFIX"))


def mutant(name: str) -> Build:
    """An engine with one fault (meson's option `mutant`); only its Python module is built."""
    return Build(f"mutant-{name}", (f"-Dmutant={name}", "-Doptimization=1"), (_MODULE,))


def make(build: Build) -> Path:
    """Makes a build or brings it up to date; returns its folder.

    Raises:
        AssertionError: It could not be built; the message is the build's output.
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    build.folder.mkdir(parents=True, exist_ok=True)
    with _locked(build.folder):
        if not (build.folder / "build.ninja").exists():
            _run(["meson", "setup", *build.options, str(build.folder)], environment)
        _run(["nice", "ninja", "-C", str(build.folder), *build.targets], environment)
    return build.folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
