import struct

import pytest

from hvcore.errors import ProtocolError
from hvcore.metrics.histogram import LIMIT_NS, LatencyHistogram

HEADER = struct.Struct("<4sI4Q")  # magic, version, count, sum, min, max
BUCKETS = 2241


def filled(*values: int) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    return histogram


def test_empty() -> None:
    histogram = LatencyHistogram()
    assert histogram.summary() == {"min": 0, "p50": 0, "p90": 0, "p99": 0, "p99_9": 0, "max": 0, "mean": 0.0}
    assert histogram.count == histogram.sum == 0


def test_summary_keys_and_types() -> None:
    summary = filled(*range(1, 101)).summary()
    assert summary == {"min": 1, "p50": 50, "p90": 90, "p99": 99, "p99_9": 100, "max": 100, "mean": 50.5}
    assert [type(value) for value in summary.values()] == [int] * 6 + [float]


def test_rank_of_99_9_in_1000() -> None:
    histogram = filled(*[1] * 999, 100)
    assert histogram.percentile(99.9) == 1
    assert histogram.percentile(100) == 100


@pytest.mark.parametrize("value", [0, 1, 63, 64, 127])
def test_small_values_exact(value: int) -> None:
    assert filled(0, value, 127).percentile(50) == value


@pytest.mark.parametrize("value", [0, 1, 2**20, LIMIT_NS - 1, LIMIT_NS])
def test_single_value_exact(value: int) -> None:
    histogram = filled(value)
    assert set(histogram.summary().values()) == {value}


@pytest.mark.parametrize("value", [LIMIT_NS + 1, 2**64 - 1])
def test_saturates(value: int) -> None:
    assert filled(value) == filled(LIMIT_NS)


def test_negative_refused() -> None:
    with pytest.raises(OverflowError):
        filled(-1)


@pytest.mark.parametrize("q", [-0.1, 100.1, float("nan"), float("inf")])
def test_percentile_range(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        filled(1).percentile(q)


def test_merge_with_empty() -> None:
    histogram = filled(5, 7)
    histogram.merge(LatencyHistogram())
    assert histogram == filled(5, 7)
    empty = LatencyHistogram()
    empty.merge(histogram)
    assert empty == filled(5, 7)


def test_merge_overflow_adds_nothing() -> None:
    image = bytearray(filled(1).to_bytes())
    HEADER.pack_into(image, 0, b"HVH\0", 1, 2**63, 2**63, 1, 1)
    struct.pack_into("<Q", image, HEADER.size + 8, 2**63)
    huge = LatencyHistogram.from_bytes(image)
    with pytest.raises(OverflowError):
        huge.merge(huge)
    assert huge.to_bytes() == image


def test_clear() -> None:
    histogram = filled(1, 2, 3)
    histogram.clear()
    assert histogram == LatencyHistogram()


def test_image_size() -> None:
    assert len(LatencyHistogram().to_bytes()) == HEADER.size + 8 * BUCKETS


@pytest.mark.parametrize("size", [0, 7, HEADER.size + 8 * BUCKETS - 1, HEADER.size + 8 * BUCKETS + 1])
def test_wrong_size(size: int) -> None:
    with pytest.raises(ProtocolError, match="bytes"):
        LatencyHistogram.from_bytes(bytes(size))


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ((b"HVX\0", 1, 2, 30, 10, 20), "version"),
        ((b"HVH\0", 2, 2, 30, 10, 20), "version"),
        ((b"HVH\0", 1, 3, 30, 10, 20), "hold 2 values, not 3"),
        ((b"HVH\0", 1, 2, 31, 10, 20), "add up"),
        ((b"HVH\0", 1, 2, 30, 9, 20), "first and last"),
        ((b"HVH\0", 1, 2, 30, 10, 21), "first and last"),
        ((b"HVH\0", 1, 2, 30, 20, 10), "no range"),
        ((b"HVH\0", 1, 2, 30, 10, 2**64 - 1), "no range"),
    ],
)
def test_contradictions(header: tuple[object, ...], fault: str) -> None:
    image = bytearray(filled(10, 20).to_bytes())
    HEADER.pack_into(image, 0, *header)
    with pytest.raises(ProtocolError, match=fault):
        LatencyHistogram.from_bytes(image)


def test_buckets_that_wrap_refused() -> None:
    # 2**63 + 2**63 + 2 values are 2 in 64 bits.
    image = bytearray(filled(10, 20).to_bytes())
    for bucket in (10, 20):
        struct.pack_into("<Q", image, HEADER.size + 8 * bucket, 2**63 + 1)
    with pytest.raises(ProtocolError, match="buckets hold"):
        LatencyHistogram.from_bytes(image)


def test_empty_with_sum_refused() -> None:
    image = bytearray(LatencyHistogram().to_bytes())
    HEADER.pack_into(image, 0, b"HVH\0", 1, 0, 1, 0, 0)
    with pytest.raises(ProtocolError, match="empty"):
        LatencyHistogram.from_bytes(image)
