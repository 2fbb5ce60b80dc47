"""What limits, counters and events add to each request.

    HVCORE_EXTRA=bench python setup.py build_ext --inplace
    python -m pytest bench/bench_metrics.py --benchmark-json=metrics.json

All parts are measured round by round in turn. The benchmark's own figure is one run of all; `extra_info` has each
part's nanoseconds per request (best, median, quartiles), beside what reading a clock costs.
"""

import os
import platform
import statistics
from typing import Any

import pytest

metricsloop = pytest.importorskip("bench_metricsloop", reason="built only with HVCORE_EXTRA=bench")

ROUNDS = 31
REQUESTS = 100_000


def test_per_request(benchmark: Any) -> None:
    found: dict[str, list[float]] = {part: [] for part in metricsloop.PARTS}

    def round_of_all() -> None:
        for part in found:
            found[part].append(metricsloop.measure(part, REQUESTS))

    round_of_all()
    for times in found.values():
        times.clear()
    benchmark.pedantic(round_of_all, rounds=ROUNDS, iterations=1)
    for part, times in found.items():
        low, median, high = statistics.quantiles(times, n=4)
        benchmark.extra_info[part] = {"best": min(times), "median": median, "quartiles": [low, high]}
    benchmark.extra_info["machine"] = {"cpus": len(os.sched_getaffinity(0)), "machine": platform.machine()}
