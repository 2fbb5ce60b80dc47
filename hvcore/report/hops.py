"""From stamps to hops: where the time of a traced request went."""

import struct
from collections.abc import Iterable, Sequence

from hvcore.errors import Error
from hvcore.metrics.histogram import LatencyHistogram

GUEST = struct.Struct("=5Q")  # hvcore.dispatch.traced.run_traced

# The host's stamps (pyx/hvcore/storage/hops.pxd).
RECEIVED, MEDIA_ASKED, DISK_DONE, WORKER_DONE, COMPLETED = 1, 4, 6, 8, 9

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


def followed(path: str) -> bool:
    """Whether the stamps of a path's requests make hops; else only the whole request has a time."""
    return path in _BOUNDS


class Hops:
    """One LatencyHistogram for each hop of a path, in the order of the way, and one of the whole request."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.histograms = {name: LatencyHistogram() for name in ("submit", "request")}
        self.histograms |= {name: LatencyHistogram() for name, _ in _BOUNDS[path]}
        self.histograms["answer"] = LatencyHistogram()
        self.total = LatencyHistogram()

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

    def percentiles(self) -> dict[str, tuple[int, int]]:
        """(p50, p99) in ns of each hop."""
        return {name: (int(h.percentile(50)), int(h.percentile(99))) for name, h in self.histograms.items()}
