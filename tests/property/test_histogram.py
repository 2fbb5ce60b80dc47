from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.errors import ProtocolError
from hvcore.metrics.histogram import LIMIT_NS, LatencyHistogram
from tests.reference.histogram import nearest_rank

# Of every magnitude, not only large ones.
values_ns = st.integers(0, 40).flatmap(lambda bits: st.integers(0, 1 << bits))
lists = st.lists(values_ns, max_size=60)
quick = settings(derandomize=True, deadline=None, max_examples=150)


def filled(values: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    return histogram


@quick
@given(st.lists(values_ns, min_size=1, max_size=60), st.floats(0, 100))
def test_percentile_within_a_64th(values: list[int], q: float) -> None:
    exact = nearest_rank(values, q)
    assert abs(filled(values).percentile(q) - exact) * 64 <= exact


@quick
@given(lists)
def test_exact_figures(values: list[int]) -> None:
    histogram = filled(values)
    assert histogram.count == len(values)
    assert histogram.sum == sum(values)
    assert histogram.min == min(values, default=0)
    assert histogram.max == max(values, default=0)
    assert histogram.mean == (sum(values) / len(values) if values else 0.0)


@quick
@given(lists, lists)
def test_merge_is_recording_both(first: list[int], second: list[int]) -> None:
    merged = filled(first)
    merged.merge(filled(second))
    assert merged == filled(first + second)


@quick
@given(lists)
def test_round_trip(values: list[int]) -> None:
    histogram = filled(values)
    assert LatencyHistogram.from_bytes(histogram.to_bytes()) == histogram


@quick
@given(lists, st.data())
def test_damage_is_refused_or_harmless(values: list[int], data: st.DataObject) -> None:
    image = bytearray(filled(values).to_bytes())
    place = data.draw(st.one_of(st.integers(0, 40), st.integers(0, len(image) - 1)))
    image[place] ^= data.draw(st.integers(1, 255))
    try:
        histogram = LatencyHistogram.from_bytes(image)
    except ProtocolError:
        return
    assert histogram.to_bytes() == image
    assert histogram.min <= histogram.percentile(50) <= histogram.max <= LIMIT_NS
