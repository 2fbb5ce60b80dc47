"""What one packet costs on a ring, beside what else one could use, and beside the floor.

    HVCORE_EXTRA=bench python setup.py build_ext --inplace
    python -m pytest bench/bench_ring.py --benchmark-json=ring.json

All alternatives of one question are measured round by round in turn, so that a disturbance meets all of them. The
benchmark's own figure is one whole run of the first; `extra_info` has nanoseconds per packet (best, median, quartiles)
and the ratio of the medians to the first for each alternative. Runs are short, so that on a busy machine some of them
fall between two disturbances: there the best says more than the median.
"""

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from hvcore.vmbus import Ring
from tests.reference import ring as twin

ringloop = pytest.importorskip("bench_ringloop", reason="built only with HVCORE_EXTRA=bench")

ROUNDS = 31
RING_BYTES = 4096 * 17
CPUS = sorted(os.sched_getaffinity(0))


def echo(end: Connection) -> None:
    while data := end.recv_bytes():
        end.send_bytes(data)


@pytest.fixture(scope="module")
def echo_pipe() -> Iterator[Connection]:
    """A pipe to a process that answers every message with itself."""
    mine, other = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=echo, args=(other,))
    process.start()
    yield mine
    mine.send_bytes(b"")
    process.join()
    mine.close()
    other.close()


class Pair:
    """Two threads, each on a CPU of its own where there are two."""

    def __init__(self) -> None:
        cpus = iter(CPUS)
        self.threads = ThreadPoolExecutor(2, initializer=lambda: os.sched_setaffinity(0, {next(cpus, CPUS[-1])}))
        # A task that waits for its twin makes sure that both threads exist.
        meet = threading.Barrier(2)
        for task in [self.threads.submit(meet.wait) for _ in range(2)]:
            task.result()

    def __call__(self, timed: Callable[[], int], other: Callable[[], Any]) -> int:
        tasks = self.threads.submit(timed), self.threads.submit(other)
        tasks[1].result()
        return tasks[0].result()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.threads.shutdown()


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def timed(step: Callable[[], Any]) -> Callable[[int], int]:
    """A run of `count` steps in Python that returns its nanoseconds, as the compiled loops do."""

    def run(count: int) -> int:
        begin = time.perf_counter_ns()
        for _ in range(count):
            step()
        return time.perf_counter_ns() - begin

    return run


def compare(benchmark: Any, alternatives: dict[str, tuple[int, Callable[[int], int]]]) -> None:
    """Runs {name: (packets, run)} in turn; the first is what the others are compared with."""
    nanoseconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(ROUNDS + 1):
        for name, (count, run) in alternatives.items():
            result = run(count) / count
            if turn:  # the first turn warms up
                nanoseconds[name].append(result)
    first, (count, run) = next(iter(alternatives.items()))
    base = statistics.median(nanoseconds[first])
    for name, values in nanoseconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        benchmark.extra_info[name] = {
            "ns_per_packet": round(middle, 1),
            "best": round(min(values), 1),
            "quartiles": [round(low, 1), round(high, 1)],
            "ratio": round(middle / base, 2),
        }
    benchmark.extra_info["machine"] = {"cpu": cpu_model(), "cpus": len(CPUS), "pinned": len(CPUS) > 1}
    benchmark.pedantic(run, args=(count,), rounds=5)


@pytest.mark.parametrize("size", [64, 4096])
def test_one_way_in_one_thread(benchmark: Any, size: int) -> None:
    """A packet in and out again: the code's own cost, no other CPU involved."""
    loop = ringloop.Ends(bytearray(RING_BYTES))
    ring = Ring.create(bytearray(RING_BYTES))
    model = twin.Ring(bytearray(RING_BYTES))
    packet = twin.Packet(payload=bytes(size))
    body = bytes(size)
    left, right = get_context("spawn").Pipe()

    def ring_step() -> None:
        ring.send(body)
        ring.receive()

    def twin_step() -> None:
        model.send(packet)
        model.receive()

    def pipe_step() -> None:
        left.send_bytes(body)
        right.recv_bytes()

    with left, right:
        compare(
            benchmark,
            {
                "compiled loop": (20_000, lambda count: ringloop.local(loop, count, size)),
                "Ring from Python": (5_000, timed(ring_step)),
                "plain-Python twin": (100, timed(twin_step)),
                "multiprocessing.Pipe": (200, timed(pipe_step)),
            },
        )


@pytest.mark.parametrize("size", [64, 4096])
def test_one_way_between_threads(benchmark: Any, pair: Pair, size: int) -> None:
    """A stream of packets from one CPU to the other; in bursts, In and Out are published once per 16 packets."""
    loop = ringloop.Ends(bytearray(RING_BYTES))

    def stream(burst: int) -> Callable[[int], int]:
        return lambda count: pair(
            lambda: ringloop.consume(loop, count, burst), lambda: ringloop.produce(loop, count, size, burst)
        )

    compare(benchmark, {"one by one": (5_000, stream(1)), "bursts of 16": (5_000, stream(16))})


@pytest.mark.parametrize("size", [64, 4096])
def test_round_trip(benchmark: Any, pair: Pair, echo_pipe: Connection, size: int) -> None:
    """A packet there and one back, between two CPUs; per round trip, not per packet."""
    there, back = ringloop.Ends(bytearray(RING_BYTES)), ringloop.Ends(bytearray(RING_BYTES))
    body = bytes(size)

    def trips(count: int) -> int:
        return pair(lambda: ringloop.ping(there, back, count, size), lambda: ringloop.pong(there, back, count, size))

    def line(count: int) -> int:
        word = bytearray(64)
        return pair(lambda: ringloop.line_pass(word, count, True), lambda: ringloop.line_pass(word, count, False))

    def pipe_step() -> None:
        echo_pipe.send_bytes(body)
        echo_pipe.recv_bytes()

    compare(
        benchmark,
        {
            "compiled loop": (2_000, trips),
            "cache line": (2_000, line),
            "multiprocessing.Pipe to a process": (100, timed(pipe_step)),
        },
    )
