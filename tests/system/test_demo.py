"""`make demo`, as it is typed: every step is real, and nothing is left, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builds import ROOT

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(420),
    pytest.mark.skipif(os.geteuid() != 0, reason="wants root"),
]
COMMAND = [sys.executable, "-m", "demo"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def left_behind() -> set[str]:
    """Interfaces, the demo's folders, and processes that have such a folder in their command line."""
    links = {f"interface {path.name}" for path in Path("/sys/class/net").iterdir()}
    folders = {f"folder {path}" for path in Path("/tmp").glob("vswitch-demo-*")}
    processes = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"/vswitch-demo-" in words:
            processes.add(f"process {entry.name}: {words.replace(bytes(1), b' ').decode(errors='replace')}")
    return links | folders | processes


def test_demo_shows_every_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = left_behind()

    done = subprocess.run(
        COMMAND, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=400
    )

    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "build/demo/summary.json").read_text())
    assert len(summary["steps"]) >= 6
    for step in summary["steps"]:
        assert step["ok"] is True and step["name"] and step["expected"] and step["seen"], step
    assert summary["accelerator"] in ("kvm", "tcg")
    assert 0 < summary["seconds"] < 400
    assert any((tmp_path / "build/demo/raw").iterdir())
    assert left_behind() - before == set()


def test_demo_that_is_interrupted_cleans_up_and_says_so(tmp_path: Path) -> None:
    before = left_behind()
    log = tmp_path / "log"
    with log.open("wb") as output:
        demo = subprocess.Popen(COMMAND, cwd=tmp_path, env=environment(), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        # Its guests are up when the first check is printed.
        while (
            "both guests answer" not in log.read_text()
            and demo.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        assert demo.poll() is None, log.read_text()
        demo.send_signal(signal.SIGINT)
        code = demo.wait(60)
    finally:
        if demo.poll() is None:
            demo.kill()

    assert code not in (0, -signal.SIGINT)
    assert "interrupted; all that was made has been removed" in log.read_text()
    assert json.loads((tmp_path / "build/demo/summary.json").read_text())["steps"]
    assert left_behind() - before == set()


def test_demo_says_what_the_machine_lacks(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in (Path("/usr/bin"), Path("/usr/sbin")):
        for path in folder.iterdir():
            if path.name != "tshark" and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)

    done = subprocess.run(
        COMMAND,
        cwd=tmp_path,
        env=environment() | {"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert "this machine lacks the program tshark: run scripts/setup" in done.stdout, (
        done.stdout + done.stderr
    )
    assert "tshark" in json.loads((tmp_path / "build/demo/summary.json").read_text())["lacks"]
