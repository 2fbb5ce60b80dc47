from typing import Any

import pytest

from hvcore.storage.gate import BURST_NS, LIMIT_MAX, WINDOW_NS, DiskGate, check_limits

MS = 1_000_000


def gate(now: int = 0, **limits: int) -> DiskGate:
    made = DiskGate(64)
    made.set(now, **limits)
    return made


def spend(made: DiskGate, now: int, sizes: list[int]) -> list[int]:
    """The waits of requests that come at once."""
    return [made.admit(size, now) for size in sizes]


# Maxima.


def test_no_limit_lets_all_go() -> None:
    made = gate()
    assert not made.limited
    assert spend(made, 0, [1 << 40] * 3) == [0, 0, 0]
    assert made.enter(0, 8192, 0)


def test_each_limit_alone_limits() -> None:
    for name in ("max_iops", "max_bandwidth", "min_iops", "min_bandwidth"):
        assert gate(**{name: 1}).limited


@pytest.mark.parametrize(
    ("size", "ms"), [(0, 10), (1, 10), (512, 10), (8191, 10), (8192, 10), (8193, 20), (9216, 20), (1 << 20, 1280)]
)
def test_normalised_size(size: int, ms: int) -> None:
    assert spend(gate(max_iops=100), 0, [size, 512]) == [0, ms * MS]


@pytest.mark.parametrize(("size", "wait"), [(1, 1000), (1000, MS), (1 << 30, 1_073_741_824_000), (0, 0)])
def test_bandwidth(size: int, wait: int) -> None:
    assert spend(gate(max_bandwidth=1_000_000), 0, [size, 1]) == [0, wait]


def test_the_tighter_limit_decides() -> None:
    assert spend(gate(max_iops=100, max_bandwidth=8192), 0, [8192, 8192]) == [0, 1000 * MS]
    assert spend(gate(max_iops=1, max_bandwidth=1 << 30), 0, [8192, 8192]) == [0, 1000 * MS]


def test_nothing_is_charged_to_a_request_that_waits() -> None:
    made = gate(max_iops=100, max_bandwidth=8192)
    made.admit(8192, 0)
    assert spend(made, 5 * MS, [1 << 30] * 3) == [995 * MS] * 3
    assert made.admit(8192, 1000 * MS) == 0


def test_an_idle_disk_saves_one_burst() -> None:
    made = gate(max_iops=1000)
    assert spend(made, 10**12, [8192] * 30).count(0) == BURST_NS // MS + 1


def test_a_late_timer_loses_nothing_within_the_burst() -> None:
    made = gate(max_iops=100)
    made.admit(8192, 0)
    assert made.admit(8192, 10 * MS + BURST_NS) == 0
    assert spend(made, 10 * MS + BURST_NS, [8192, 8192]) == [0, 0]
    assert made.admit(8192, 10 * MS + BURST_NS) == 10 * MS


def test_new_limit_is_in_force_at_once() -> None:
    made = gate(max_iops=1)
    assert spend(made, 0, [8192, 8192]) == [0, 1000 * MS]
    made.set(0, max_iops=1000)
    assert made.admit(8192, 0) == MS  # one operation is owed still, at the new rate
    made.set(0, max_iops=10)
    assert made.admit(8192, 0) == 100 * MS
    made.set(0)
    assert made.admit(1 << 30, 0) == 0
    made.set(0, max_iops=1)
    assert made.admit(8192, 0) == 0  # what went without a limit is not owed


def test_extreme_limits() -> None:
    made = gate(now=1 << 61, max_iops=1, max_bandwidth=1)
    assert spend(made, 1 << 61, [2**64 - 1, 0]) == [0, 1 << 61]
    made.set(1 << 61, max_iops=LIMIT_MAX, max_bandwidth=LIMIT_MAX)
    assert made.admit(0, 1 << 61) <= 1 << 61


# The queue.


def test_queue_is_first_in_first_out() -> None:
    made = gate(max_iops=100)
    assert [made.enter(number, 8192, 0) for number in range(4)] == [True, False, False, False]
    assert (made.waiting, made.in_flight) == (3, 1)
    assert made.next(0) == (None, 10 * MS)
    assert made.next(10 * MS) == (1, 0)
    assert not made.enter(4, 8192, 30 * MS)  # its turn would have come, but others were first
    assert made.next(30 * MS) == (2, 0)
    assert made.next(30 * MS) == (3, 0)
    assert made.next(30 * MS) == (None, 10 * MS)
    assert made.next(40 * MS) == (4, 0)
    assert made.next(40 * MS) == (None, 0)
    assert made.counters()["throttled"] == 4
    assert made.counters()["throttle_wait_ns"] == (10 + 30 + 30 + 10) * MS


def test_limits_taken_away_let_all_go() -> None:
    made = gate(max_iops=1)
    for number in range(4):
        made.enter(number, 8192, 0)
    made.set(0)
    assert [made.next(0)[0] for _ in range(4)] == [1, 2, 3, None]
    for number in range(4):
        made.leave(number, 0)
    assert made.in_flight == 0


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_remove(gone: int) -> None:
    made = gate(max_iops=100)
    for number in range(4):
        made.enter(number, 8192, 0)
    assert made.remove(gone, 5 * MS)
    assert not made.remove(gone, 5 * MS)
    assert not made.remove(0, 5 * MS)  # in flight
    assert made.counters()["throttle_wait_ns"] == 5 * MS
    left = [number for number in (1, 2, 3) if number != gone]
    assert [made.next(10 * MS)[0], made.next(20 * MS)[0], made.next(30 * MS)[0]] == [*left, None]
    assert not made.enter(4, 8192, 20 * MS)
    assert made.next(30 * MS) == (4, 0)


def test_request_that_came_before_the_limits_is_not_counted() -> None:
    made = gate()
    assert made.enter(0, 8192, 0)
    made.leave(0, MS)
    assert made.in_flight == 0


# Minima.


def run(made: DiskGate, begin: int, each_ns: int, count: int, size: int = 8192, depth: int = 1) -> int:
    """Closed loop: `count` requests of each_ns, one after another without a gap; when the last one is completed."""
    now = begin
    for number in range(count):
        assert made.enter(number % 64, size, now)
        now += each_ns
        made.leave(number % 64, now)
    return now


def test_missed_and_met_again() -> None:
    made = gate(min_iops=1000, min_bandwidth=1 << 20)
    now = run(made, 0, 2 * MS, 500)
    assert made.window_due == now == WINDOW_NS
    what, figures = made.window(now)
    assert what == "missed"
    assert figures == {
        "wanted_iops": 1000, "got_iops": 500, "wanted_bandwidth": 1 << 20, "got_bandwidth": 500 * 8192,
        "duration_ns": WINDOW_NS, "busy_percent": 100,
    }  # fmt: skip
    now = run(made, now, 2 * MS, 500)
    assert made.window(now)[0] == "quiet"  # as before: no news
    now = run(made, now, MS, 1000)
    what, figures = made.window(now)
    assert (what, figures["got_iops"]) == ("met", 1000)


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"min_iops": 500}, "quiet"),
        ({"min_iops": 526}, "quiet"),                    # 500 is 95 % of it
        ({"min_iops": 527}, "missed"),
        ({"min_bandwidth": 500 * 8192}, "quiet"),
        ({"min_bandwidth": 600 * 8192}, "missed"),
        ({"min_iops": 500, "min_bandwidth": 1 << 30}, "missed"),
        ({"min_iops": LIMIT_MAX, "min_bandwidth": LIMIT_MAX}, "missed"),
    ],
)  # fmt: skip
def test_either_minimum(limits: dict[str, int], what: str) -> None:
    made = gate(**limits)
    assert made.window(run(made, 0, 2 * MS, 500))[0] == what


@pytest.mark.parametrize(("busy_ms", "what"), [(890, "quiet"), (910, "missed")])
def test_no_demand_no_miss(busy_ms: int, what: str) -> None:
    made = gate(min_iops=1000)
    for start in range(0, 1000, 100):  # busy for a part of each 100 ms
        run(made, start * MS, busy_ms * MS // 10, 1)
    status, figures = made.window(WINDOW_NS)
    assert (status, figures["busy_percent"]) == (what, busy_ms // 10)


def test_request_in_flight_all_the_time_is_demand() -> None:
    made = gate(min_iops=10)
    made.enter(0, 8192, 0)
    assert made.window(WINDOW_NS)[0] == "missed"
    made.leave(0, WINDOW_NS + 500 * MS)
    assert made.window(2 * WINDOW_NS)[0] == "met"  # nobody asks for more


def test_failed_request_is_no_work_done() -> None:
    made = gate(min_iops=1000)
    for number in range(1000):
        made.enter(0, 8192, number * MS)
        made.leave(0, (number + 1) * MS, done=False)
    assert made.window(WINDOW_NS)[1]["got_iops"] == 0


def test_waiting_at_its_own_maximum_is_demand() -> None:
    made = gate(max_bandwidth=8192, min_iops=100)
    for number in range(4):
        made.enter(number, 8192, 0)
    made.leave(0, MS)
    assert made.window(WINDOW_NS)[0] == "missed"


def test_idle_disk_needs_no_timer() -> None:
    made = gate(min_iops=1000)
    assert made.window_due is None
    run(made, 0, 2 * MS, 400)
    assert made.window_due == WINDOW_NS
    assert made.window(WINDOW_NS)[0] == "quiet"  # 80 % busy
    assert made.window_due is None
    later = 100 * WINDOW_NS
    now = run(made, later, 2 * MS, 500)  # its window begins with it
    assert made.window_due == now
    assert made.window(now)[0] == "missed"
    assert made.window_due == now + WINDOW_NS  # once more, to tell that it is over
    assert made.window(now + WINDOW_NS)[0] == "met"
    assert made.window_due is None


def test_minimum_taken_away_is_met() -> None:
    made = gate(min_iops=1000)
    now = run(made, 0, 2 * MS, 500)
    assert made.window(now)[0] == "missed"
    made.set(now)
    assert made.window_due is not None
    assert made.window(now)[0] == "met"
    assert made.window_due is None
    assert made.window(now)[0] == "quiet"


def test_urgent_while_behind_the_minimum() -> None:
    made = gate()
    assert not made.urgent(10**15)
    made.set(10**15, min_iops=100)
    made.enter(0, 8192, 10**15)
    assert made.urgent(10**15)  # the first one
    made.leave(0, 10**15 + MS)
    made.enter(0, 8192, 10**15 + MS)
    assert not made.urgent(10**15 + 9 * MS)
    assert made.urgent(10**15 + 10 * MS)
    made.leave(0, 10**15 + 500 * MS)
    assert made.urgent(10**15 + 500 * MS)  # far behind
    later = 10**15 + 2 * WINDOW_NS
    made.enter(0, 8192, later)  # idle for long: not behind
    made.leave(0, later)
    assert not made.urgent(later)


def test_behind_one_window_at_most() -> None:
    made = gate(min_iops=1000)
    made.enter(0, 8192, 0)
    made.enter(1, 8192, 0)
    made.leave(0, 100 * WINDOW_NS)
    now = 100 * WINDOW_NS
    for number in range(1000):
        assert made.urgent(now)
        made.enter(number % 60 + 2, 8192, now)
        made.leave(number % 60 + 2, now)
    assert not made.urgent(now)


# Limits.


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_iops": -1}, "max_iops is -1"),
        ({"min_bandwidth": LIMIT_MAX + 1}, "min_bandwidth is "),
        ({"max_iops": True}, "max_iops is True"),
        ({"max_iops": 1.5}, "max_iops is 1.5"),
        ({"max_iops": "9"}, "max_iops is '9'"),
        ({"max_iops": 9, "min_iops": 10}, "min_iops 10 is above max_iops 9"),
        ({"max_bandwidth": 9, "min_bandwidth": 10}, "min_bandwidth 10 is above max_bandwidth 9"),
    ],
)
def test_bad_limits(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_limits(**limits)
    with pytest.raises(ValueError, match=message):
        gate().set(0, **limits)


def test_good_limits() -> None:
    check_limits(max_iops=10, min_iops=10, min_bandwidth=LIMIT_MAX)
    check_limits(min_iops=10)
