"""From stamps to hops: where the time of a traced request went."""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from hvcore.errors import Error
from hvcore.metrics.histogram import LatencyHistogram

GUEST = struct.Struct("=5Q")  # hvcore.dispatch.traced.run_traced
DRIVE_GUEST = struct.Struct("=4Q")  # hvcore.dispatch.traced.run_traced_drive

# The host's stamps (pyx/hvcore/storage/hops.pxd).
RECEIVED, MEDIA_ASKED, DISK_DONE, MEDIA_GIVEN, WORKER_DONE, COMPLETED = 1, 4, 6, 7, 8, 9
ACCESS_TAKEN, ACCESS_ANSWERED, MEDIA_POSTED = 10, 11, 12

# Hops of hvcore.report.steps between two stamps, in order, without gaps: their sum is the whole request.
_BOUNDS = {
    "synthetic": (("deliver", RECEIVED), ("media", DISK_DONE), ("complete", COMPLETED)),
    "accelerated": (("deliver", RECEIVED), ("media", DISK_DONE), ("complete", COMPLETED)),
    "emulated": (
        ("deliver", RECEIVED),
        ("emulate", MEDIA_ASKED),
        ("media", DISK_DONE),
        ("emulate_answer", WORKER_DONE),
        ("complete", COMPLETED),
    ),
}

_DRIVE_HOPS = ("submit", "intercept", "emulate", "media", "emulate_answer", "answer")


class Hops:
    """One LatencyHistogram for each hop of a path, in the order of the way, and one of the whole request."""

    def __init__(self, names: Iterable[str]) -> None:
        self.histograms = {name: LatencyHistogram() for name in names}
        self.total = LatencyHistogram()

    def percentiles(self) -> dict[str, tuple[int, int]]:
        """(p50, p99) in ns of each hop that was seen."""
        return {name: (int(h.percentile(50)), int(h.percentile(99))) for name, h in self.histograms.items() if h.count}

    def accesses(self) -> dict[str, float]:
        """How many port accesses of one request a hop is the sum of, where it is a sum."""
        return {}


class ChannelHops(Hops):
    """Of a path through a storvsp channel: stamps are joined by transaction id."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(("submit", "request", *(name for name, _ in _BOUNDS[path]), "answer"))

    def add(self, guest: bytes, host: Iterable[Sequence[int]], relid: int) -> None:
        """Joins the guest's stamps with the host's (time, trace id, transaction id, hop, channel), which were collected
        while only these requests ran. Error when most have no partner: the trace ring was too small."""
        found: dict[int, dict[int, int]] = {}
        for time_ns, _, key, hop, channel in host:
            if channel == relid and key:
                found.setdefault(key, {})[hop] = time_ns
        joined = 0
        for transaction, asked, built, sent, done in GUEST.iter_unpack(guest):
            stamps = found.get(transaction, {})
            times = [stamps.get(hop) for _, hop in _BOUNDS[self.path]]
            if None in times:
                continue
            joined += 1
            self._record(asked, built, sent, [time for time in times if time is not None], done)
        if joined * GUEST.size * 2 < len(guest):
            raise Error("the host's trace does not hold the traced requests")

    def _record(self, asked: int, built: int, sent: int, times: list[int], done: int) -> None:
        # A host that polls may take the packet before the guest's own stamp behind it.
        sent = min(sent, times[0])
        edges = [asked, built, sent, *times, done]
        for histogram, before, after in zip(self.histograms.values(), edges, edges[1:], strict=False):
            histogram.record(max(0, after - before))
        self.total.record(max(0, done - asked))


class DriveHops(Hops):
    """Of the trapped path: a request's stamps are those between its first and its last moment, for the guest's drive
    runs one at a time, and no other disk may be in use.

    Every moment of a request belongs to one hop: the medium's first, then the emulator's, then the way between guest
    and worker. After the last answer of the medium all is the way back.
    """

    def __init__(self) -> None:
        super().__init__(_DRIVE_HOPS)
        self._joined = 0
        self._forward = 0
        self._back = 0

    def add(self, guest: bytes, host: Sequence[Sequence[int]]) -> None:
        """guest: of run_traced_drive; host: as ChannelHops.add, sorted. Requests that the trace does not hold whole
        count for the whole request's time only."""
        times = [stamp[0] for stamp in host]
        for asked, built, done, accesses in DRIVE_GUEST.iter_unpack(guest):
            self.total.record(max(0, done - asked))
            stamps = [(stamp[0], stamp[3]) for stamp in host[bisect_left(times, built) : bisect_right(times, done)]]
            hops = [hop for _, hop in stamps]
            if not hops.count(ACCESS_TAKEN) == hops.count(ACCESS_ANSWERED) == accesses > 0:
                continue
            if not hops.count(MEDIA_POSTED) == hops.count(DISK_DONE) == hops.count(MEDIA_GIVEN) > 0:
                continue
            self._joined += 1
            self._record(asked, built, stamps, done)

    def _record(self, asked: int, built: int, stamps: list[tuple[int, int]], done: int) -> None:
        spent = dict.fromkeys(_DRIVE_HOPS, 0)
        spent["submit"] = max(0, built - asked)
        rounds = sum(hop == MEDIA_POSTED for _, hop in stamps)
        before, inside, medium = built, False, ""
        for time, hop in stamps:
            back = not rounds and not medium
            spent["answer" if back else medium or ("emulate" if inside else "intercept")] += time - before
            before = time
            if hop == ACCESS_TAKEN:
                inside = True
                self._back += back
                self._forward += not back
            elif hop == ACCESS_ANSWERED:
                inside = False
            elif hop == MEDIA_POSTED:
                medium, rounds = "media", rounds - 1
            elif hop == DISK_DONE:
                medium = "emulate_answer"
            elif hop == MEDIA_GIVEN:
                medium = ""
        spent["answer"] += done - before
        for name, ns in spent.items():
            self.histograms[name].record(ns)

    def accesses(self) -> dict[str, float]:
        if not self._joined:
            return {}
        forward, back = self._forward / self._joined, self._back / self._joined
        return {"intercept": forward, "emulate": forward, "answer": back}
