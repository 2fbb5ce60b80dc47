"""The gate's twin, in exact fractions, and a crowd that drives a gate by a virtual clock."""

import heapq
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from math import floor

from hvcore.storage.gate import BURST_NS, DiskGate

SECOND = 10**9
NEVER = 1 << 62
UNIT = 8192


def units(size: int) -> int:
    return max(1, -(-size // UNIT))


class RateTwin:
    """When the next request may go, at one rate."""

    def __init__(self) -> None:
        self.rate = 0
        self.due = Fraction(0)

    def set(self, rate: int, now: int) -> None:
        ahead = floor(self.due) - now
        if self.rate and rate:
            self.due = Fraction(now + floor(Fraction(ahead * self.rate, rate))) if ahead > 0 else Fraction(now + ahead)
            self.due = min(self.due, Fraction(NEVER))
        else:
            self.due = Fraction(now)
        self.rate = rate

    def wait(self, now: int) -> int:
        return max(0, floor(self.due) - now) if self.rate else 0

    def charge(self, cost: int, now: int) -> None:
        if self.rate:
            if floor(self.due) + BURST_NS < now:
                self.due = Fraction(now - BURST_NS)
            self.due += Fraction(cost * SECOND, self.rate)
            if self.due > NEVER:
                self.due = Fraction(NEVER)


class GateTwin:
    def __init__(self) -> None:
        self.iops, self.bandwidth = RateTwin(), RateTwin()

    def set(self, now: int, max_iops: int, max_bandwidth: int) -> None:
        self.iops.set(max_iops, now)
        self.bandwidth.set(max_bandwidth, now)

    def admit(self, size: int, now: int) -> int:
        wait = max(self.iops.wait(now), self.bandwidth.wait(now))
        if wait == 0:
            self.iops.charge(units(size), now)
            self.bandwidth.charge(size, now)
        return wait


class Went:
    """One request that the gate let go."""

    def __init__(self, now: int, number: int, size: int) -> None:
        self.now, self.number, self.size, self.units = now, number, size, units(size)


def serve(
    gate: DiskGate,
    arrivals: list[tuple[int, int]],
    end: int,
    late: Callable[[], int],
    changes: list[tuple[int, dict[str, int]]] | None = None,
) -> list[Went]:
    """What went until `end` of requests (time, size) in this order, numbered as they come and completed at once.

    The timer of those that wait is late() ns late; the limits change at the times of `changes`.
    """
    went: list[Went] = []
    # (time, order, what, which): changes before arrivals before timers of one time.
    todo = [(now, 0, number) for number, (now, _) in enumerate(changes or [])]
    todo += [(now, 1, number) for number, (now, _) in enumerate(arrivals)]
    heapq.heapify(todo)

    def go(now: int, number: int) -> None:
        went.append(Went(now, number, arrivals[number][1]))
        gate.leave(number, now)

    def drain(now: int) -> None:
        while True:
            number, wait = gate.next(now)
            if number is None:
                break
            go(now, number)
        if wait:
            heapq.heappush(todo, (now + wait + late(), 2, 0))

    while todo and todo[0][0] <= end:
        now, what, number = heapq.heappop(todo)
        if what == 0 and changes:
            gate.set(now, **changes[number][1])
            drain(now)
        elif what == 1:
            idle = gate.waiting == 0
            if gate.enter(number, arrivals[number][1], now):
                go(now, number)
            elif idle:
                drain(now)
        else:
            drain(now)
    return went


def seconds(went: list[Went], begin: int, end: int) -> Iterator[tuple[list[Went], list[Went]]]:
    """For every second within begin..end that starts with a request: the requests of [start, start + 1 s), and those of
    (start, start + 1 s]: the fullest and the emptiest there are."""
    inside = [each for each in went if begin <= each.now <= end]
    first = last = 0
    for i, each in enumerate(inside):
        if each.now + SECOND > end:
            break
        if i and inside[i - 1].now == each.now:
            continue
        while first < len(inside) and inside[first].now < each.now + SECOND:
            first += 1
        while last < len(inside) and inside[last].now <= each.now + SECOND:
            last += 1
        after = i
        while after < len(inside) and inside[after].now == each.now:
            after += 1
        yield inside[i:first], inside[after:last]


def in_order(went: list[Went]) -> bool:
    return all(a.number < b.number and a.now <= b.now for a, b in pairwise(went))
