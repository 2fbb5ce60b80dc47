"""`hvcore compare`: the same requests on every path, in turns, with counted costs."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hvcore.dispatch.load import run_loads
from hvcore.errors import Error
from hvcore.metrics.histogram import LatencyHistogram
from hvcore.partition.vm import context_switches
from hvcore.progress import Progress
from hvcore.report import machine, model
from hvcore.report.bench import (
    Bench,
    Content,
    Subject,
    bench,
    check_block,
    guest_counters,
    latency,
    open_local,
    requester,
    subject,
    traced,
)
from hvcore.report.options import IDE_MODE_PATHS, CompareOptions

ROUNDS = 4  # of each path, in turns: what disturbs the machine disturbs them alike
TRACED_REQUESTS = 2000
TRAPPED_REQUESTS = 500  # which make many more stamps
HOST_COUNTS = (
    "hand_overs",
    "ring_packets",
    "port_accesses",
    "intercepts",
    "bytes_copied",
    "doorbells",
    "blocking_waits",
)
Counts = dict[str, float]


@dataclass
class _Total:
    """What the rounds of one path add up to."""

    requests: int = 0
    seconds: float = 0.0
    queue_depth: int = 1
    bytes: int = 0
    errors: int = 0
    verified: int = 0
    behind: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    counts: Counts = field(default_factory=dict)
    counted: int = 0  # requests that the counts are of

    def add(self, result: dict[str, Any], counts: Counts) -> None:
        if result["wrong_blocks"]:
            raise Error(
                f"the read at byte {result['wrong_offset']} did not bring what the image holds there "
                f"(it is {result['wrong_kind']})"
            )
        self.requests += result["requests"]
        self.seconds += result["seconds"]
        self.bytes += result["bytes"]
        self.errors += result["errors"]
        self.verified += result["verified_bytes"]
        self.behind += result["behind"]
        self.latency.merge(result["latency"])
        self.counted += result["requests"] + result["warm_up"]["requests"]
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0) + value


class _Measurement:
    """One comparison at work."""

    def __init__(self, options: CompareOptions, made: Subject, running: Bench | None, content: Content) -> None:
        self._options = options
        self._made = made
        self._running = running
        self._content = content
        self._round = 0
        self._buffers: dict[str, Any] = {}
        self.totals = {path: _Total() for path in options.paths}

    def local(self, seconds: float) -> None:
        """The storage stack in this process, one request at a time: no VM, no VMBus."""
        with open_local(self._made, self._options.writes) as disk:
            self._run("local", disk, None, lambda: {"context_switches": context_switches(os.getpid())}, seconds)

    def channel(self, path: str, seconds: float) -> None:
        """A path through the VM."""
        running = self._running
        assert running is not None
        disk = running.disks[path]
        if path not in self._buffers:
            self._buffers[path] = running.guest.alloc(self._content.workload.buffer_bytes)

        def counts() -> Counts:
            counters = running.vm.counters()
            host, guest = counters["disks"][disk.number], guest_counters(disk)
            return {
                **{name: host[name] + guest.get(name, 0) for name in HOST_COUNTS},
                "context_switches": counters["context_switches"] + context_switches(os.getpid()),
            }

        self._run(path, disk, self._buffers[path], counts, seconds)

    def _run(self, path: str, disk: Any, buffer: Any, counts: Callable[[], Counts], seconds: float) -> None:
        total = self.totals[path]
        warm_up = 0.0 if total.requests else min(self._options.warm_up, seconds)
        self._round += 1
        target = requester(disk)
        total.queue_depth = self._content.depth(target)
        run = self._content.run(target, buffer, self._round)
        before = counts()
        result = run_loads([run], seconds=seconds, warm_up=warm_up)[0]
        after = counts()
        total.add(result, {name: after[name] - before[name] for name in after})

    def run(self, path: str, hops: list[model.Hop]) -> model.Run:
        """The path's part of the report."""
        options, total, workload = self._options, self.totals[path], self._content.workload
        if not total.requests:
            raise Error(f"the {path} path finished no request in {options.seconds} seconds")
        per_request = {name: total.counts.get(name, 0) / total.counted for name in (*HOST_COUNTS, "context_switches")}
        return model.Run(
            path=path,
            partition="none" if path == "local" else "process",
            rw=workload.rw,
            block_size=workload.smallest,
            queue_depth=total.queue_depth,
            requests=total.requests,
            seconds=total.seconds,
            errors=total.errors,
            verified_bytes=total.verified,
            latency_ns=latency(total.latency.summary()),
            per_request=model.PerRequest(**per_request),
            hops=hops,
            ide_mode=options.ide_mode if path in IDE_MODE_PATHS else None,
            moved_bytes=total.bytes,
            behind=total.behind,
            load=None if options.load is None else described(options),
        )


def described(options: CompareOptions) -> dict[str, Any]:
    """The workload as JSON has it."""
    facts = dataclasses.asdict(options.workload)
    sizes = {str(size): weight for size, weight in facts["block_sizes"].items()}
    return facts | {"block_sizes": sizes, "warm_up": options.warm_up}


def _hops(made: Subject, running: Bench | None, path: str, options: CompareOptions) -> list[model.Hop]:
    """From a traced pass of its own, so that tracing costs the figures nothing."""
    if running is None or path not in running.disks:
        return []
    requests = TRAPPED_REQUESTS if path == "trapped" else TRACED_REQUESTS
    found = traced(made, running, path, options.block_size, requests, seed=1, verify=not options.writes)
    return [model.Hop(name, p50, p99) for name, (p50, p99) in found.percentiles().items()]


def compare(options: CompareOptions, progress: Progress, *, trace: bool = True) -> model.Comparison:
    """Runs the workload on every path asked for. The paths take turns within one VM, except that a workload that writes
    runs its local part first: the image is then the VM's alone. trace: follow single requests afterwards, for the hops.
    hvcore.Error, OSError, OptionError."""
    check_block(options.workload.largest, options.paths)
    with subject(options.image, options.format, options.sector_size) as made:
        # Of an image that was named nothing is known, and the account of a large one would not fit.
        known = made.pattern_seed is not None
        content = Content(options.workload, made.described.size_bytes, made.pattern_seed, verify=known)
        first = _Measurement(options, made, None, content)
        turns = list(options.paths)
        if options.writes and "local" in turns:
            turns.remove("local")
            progress("local", 0.0)
            for _ in range(ROUNDS):
                first.local(options.seconds / ROUNDS)
        with bench(
            made, turns, ide_mode=options.ide_mode, writes=options.writes, memory=options.memory_bytes
        ) as running:
            work = _Measurement(options, made, running, content)
            work.totals |= {path: total for path, total in first.totals.items() if total.requests}
            steps = ROUNDS * len(turns)
            for step in range(steps):
                path = turns[step % len(turns)]
                progress(path, step / (steps + 1))
                if path == "local":
                    work.local(options.seconds / ROUNDS)
                else:
                    work.channel(path, options.seconds / ROUNDS)
            progress("tracing", steps / (steps + 1))
            runs = [work.run(path, _hops(made, running, path, options) if trace else []) for path in options.paths]
        return model.Comparison(made.described, machine.describe(), runs)
