"""Which accelerator is chosen when KVM is missing, slow, hangs or fails. Needs no /dev/kvm."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from vm import accelerator
from vm.accelerator import Accelerator, choose_accelerator, judge


def test_kvm_is_chosen_from_a_hundred_million_instructions_a_second_on() -> None:
    assert judge(100_000_000).name == "kvm"
    assert judge(99_999_999).name == "tcg"


def test_slow_kvm_is_refused_with_its_speed() -> None:
    assert "1.4 million instructions a second" in judge(1_400_000).reason


def test_missing_device_means_emulation(tmp_path: Path) -> None:
    chosen = asyncio.run(choose_accelerator(tmp_path, tmp_path / "kvm"))
    assert chosen.name == "tcg"
    assert "kvm does not exist" in chosen.reason


def test_device_that_is_no_kvm_means_emulation_and_is_asked_again(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    chosen = asyncio.run(choose_accelerator(tmp_path / "cache", device))
    assert chosen.name == "tcg"
    assert chosen.reason.startswith("the KVM probe failed (OSError: [Errno 25]")
    assert not (tmp_path / "cache").exists()


def test_probe_that_hangs_is_killed_and_means_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    os.mkfifo(
        device
    )  # opening one for reading and writing succeeds; the probe's child is stopped by a script
    monkeypatch.setattr(accelerator, "PROBE_TIMEOUT_S", 0.2)
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(slow))
    chosen = asyncio.run(choose_accelerator(tmp_path, device))
    assert chosen == Accelerator(name="tcg", reason="the KVM probe hung for 0.2 s: guests are emulated")


def answer_with(speed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a script in the probe's place; returns a device that can be opened."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{json.dumps({'instructions_per_second': speed})}'\n")
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    device = tmp_path / "kvm"
    device.touch()
    return device


def test_answer_is_kept_until_the_next_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = answer_with(4_000_000_000, tmp_path, monkeypatch)
    first = asyncio.run(choose_accelerator(tmp_path, device))
    assert first.name == "kvm"
    answer_with(1_000_000, tmp_path, monkeypatch)

    assert asyncio.run(choose_accelerator(tmp_path, device)) == first

    cache = tmp_path / "accelerator.json"
    cache.write_text(cache.read_text().replace('"boot_id":"', '"boot_id":"earlier-'))
    assert asyncio.run(choose_accelerator(tmp_path, device)).name == "tcg"


def test_broken_cache_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = answer_with(4_000_000_000, tmp_path, monkeypatch)
    (tmp_path / "accelerator.json").write_text("{nonsense")
    assert asyncio.run(choose_accelerator(tmp_path, device)).name == "kvm"
