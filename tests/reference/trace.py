"""The trace ring's twin: keeps every event and forgets what a ring would have overwritten."""


class TraceTwin:
    def __init__(self, places: int) -> None:
        self.capacity = 1 << (places.bit_length() - 1)
        self.enabled = False
        self.events: list[tuple[int, int, int, int]] = []
        self.next = 0
        self.lost = 0

    def stamp(self, trace_id: int, key: int, hop: int, channel: int) -> None:
        if self.enabled:
            self.events.append((trace_id, key, hop, channel))

    def collect(self) -> list[tuple[int, int, int, int]]:
        oldest = max(self.next, len(self.events) - self.capacity + 1)
        self.lost += oldest - self.next
        self.next = len(self.events)
        return self.events[oldest:]
