"""Rounds of several contestants that do the same reads in turn."""

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.image import BLOCK, flavor
from hvcore.metrics.histogram import LatencyHistogram
from hvcore.report.machine import cpu_model

ROUNDS = 11


@dataclass(frozen=True)
class Result:
    """One round of one contestant; `latency` is None where it is not known for each request."""

    requests: int
    seconds: float
    latency: LatencyHistogram | None


Contestant = Callable[[int], Result]  # from the seed of the round's offsets


def loaded(done: dict[str, Any]) -> Result:
    """What run_channel and run_disk return."""
    if done["errors"]:
        raise RuntimeError(f"{done['errors']} of {done['requests']} reads failed")
    return Result(done["requests"], done["seconds"], done["latency"])


class Rounds:
    """Every contestant once per round, so that a disturbance meets all of them.

    pytest-benchmark times the first; all are compared with those named in `bases`.
    """

    def __init__(self, depth: int, contestants: dict[str, Contestant], bases: tuple[str, ...]) -> None:
        self.depth = depth
        self.bases = tuple(name for name in bases if name in contestants)
        self.contestants = contestants
        self.ns: dict[str, list[float]] = {name: [] for name in contestants}
        self.latencies = {name: LatencyHistogram() for name in contestants}
        self.requests: dict[str, int] = {}
        self.first = next(iter(contestants))

    def run(self, name: str, seed: int) -> None:
        result = self.contestants[name](seed)
        self.ns[name].append(1e9 * result.seconds / result.requests)
        self.requests[name] = result.requests
        if result.latency is not None:
            self.latencies[name].merge(result.latency)

    def others(self, seed: int) -> None:
        for name in self.contestants:
            if name != self.first:
                self.run(name, seed)

    def warm_up(self) -> None:
        """A round that does not count: caches, first-time allocations, and how long waits are worth spinning."""
        for contestant in self.contestants.values():
            contestant(0)

    def all(self) -> None:
        self.warm_up()
        for seed in range(1, ROUNDS + 1):
            self.run(self.first, seed)
            self.others(seed)

    def benchmark(self, benchmark: Any) -> None:
        """The same by pytest-benchmark, whose time is that of the first contestant."""
        seeds = iter(range(1, ROUNDS + 1))

        def others() -> tuple[tuple[str, int], dict[str, Any]]:
            seed = next(seeds)
            self.others(seed)
            return (self.first, seed), {}

        self.warm_up()
        benchmark.pedantic(self.run, setup=others, rounds=ROUNDS)

    def figures(self) -> dict[str, Any]:
        """Nanoseconds per request and IOPS of each contestant, median and spread of the rounds, latency_ns over all
        rounds, and for each base the ratio of the IOPS and of the median latency to the base's."""
        contestants: dict[str, Any] = {}
        for name, ns in self.ns.items():
            median = statistics.median(ns)
            contestants[name] = {
                "requests": self.requests[name],
                "ns_per_request": {"median": median, "min": min(ns), "max": max(ns)},
                "iops": 1e9 / median,
                "latency_ns": self.latencies[name].summary() if self.latencies[name].count else None,
            }
        for one in contestants.values():
            for base in self.bases:
                to = contestants[base]
                one[f"iops_to_{base}"] = round(one["iops"] / to["iops"], 3)
                if one["latency_ns"] is not None:
                    one[f"latency_to_{base}"] = round(one["latency_ns"]["p50"] / to["latency_ns"]["p50"], 3)
        return {
            "depth": self.depth,
            "block_size": BLOCK,
            "rounds": len(self.ns[self.first]),
            "machine": {"cpu": cpu_model(), "cpus": len(os.sched_getaffinity(0)), "flavor": flavor()},
            "load_average": os.getloadavg()[0],
            "bases": self.bases,
            "contestants": contestants,
        }


def table(figures: dict[str, Any]) -> str:
    machine, contestants, bases = figures["machine"], figures["contestants"], figures["bases"]
    width = max(len(name) for name in contestants)
    lines = [
        f"queue depth {figures['depth']}, {figures['rounds']} rounds of reads of {figures['block_size']} bytes, "
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['flavor']}, load {figures['load_average']:.2f}",
        f"{'':{width}}{'ns/request':>12}{'min':>8}{'max':>8}{'IOPS':>10}"
        + "".join(f"{'/' + base:>9}" for base in bases)
        + f"{'p50':>9}{'p99':>9}{'p99.9':>9}",
    ]
    for name, one in contestants.items():
        ns, latency = one["ns_per_request"], one["latency_ns"]
        line = f"{name:{width}}{ns['median']:12.0f}{ns['min']:8.0f}{ns['max']:8.0f}{one['iops']:10.0f}"
        line += "".join(f"{one[f'iops_to_{base}']:9.2f}" for base in bases)
        if latency is not None:
            line += f"{latency['p50']:9}{latency['p99']:9}{latency['p99_9']:9}"
        lines.append(line)
    lines += [f"{name}: {value}" for name, value in figures.get("notes", {}).items()]
    return "\n".join(lines)
