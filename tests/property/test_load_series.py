"""A load's series: rows add up to the totals, however few rows there are; histograms survive JSON."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.dispatch.series import LoadSeries
from hvcore.errors import ProtocolError
from hvcore.metrics.histogram import LIMIT_NS, LatencyHistogram

REQUESTS = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, LIMIT_NS), st.integers(0, 1 << 20), st.booleans()), max_size=40
)
EASY = settings(derandomize=True, deadline=None, max_examples=100)


def series(requests, capacity, end=0):
    made, now = LoadSeries(capacity, 1000), 0
    for gap, latency, size, error in requests:
        now += gap
        made.record(now, latency, size, error)
    made.close(max(now, end))
    return made, now


@EASY
@given(REQUESTS, st.sampled_from([2, 4, 64]))
def test_rows_add_up_to_the_totals(requests, capacity):
    made, now = series(requests, capacity)
    rows = made.rows()
    assert len(rows) <= capacity
    assert sum(row["requests"] for row in rows) == len(requests) == made.latency.count
    assert sum(row["bytes"] for row in rows) == sum(size for _, _, size, _ in requests)
    assert sum(row["errors"] for row in rows) == sum(error for _, _, _, error in requests)
    whole = LatencyHistogram()
    for _, latency, _, _ in requests:
        whole.record(latency)
    assert made.latency == whole
    if capacity == 64 and now < 64000:
        assert made.interval == 1e-6
        times, now = [], 0
        for gap, *_ in requests:
            now += gap
            times.append(now)
        for number, row in enumerate(rows):
            assert row["requests"] == sum(number == time // 1000 for time in times)


@EASY
@given(REQUESTS)
def test_percentiles_of_a_row_are_close(requests):
    made = LoadSeries(2, 1 << 62)
    for _, latency, _, _ in requests:
        made.record(0, latency)
    made.close(1)
    for row in made.rows():
        for q in (50, 99):
            exact = sorted(latency for _, latency, _, _ in requests)[max(0, -(-len(requests) * q // 100) - 1)]
            assert abs(row[f"p{q}_ns"] - exact) <= max(2, exact / 16)


@EASY
@given(REQUESTS, REQUESTS)
def test_two_series_add_up(one, other):
    first, _ = series(one, 4)
    second, _ = series(other, 4)
    first.add(second)
    rows = first.rows()
    assert sum(row["requests"] for row in rows) == len(one) + len(other)
    assert sum(row["bytes"] for row in rows) == sum(size for _, _, size, _ in one + other)


def test_a_stall_is_an_empty_row():
    made = LoadSeries(64, 1000)
    made.record(10, 5)
    made.record(3500, 3400)
    made.close(3600)
    assert [row["requests"] for row in made.rows()] == [1, 0, 0, 1]
    assert made.rows()[-1]["seconds"] == pytest.approx(6e-7)


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_rows_are_even(capacity):
    with pytest.raises(ValueError, match="even"):
        LoadSeries(capacity)


@EASY
@given(st.lists(st.integers(0, LIMIT_NS), max_size=50))
def test_histograms_survive_json(values):
    made = LatencyHistogram()
    for value in values:
        made.record(value)
    assert LatencyHistogram.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "hvcore.histogram/2"},
        {"count": 3},
        {"count": True},
        {"count": -1},
        {"sum": 1.5},
        {"sum": 10**30},
        {"min": 0},
        {"max": 1 << 41},
        {"buckets": None},
        {"buckets": [[100, 1]]},
        {"buckets": [[100, 1], [100, 1]]},
        {"buckets": [[100, 1], [201, 1]]},
        {"buckets": [[100, 1], [200, 1], [300, 0]]},
        {"buckets": [[100, 1], [1 << 60, 1]]},
        {"buckets": [[100, 1, 2], [200, 1]]},
    ],
)
def test_a_strange_histogram_is_refused(change):
    made = LatencyHistogram()
    made.record(100)
    made.record(200)
    with pytest.raises(ProtocolError, match="histogram"):
        LatencyHistogram.from_dict(made.to_dict() | change)


def test_what_is_no_object_is_no_histogram():
    with pytest.raises(ProtocolError, match="not a histogram"):
        LatencyHistogram.from_dict([1])
