"""Distributions of a load, with fixed seeds: the same numbers on every machine, so the bounds are exact.

Bounds of chi-square are what a fair generator exceeds once in ten thousand seeds.
"""

import itertools
from collections import Counter

import pytest

from hvcore.dispatch.schedule import Arrivals
from hvcore.dispatch.workload import Requests

BOUNDS = {9: 34.0, 50: 97.0, 63: 115.0}  # by degrees of freedom
KIB = 1024


def chi_square(found, expected):
    return sum((count - share) ** 2 / share for count, share in zip(found, expected, strict=True))


def offsets(count, **parameters):
    return [offset for _, offset, _ in Requests(64 * 4096, **parameters).take(count)]


def test_uniform_offsets_are_uniform():
    found = Counter(offsets(64000))
    assert set(found) == set(range(0, 64 * 4096, 4096))
    assert chi_square(found.values(), [1000] * 64) < BOUNDS[63]


def test_a_seed_says_which_requests_come():
    assert offsets(100, seed=7) == offsets(100, seed=7) != offsets(100, seed=8)
    assert offsets(5, seed=1) == offsets(5)


def test_sequential_offsets_go_round():
    assert offsets(6, offsets="sequential", first=8192, length=3 * 4096) == [8192, 12288, 16384, 8192, 12288, 16384]


@pytest.mark.parametrize("kind", ["uniform", "sequential", "zipf"])
def test_requests_stay_in_their_range(kind):
    work = Requests(
        1 << 20, offsets=kind, block_sizes={512: 1, 4096: 2, 65536: 1}, first=512, length=70000 // 512 * 512
    )
    for _, offset, length in work.take(3000):
        assert 512 <= offset <= offset + length <= 512 + 70000 // 512 * 512 and offset % 512 == 0


@pytest.mark.parametrize("theta", [0.3, 0.99, 1.0, 1.2, 2.5])
def test_zipf_has_the_analytic_probabilities(theta):
    ranks, draws = 1000, 200_000
    work = Requests(ranks * 512, offsets="zipf", theta=theta, block_sizes={512: 1}, seed=3)
    rank_of = {work.slot(rank): rank for rank in range(1, ranks + 1)}
    assert len(rank_of) == ranks
    found = Counter(rank_of[offset] for _, offset, _ in work.take(draws))
    weights = [rank**-theta for rank in range(1, ranks + 1)]
    total = sum(weights)
    edges = [*range(1, 51), ranks + 1]  # the first fifty ranks each, the rest together
    counts = [sum(found[rank] for rank in range(low, high)) for low, high in itertools.pairwise(edges)]
    shares = [sum(weights[low - 1 : high - 1]) / total * draws for low, high in itertools.pairwise(edges)]
    assert chi_square(counts, shares) < BOUNDS[50]


def test_zipf_of_a_huge_disk_needs_no_table():
    work = Requests(1 << 60, offsets="zipf", theta=0.8)
    assert all(0 <= offset < 1 << 60 for _, offset, _ in work.take(1000))
    assert len({work.slot(rank) for rank in (1, 2, 3, 1 << 40)}) == 4


def test_one_block_is_always_the_first():
    assert {o for _, o, _ in Requests(4096, offsets="zipf").take(50)} == {0}


def test_shares_of_operations_and_sizes():
    work = Requests(
        1 << 30, operations={"read": 50, "write": 30, "flush": 15, "trim": 5}, block_sizes={4096: 3, 65536: 1}, seed=5
    )
    found = work.take(40000)
    operations = Counter(operation for operation, _, _ in found)
    kinds = ("read", "write", "flush", "trim")
    assert chi_square([operations[kind] for kind in kinds], [20000, 12000, 6000, 2000]) < BOUNDS[9]
    assert {(offset, length) for kind, offset, length in found if kind == "flush"} == {(0, 0)}
    sizes = Counter(length for kind, _, length in found if kind != "flush")
    moved = sum(sizes.values())
    assert chi_square([sizes[4096], sizes[65536]], [moved * 3 / 4, moved / 4]) < BOUNDS[9]


def test_a_share_of_zero_never_comes():
    work = Requests(1 << 20, operations={"read": 0, "write": 1}, block_sizes={512: 0, 4096: 1})
    assert {(kind, length) for kind, _, length in work.take(5000)} == {("write", 4096)}


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"block_sizes": {}}, "1 to 16 block sizes"),
        ({"block_sizes": {1000: 1}}, "1000 bytes"),
        ({"block_sizes": {1024: 1, 1536: 1}}, "multiple of the smallest"),
        ({"block_sizes": {2 << 20: 1}}, "do not fit"),
        ({"block_sizes": {4096: -1}}, "block size 4096"),
        ({"operations": {"read": 0}}, "no operation"),
        ({"operations": {"erase": 1}}, r"erase|no operation"),
        ({"operations": {"read": float("nan")}}, "operation read"),
        ({"offsets": "random"}, "random"),
        ({"theta": 0, "offsets": "zipf"}, "theta 0"),
        ({"first": 100}, "byte 100"),
        ({"first": 4096, "length": 1 << 20}, "not within"),
    ],
)
def test_what_does_not_fit_is_named(parameters, named):
    with pytest.raises(ValueError, match=named):
        Requests(1 << 20, **parameters)


# Arrivals.


def test_constant_arrivals_do_not_drift():
    work = Arrivals(3.0)
    assert work.take(4) == [0, 333333333, 666666666, 1000000000]
    assert Arrivals(7.0).take(70001)[-1] == 10_000 * 10**9


def test_poisson_arrivals_are_exponential():
    times = Arrivals(1000.0, "poisson", 9).take(20001)
    gaps = [(after - before) / 1e6 for before, after in itertools.pairwise(times)]
    assert times[0] > 0 and min(gaps) >= 0
    # Ten intervals of equal probability: -ln(1 - k / 10) mean gaps.
    edges = [0.105361, 0.223144, 0.356675, 0.510826, 0.693147, 0.916291, 1.203973, 1.609438, 2.302585]
    found = Counter(sum(gap >= edge for edge in edges) for gap in gaps)
    assert chi_square([found[place] for place in range(10)], [2000] * 10) < BOUNDS[9]


@pytest.mark.parametrize(("end", "left"), [(0, 0), (1, 1), (1000, 1), (1001, 2), (10**9, 10**6)])
def test_what_is_left_until_the_end(end, left):
    assert Arrivals(1e6).left(end) == left


@pytest.mark.parametrize(("rate", "arrivals"), [(0.0, "constant"), (float("nan"), "constant"), (1.0, "bursty")])
def test_bad_arrivals(rate, arrivals):
    with pytest.raises(ValueError, match=r"rate|arrivals"):
        Arrivals(rate, arrivals)
