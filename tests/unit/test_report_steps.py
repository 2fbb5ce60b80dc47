"""Steps of the paths: four forward on the synthetic path, five on the emulated one."""

import pytest

from hvcore.report.hops import ChannelHops, DriveHops
from hvcore.report.options import PATHS
from hvcore.report.steps import STEPS, timed_steps


@pytest.mark.parametrize(
    ("path", "forward", "back"),
    [("local", 1, 0), ("synthetic", 4, 2), ("emulated", 5, 3), ("trapped", 4, 2), ("accelerated", 4, 2)],
)
def test_steps_are_numbered_through(path, forward, back):
    steps, way_back = timed_steps(path, {})
    assert [step.number for step in steps + way_back] == list(range(1, forward + back + 1))
    assert (len(steps), len(way_back)) == (forward, back)


def test_every_path_has_steps():
    assert set(STEPS) == set(PATHS)


@pytest.mark.parametrize("path", PATHS[1:])
def test_each_hop_that_is_followed_times_a_step(path):
    hops = DriveHops() if path == "trapped" else ChannelHops(path)
    assert [text.hop for text in (*STEPS[path].steps, *STEPS[path].way_back)] == list(hops.histograms)


def test_sums_say_of_how_many_accesses():
    steps, way_back = timed_steps("trapped", {}, {"emulate": 11.0})
    assert [step.accesses for step in steps + way_back] == [None, None, 11.0, None, None, None]


def test_emulated_goes_the_synthetic_way_first():
    assert STEPS["emulated"].steps[:3] == STEPS["synthetic"].steps[:3]


def test_times_come_from_the_hop_of_the_step():
    steps, way_back = timed_steps("synthetic", {"media": (5, 9), "unknown": (1, 1)})
    assert [(step.p50_ns, step.p99_ns) for step in steps] == [(None, None)] * 3 + [(5, 9)]
    assert {step.p50_ns for step in way_back} == {None}


@pytest.mark.parametrize("path", STEPS)
def test_each_hop_times_one_step(path):
    hops = [text.hop for text in (*STEPS[path].steps, *STEPS[path].way_back)]
    assert len(set(hops)) == len(hops)
