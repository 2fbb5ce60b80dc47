import mmap
import resource
import threading
from itertools import pairwise

import pytest

from hvcore.metrics.counters import (
    COUNTERS_BYTES,
    KINDS,
    NAMES,
    context_switches,
    count_io,
    count_latency,
    counters_snapshot,
    normalised,
    sampled,
)


def test_names_in_order() -> None:
    assert NAMES == (
        "requests", "hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied", "doorbells",
        "blocking_waits", "media_accesses", "errors", "read_operations", "write_operations", "read_bytes",
        "write_bytes", "io_units", "queue_length", "flushes", "unmaps", "throttled", "throttle_wait_ns", "latency_ns",
        "latency_samples", "latency_max_ns", "interrupts_received", "interrupts_sent",
    )  # fmt: skip


@pytest.mark.parametrize("offset", [0, 128, 64, 4096 - COUNTERS_BYTES])
def test_snapshot(offset: int) -> None:
    with mmap.mmap(-1, 4096) as region:
        with memoryview(region) as view, view.cast("Q") as words:
            for i in range(len(NAMES)):
                words[offset // 8 + i] = 2**64 - 1 - i
        assert counters_snapshot(region, offset) == {name: 2**64 - 1 - i for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("offset", [1, 8, 32, 4096 - 64, 4096, 2**64 - 64, 2**64 - 1])
def test_no_block_there(offset: int) -> None:
    with mmap.mmap(-1, 4096) as region, pytest.raises(ValueError, match=f"no counters at offset {offset}"):
        counters_snapshot(region, offset)


def test_block_is_whole_cache_lines() -> None:
    assert len(NAMES) * 8 <= COUNTERS_BYTES == 256


@pytest.mark.parametrize(
    ("kind", "size", "counted"),
    [
        ("read", 4096, {"read_operations": 3, "read_bytes": 3 * 4096, "io_units": 3}),
        ("write", 8193, {"write_operations": 3, "write_bytes": 3 * 8193, "io_units": 6}),
        ("flush", 0, {"flushes": 3, "io_units": 3}),
        ("unmap", 0, {"unmaps": 3, "io_units": 3}),
        ("other", 0, {"io_units": 3}),
    ],
)
def test_io(kind: str, size: int, counted: dict[str, int]) -> None:
    with mmap.mmap(-1, 4096) as region:
        count_io(region, kind, size, times=3, offset=64)
        assert counters_snapshot(region, 64) == dict.fromkeys(NAMES, 0) | {"requests": 3} | counted


def test_every_kind_is_told() -> None:
    assert sorted(KINDS) == ["flush", "other", "read", "unmap", "write"]
    with mmap.mmap(-1, 4096) as region, pytest.raises(KeyError):
        count_io(region, "trim", 0)


@pytest.mark.parametrize(
    ("size", "units"), [(0, 1), (1, 1), (8191, 1), (8192, 1), (8193, 2), (16384, 2), (2**64 - 1, 2**51)]
)
def test_normalised(size: int, units: int) -> None:
    assert normalised(size) == units


def test_latency_samples() -> None:
    with mmap.mmap(-1, 4096) as region:
        for ns in (5, 1, 9, 3):
            count_latency(region, ns)
        found = counters_snapshot(region)
    assert (found["latency_ns"], found["latency_samples"], found["latency_max_ns"]) == (18, 4, 9)


def test_one_request_in_64_is_sampled() -> None:
    chosen = sampled(1_000_000)
    assert chosen[0] == 0
    assert len(chosen) == pytest.approx(1_000_000 / 64, rel=0.02)
    gaps = [after - before for before, after in pairwise(chosen)]
    assert {min(gaps), max(gaps)} == {1, 127}


@pytest.mark.parametrize("period", [2, 7, 64, 127, 128])
def test_samples_meet_no_period(period: int) -> None:
    """A guest whose every n-th request is slow: the samples see it as often as it is."""
    chosen = sampled(4_000_000)
    share = sum(number % period == 1 for number in chosen) / len(chosen)
    assert share == pytest.approx(1 / period, rel=0.15)


def test_read_while_the_writer_counts() -> None:
    """Whole values that never go back, and nobody waits."""
    with mmap.mmap(-1, 4096) as region:
        writer = threading.Thread(target=count_io, args=(region, "read", 4096, 20_000_000))
        writer.start()
        last = dict.fromkeys(NAMES, 0)
        while writer.is_alive():
            found = counters_snapshot(region)
            assert all(found[name] >= last[name] for name in NAMES)
            last = found
        writer.join()
        assert counters_snapshot(region)["read_bytes"] == 4096 * 20_000_000


def test_switches_are_the_threads_own() -> None:
    def measure() -> None:
        for _ in range(2):
            usage = resource.getrusage(resource.RUSAGE_THREAD)
            figures.append((usage.ru_nvcsw, usage.ru_nivcsw))
            figures.append(context_switches())

    for _ in range(3):
        figures: list[tuple[int, int]] = []
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
        for before, ours, after in zip(figures, figures[1:], figures[2:], strict=False):
            assert before[0] <= ours[0] <= after[0]
            assert before[1] <= ours[1] <= after[1]
