"""`hvcore compare`: the same requests on every path, in turns, with counted costs."""

import os
from dataclasses import dataclass, field
from typing import Any

from hvcore.disk.image import open_image
from hvcore.dispatch.load import run_channel, run_disk
from hvcore.errors import Error
from hvcore.metrics.histogram import LatencyHistogram
from hvcore.partition.vm import context_switches
from hvcore.progress import Progress
from hvcore.report import machine, model
from hvcore.report.bench import Bench, Subject, bench, check_block, latency, subject, traced
from hvcore.report.options import CompareOptions

ROUNDS = 4  # of each path, in turns: what disturbs the machine disturbs them alike
WARM_UP_SECONDS = 0.1
TRACED_REQUESTS = 2000
HOST_COUNTS = (
    "hand_overs",
    "ring_packets",
    "port_accesses",
    "intercepts",
    "bytes_copied",
    "doorbells",
    "blocking_waits",
)


@dataclass
class _Total:
    """What the rounds of one path add up to."""

    requests: int = 0
    seconds: float = 0.0
    errors: int = 0
    verified: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, result: dict[str, Any], counts: dict[str, float]) -> None:
        if result["wrong_blocks"]:
            raise Error(f"the read at byte {result['wrong_offset']} did not bring what the image holds there")
        self.requests += result["requests"]
        self.seconds += result["seconds"]
        self.errors += result["errors"]
        self.verified += result["verified_bytes"]
        self.latency.merge(result["latency"])
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0) + value


class _Measurement:
    """One comparison at work."""

    def __init__(self, options: CompareOptions, made: Subject, running: Bench | None) -> None:
        self._options = options
        self._made = made
        self._running = running
        self._round = 0
        self.totals = {path: _Total() for path in options.paths}

    def local(self, seconds: float) -> None:
        """The storage stack in this process, one request at a time: no VM, no VMBus."""
        options, made = self._options, self._made
        sector = made.sector_size if made.format == "raw" else None
        mode = "r+" if options.writes else "r"
        with open_image(made.path, mode=mode, format=made.format, sector_size=sector) as disk:
            self._run(
                "local",
                lambda seconds: run_disk(
                    disk,
                    rw=options.rw,
                    block=options.block_size,
                    seconds=seconds,
                    seed=self._seed(),
                    pattern_seed=made.pattern_seed,
                ),
                lambda: {"context_switches": context_switches(os.getpid())},
                seconds,
            )

    def channel(self, path: str, seconds: float) -> None:
        """A path through the VM."""
        options, running = self._options, self._running
        assert running is not None
        disk = running.disks[path]
        buffer = running.guest.alloc(options.block_size * options.queue_depth)

        def counts() -> dict[str, float]:
            counters = running.vm.counters()
            host, guest = counters["disks"][disk.number], disk.channel.counters()
            return {
                **{name: host[name] + guest.get(name, 0) for name in HOST_COUNTS},
                "context_switches": counters["context_switches"] + context_switches(os.getpid()),
            }

        self._run(
            path,
            lambda seconds: run_channel(
                disk.channel,
                buffer,
                disk.size,
                disk.sector_size,
                rw=options.rw,
                block=options.block_size,
                depth=options.queue_depth,
                seconds=seconds,
                seed=self._seed(),
                pattern_seed=self._made.pattern_seed,
            ),
            counts,
            seconds,
        )

    def _seed(self) -> int:
        self._round += 1
        return self._round

    def _run(self, path: str, load: Any, counts: Any, seconds: float) -> None:
        if not self.totals[path].requests:
            load(min(WARM_UP_SECONDS, seconds))
        before = counts()
        result = load(seconds)
        after = counts()
        self.totals[path].add(result, {name: after[name] - before[name] for name in after})

    def run(self, path: str, hops: list[model.Hop]) -> model.Run:
        """The path's part of the report."""
        options, total = self._options, self.totals[path]
        if not total.requests:
            raise Error(f"the {path} path finished no request in {options.seconds} seconds")
        per_request = {name: total.counts.get(name, 0) / total.requests for name in (*HOST_COUNTS, "context_switches")}
        return model.Run(
            path=path,
            partition="none" if path == "local" else "process",
            rw=options.rw,
            block_size=options.block_size,
            queue_depth=1 if path == "local" else options.queue_depth,
            requests=total.requests,
            seconds=total.seconds,
            errors=total.errors,
            verified_bytes=total.verified,
            latency_ns=latency(total.latency.summary()),
            per_request=model.PerRequest(**per_request),
            hops=hops,
            ide_mode=options.ide_mode if path == "emulated" else None,
        )


def compare(options: CompareOptions, progress: Progress) -> model.Comparison:
    """Runs the workload on every path asked for. The paths take turns within one VM, except that a workload that writes
    runs its local part first: the image is then the VM's alone. hvcore.Error, OSError, OptionError."""
    check_block(options.block_size, options.paths)
    with subject(options.image, options.format, options.sector_size) as made:
        first = _Measurement(options, made, None)
        turns = list(options.paths)
        if options.writes and "local" in turns:
            turns.remove("local")
            progress("local", 0.0)
            for _ in range(ROUNDS):
                first.local(options.seconds / ROUNDS)
        with bench(
            made, turns, ide_mode=options.ide_mode, writes=options.writes, memory=options.memory_bytes
        ) as running:
            work = _Measurement(options, made, running)
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
            runs = []
            for path in options.paths:
                hops: list[model.Hop] = []
                if running is not None and path in running.disks:
                    found = traced(made, running, path, options.block_size, TRACED_REQUESTS, seed=1)
                    hops = [model.Hop(name, p50, p99) for name, (p50, p99) in found.percentiles().items()]
                runs.append(work.run(path, hops))
        return model.Comparison(made.described, machine.describe(), runs)
