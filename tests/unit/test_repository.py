"""What is committed stands alone: it names no place that exists on one machine only, and keeps no secret."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.builds import ROOT

# Written in two parts, or this file would be the first to be found.
PRIVATE_PLACES = re.compile("(?<![\\w.])/(?:" + "|".join(["wo" + "rk/", "ro" + "ot/", "ho" + "me/"]) + ")")
SECRETS = re.compile("BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}")
# A home that stands for any reader's home.
ANYBODY = re.compile("/ho" + "me/(?:me|you|user|alice)/")


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def lines() -> Iterator[tuple[str, str]]:
    """Each line of each text file, with its place."""
    for path in committed():
        if "corpus" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def index_hosts() -> set[str]:
    """Where pip looks for packages on this machine, unless it is where everybody does."""
    listed = subprocess.run(["pip", "config", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[^\s']+", listed)}
    return {host for host in hosts if host and host not in ("pypi.org", "files.pythonhosted.org")}


def test_nothing_committed_names_a_place_of_one_machine() -> None:
    own = f"{ROOT}/"
    found = [
        f"{place}: {line.strip()}"
        for place, line in lines()
        if PRIVATE_PLACES.search(ANYBODY.sub("", line)) or own in line
    ]

    assert found == []


def test_nothing_committed_names_this_machines_package_index() -> None:
    hosts = index_hosts()

    assert [place for place, line in lines() if any(host in line for host in hosts)] == []


def test_nothing_committed_is_a_secret() -> None:
    assert [place for place, line in lines() if SECRETS.search(line)] == []


def test_nothing_that_is_built_is_committed() -> None:
    built = {".o", ".so", ".a", ".pyc", ".qcow2", ".img"}

    assert [str(path) for path in committed() if path.suffix in built or path.stat().st_size > 1 << 20] == []
