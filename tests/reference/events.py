"""The event log's twin: keeps every event that its kind's rate lets through, forgets what a ring would overwrite."""

from fractions import Fraction

from hvcore.metrics.events import AT_ONCE, PER_SECOND

STEP = Fraction(10**9, PER_SECOND)


class Share:
    """A bucket of AT_ONCE tokens, filled with PER_SECOND."""

    def __init__(self) -> None:
        self.tokens = Fraction(AT_ONCE)
        self.time = 0

    def take(self, now: int) -> bool:
        self.tokens = min(Fraction(AT_ONCE), self.tokens + (now - self.time) / STEP)
        self.time = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class EventsTwin:
    def __init__(self, places: int) -> None:
        self.capacity = 1 << (places.bit_length() - 1)
        self.shares: dict[str, Share] = {}
        self.held: dict[str, int] = {}
        self.suppressed: dict[str, int] = {}
        self.events: list[tuple[str, int, int]] = []
        self.next = 0
        self.lost = 0

    def write(self, kind: str, trace_id: int, now: int) -> bool:
        if not self.shares.setdefault(kind, Share()).take(now):
            self.held[kind] = self.held.get(kind, 0) + 1
            self.suppressed[kind] = self.suppressed.get(kind, 0) + 1
            return False
        self.events.append((kind, trace_id, self.held.pop(kind, 0)))
        return True

    def collect(self) -> list[tuple[str, int, int]]:
        oldest = max(self.next, len(self.events) - self.capacity + 1)
        self.lost += oldest - self.next
        self.next = len(self.events)
        return self.events[oldest:]
