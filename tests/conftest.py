"""What all tests share: how hard properties are tried, markers, and which skips are allowed (skips.py)."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

pytest_plugins = ["tests.skips"]

# $HYPOTHESIS_PROFILE: `fast` in make check, `default`, `long` for a night. Machines are busy at times: no
# deadlines, tests have time-outs.
_BUSY = [HealthCheck.too_slow]
settings.register_profile("fast", max_examples=25, deadline=None, suppress_health_check=_BUSY)
settings.register_profile("default", max_examples=100, deadline=None, suppress_health_check=_BUSY)
settings.register_profile("long", max_examples=5000, deadline=None, suppress_health_check=_BUSY)
# For engines that are wrong on purpose: a fault that is found need not be made shorter.
_NO_SHRINKING = (Phase.explicit, Phase.generate)
settings.register_profile("mutant", settings.get_profile("default"), phases=_NO_SHRINKING, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config: pytest.Config) -> None:
    """Names the markers that only some tests have."""
    config.addinivalue_line("markers", "fuzz: fuzzes for some seconds with what the clock allows")
