"""What a switch costs when nothing happens, measured by the benchmark of the same name."""

import asyncio

import pytest

pytest.importorskip("bench.driver._driver", reason="the driver's module is not built")

from bench.idle import PORTS, measure

pytestmark = pytest.mark.system


def test_idle_switch_with_ten_ports_uses_less_than_a_hundredth_of_a_core() -> None:
    figures = asyncio.run(measure(seconds=5, count=200))

    assert figures["ports"] == PORTS == 10
    assert figures["idle_cpu_percent"] < 1
    # That a first frame wakes it is a promise; how fast it does depends on what else the machine does.
    assert 0 < figures["wake_up_p50_us"] <= figures["wake_up_p99_us"]
