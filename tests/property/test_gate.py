"""The maxima by a virtual clock: what goes in any second, in which order, and when limits change."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.storage.gate import BURST_NS, LIMIT_MAX, DiskGate
from tests.reference.gate import NEVER, SECOND, GateTwin, Went, in_order, seconds, serve

quick = settings(derandomize=True, deadline=None, max_examples=25)
MOST, LEAST = 1.05, 0.95
rates = st.integers(20, 1500)
sizes = st.sampled_from([0, 1, 512, 4096, 8191, 8192, 8193, 65536, 262144])
any_limit = st.one_of(st.integers(0, 5), st.integers(0, LIMIT_MAX), st.just(LIMIT_MAX))
any_size = st.one_of(st.integers(0, 2**64 - 1), sizes)
step = st.one_of(
    st.tuples(st.just("set"), any_limit, any_limit),
    st.tuples(st.just("admit"), any_size, st.just(0)),
    st.tuples(st.just("sleep"), st.integers(0, 2 * BURST_NS), st.just(0)),
    st.tuples(st.just("sleep"), st.integers(0, 1 << 50), st.just(0)),
)


@settings(quick, max_examples=200)
@given(st.integers(0, 1 << 61), st.lists(step, max_size=40))
def test_agrees_with_exact_fractions(now: int, steps: list[tuple[str, int, int]]) -> None:
    gate, twin = DiskGate(1), GateTwin()
    for what, first, second in [("set", 1000, 10**6), *steps]:
        if what == "set":
            gate.set(now, max_iops=first, max_bandwidth=second)
            twin.set(now, first, second)
        elif what == "sleep":
            now = min(now + first, NEVER - BURST_NS)
        else:
            assert gate.admit(first, now) == twin.admit(first, now)


def totals(requests: list[Went]) -> tuple[int, int]:
    return sum(each.units for each in requests), sum(each.size for each in requests)


def never_more(went: list[Went], end: int, max_iops: int, max_bandwidth: int, begin: int = 0) -> None:
    for fullest, _ in seconds(went, begin, end):
        iops, bandwidth = totals(fullest[:-1])
        assert not max_iops or iops <= MOST * max_iops
        assert not max_bandwidth or bandwidth <= MOST * max_bandwidth


def never_less(went: list[Went], end: int, max_iops: int, max_bandwidth: int, begin: int = 0) -> None:
    """With a queue that never ends and one limit."""
    checked = 0
    for _, emptiest in seconds(went, begin, end):
        iops, bandwidth = totals(emptiest)
        largest = max(went, key=lambda each: each.size)
        if max_iops:
            assert iops + largest.units >= LEAST * max_iops
        if max_bandwidth:
            assert bandwidth + largest.size >= LEAST * max_bandwidth
        checked += 1
    assert checked


def queue(rng: random.Random, choices: list[int], limit: int, bytes_limit: int, end: int) -> list[tuple[int, int]]:
    """More requests than can go until `end`, all there at once."""
    arrivals, iops, bandwidth = [], 0, 0
    while (limit and iops * SECOND <= 2 * limit * end) or (bytes_limit and bandwidth * SECOND <= 2 * bytes_limit * end):
        arrivals.append((0, rng.choice(choices)))
        iops += max(1, -(-arrivals[-1][1] // 8192))
        bandwidth += max(1, arrivals[-1][1])
    return arrivals


@quick
@given(rates, st.booleans(), st.lists(sizes, min_size=1, max_size=4), st.integers(0, BURST_NS), st.randoms())
def test_saturated(rate: int, bandwidth: bool, choices: list[int], late: int, rng: random.Random) -> None:
    end = 5 * SECOND // 2
    choices = [size or 4096 for size in choices]
    max_iops, max_bandwidth = (0, rate * 8192) if bandwidth else (rate, 0)
    arrivals = queue(rng, [max(size, 4096) for size in choices], max_iops, max_bandwidth, end)
    gate = DiskGate(len(arrivals))
    gate.set(0, max_iops=max_iops, max_bandwidth=max_bandwidth)
    went = serve(gate, arrivals, end, lambda: rng.randint(0, late))
    assert in_order(went)
    never_more(went, end, max_iops, max_bandwidth)
    if len(went) > 1 and went[-1].now >= SECOND and went[0].now + SECOND <= end:
        never_less(went, end, max_iops, max_bandwidth)


@settings(quick, max_examples=150)
@given(
    rates, st.integers(100_000, 10_000_000), st.lists(st.tuples(st.integers(0, SECOND // 50), sizes), max_size=400),
    st.randoms(),
)  # fmt: skip
def test_any_arrivals(max_iops: int, max_bandwidth: int, gaps: list[tuple[int, int]], rng: random.Random) -> None:
    now, arrivals = 0, []
    for gap, size in gaps:
        now += gap if gap > SECOND // 100 else 0  # half of them come together
        arrivals.append((now, size))
    gate = DiskGate(max(1, len(arrivals)))
    gate.set(0, max_iops=max_iops, max_bandwidth=max_bandwidth)
    went = serve(gate, arrivals, 10**15, lambda: rng.randint(0, 5_000_000))
    assert [each.number for each in went] == list(range(len(arrivals)))
    assert in_order(went)
    never_more(went, 10**15, max_iops, max_bandwidth)
    waited = [each for each in went if each.now > arrivals[each.number][0]]
    assert gate.counters()["throttle_wait_ns"] == sum(each.now - arrivals[each.number][0] for each in waited)
    assert gate.counters()["throttled"] >= len(waited)
    assert (gate.waiting, gate.in_flight) == (0, 0)


@quick
@given(rates, rates, st.sampled_from([512, 8192, 65536]), st.integers(SECOND // 4, SECOND), st.randoms())
def test_change_while_running(before: int, after: int, size: int, at: int, rng: random.Random) -> None:
    end = at + 5 * SECOND // 2
    arrivals = queue(rng, [size], max(before, after), 0, end)
    gate = DiskGate(len(arrivals))
    gate.set(0, max_iops=before)
    went = serve(gate, arrivals, end, lambda: rng.randint(0, BURST_NS // 2), [(at, {"max_iops": after})])
    assert in_order(went)
    never_more(went, at, before, 0)
    never_more(went, end, after, 0, begin=at)
    never_less(went, end, after, 0, begin=at)


@pytest.mark.parametrize("rate", [1, 7, 3000, LIMIT_MAX])
def test_no_drift(rate: int) -> None:
    """Requests whose cost is no whole number of ns, for longer than errors of half a ns would hide."""
    gate = DiskGate(1)
    gate.set(0, max_iops=rate)
    now, requests = 0, 30_000
    for _ in range(requests):
        wait = gate.admit(8192, now)
        if wait:
            now += wait
            assert gate.admit(8192, now) == 0
    assert now == (requests - 1) * SECOND // rate
