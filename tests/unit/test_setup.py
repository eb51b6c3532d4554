"""The set-up script: what it promises when there is nothing left to do."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_setup_list_names_nothing_once_all_packages_are_there() -> None:
    missing = subprocess.run([ROOT / "scripts/setup", "--list"], capture_output=True, text=True, check=True)

    assert missing.stdout == ""


def test_setup_refuses_an_unknown_argument_and_says_so() -> None:
    refused = subprocess.run([ROOT / "scripts/setup", "--frobnicate"], capture_output=True, text=True)

    assert refused.returncode == 1
    assert "unknown argument '--frobnicate'" in refused.stderr
