"""The floor under the paths' figures: 4 KiB random reads of a file in the page cache, three ways, interleaved.

floor: a server process behind two bare rings; local: a loop of preadv without the GIL; python: os.preadv from Python.
Run by pytest-benchmark (its time is one round of the floor), or alone: python bench/bench_floor.py [--json].
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hvcore.dispatch.floor import Floor, local_preadv
from hvcore.metrics.histogram import LatencyHistogram

FILE_BYTES = 256 << 20
BLOCK = 4096
REQUESTS = 100_000
ROUNDS = 9
DEPTHS = (1, 32)

Offsets = npt.NDArray[np.uint64]


def write_image(path: Path) -> None:
    """Written bytes, so that every block is a page of its own in the cache."""
    chunk = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(FILE_BYTES // len(chunk)):
            file.write(chunk)


def random_offsets(seed: int) -> Offsets:
    blocks = np.random.default_rng(seed).integers(0, FILE_BYTES // BLOCK, REQUESTS, dtype=np.uint64)
    return blocks * np.uint64(BLOCK)


def python_preadv(path: Path, offsets: Offsets, depth: int) -> tuple[float, LatencyHistogram]:
    histogram = LatencyHistogram()
    buffers = [[bytearray(BLOCK)] for _ in range(depth)]
    places = offsets.tolist()
    fd = os.open(path, os.O_RDONLY)
    try:
        start_ns = now_ns = time.monotonic_ns()
        for i, offset in enumerate(places):
            os.preadv(fd, buffers[i % depth], offset)
            before_ns, now_ns = now_ns, time.monotonic_ns()
            histogram.record(now_ns - before_ns)
    finally:
        os.close(fd)
    return (now_ns - start_ns) / 1e9, histogram


def placement() -> tuple[int, int] | None:
    """A CPU for either side of the floor, where there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[1]) if len(cpus) > 1 else None


class Comparison:
    """Rounds of all three over the same offsets, and what came of them."""

    def __init__(self, path: Path, depth: int) -> None:
        self.path = path
        self.depth = depth
        self.seconds: dict[str, list[float]] = {"floor": [], "local": [], "python": []}
        self.latencies = {name: LatencyHistogram() for name in self.seconds}

    def note(self, name: str, result: tuple[float, LatencyHistogram]) -> None:
        self.seconds[name].append(result[0])
        self.latencies[name].merge(result[1])

    def others(self, offsets: Offsets) -> None:
        self.note("local", local_preadv(self.path, offsets, BLOCK, self.depth))
        self.note("python", python_preadv(self.path, offsets, self.depth))

    def figures(self) -> dict[str, Any]:
        """ns_per_request: median, least and most of the rounds; latency_ns over all of them."""
        result: dict[str, Any] = {
            "depth": self.depth,
            "block_size": BLOCK,
            "requests": REQUESTS,
            "rounds": len(self.seconds["floor"]),
            "cpus": len(os.sched_getaffinity(0)),
            "floor_placement": placement(),
            "load_average": os.getloadavg()[0],
        }
        for name, seconds in self.seconds.items():
            each = [1e9 * value / REQUESTS for value in seconds]
            result[name] = {
                "ns_per_request": {"median": statistics.median(each), "min": min(each), "max": max(each)},
                "iops": 1e9 / statistics.median(each),
                "latency_ns": self.latencies[name].summary(),
            }
        return result


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"queue depth {figures['depth']}, {figures['rounds']} rounds of {REQUESTS} reads of {BLOCK} bytes, "
        f"{figures['cpus']} CPUs, floor on {figures['floor_placement']}, load {figures['load_average']:.2f}",
        f"{'':8}{'ns/request':>12}{'min':>8}{'max':>8}{'IOPS':>11}{'p50':>8}{'p99':>8}{'p99.9':>8}",
    ]
    for name in ("floor", "local", "python"):
        each, latency = figures[name]["ns_per_request"], figures[name]["latency_ns"]
        lines.append(
            f"{name:8}{each['median']:12.0f}{each['min']:8.0f}{each['max']:8.0f}{figures[name]['iops']:11.0f}"
            f"{latency['p50']:8}{latency['p99']:8}{latency['p99_9']:8}"
        )
    return "\n".join(lines)


def compare(path: Path, depth: int) -> dict[str, Any]:
    comparison = Comparison(path, depth)
    with Floor(path, BLOCK, depth, placement()) as floor:
        floor.run(random_offsets(0))
        local_preadv(path, random_offsets(0), BLOCK, depth)
        for seed in range(1, ROUNDS + 1):
            offsets = random_offsets(seed)
            comparison.note("floor", floor.run(offsets))
            comparison.others(offsets)
    return comparison.figures()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("floor") / "image"
    write_image(path)
    yield path
    path.unlink()


@pytest.mark.parametrize("depth", DEPTHS)
def test_floor(benchmark: Any, image: Path, depth: int) -> None:
    comparison = Comparison(image, depth)
    seeds = iter(range(ROUNDS + 1))

    def others() -> tuple[tuple[Offsets], dict[str, Any]]:
        offsets = random_offsets(next(seeds))
        comparison.others(offsets)
        return (offsets,), {}

    with Floor(image, BLOCK, depth, placement()) as floor:
        floor.run(random_offsets(0))

        def run(offsets: Offsets) -> None:
            comparison.note("floor", floor.run(offsets))

        benchmark.pedantic(run, setup=others, rounds=ROUNDS)
    benchmark.extra_info.update(comparison.figures())
    print("\n" + table(benchmark.extra_info))


def main() -> None:
    parser = argparse.ArgumentParser(description="The floor under the paths' figures.")
    parser.add_argument("--json", action="store_true", help="one object per queue depth instead of tables")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        write_image(path)
        for depth in DEPTHS:
            figures = compare(path, depth)
            print(json.dumps(figures) if arguments.json else table(figures), flush=True)


if __name__ == "__main__":
    main()
