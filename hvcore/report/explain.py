"""`hvcore explain`: single reads on each path, step by step, with measured times and exact counts."""

import time

from hvcore.dispatch.load import run_disk
from hvcore.progress import Progress
from hvcore.report import machine, model
from hvcore.report.bench import (
    Bench,
    Subject,
    bench,
    check_block,
    guest_counters,
    latency,
    open_local,
    subject,
    traced,
)
from hvcore.report.options import IDE_MODE_PATHS, ExplainOptions
from hvcore.report.steps import timed_steps

MEMORY = 64 << 20
EXACT = ("hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied", "media_accesses")


def _local(options: ExplainOptions, made: Subject) -> model.PathExplanation:
    with open_local(made, writes=False) as disk:
        result = run_disk(
            disk, block=options.block_size, requests=options.count, seed=time.time_ns(), pattern_seed=made.pattern_seed
        )
    total = result["latency"]
    steps, way_back = timed_steps("local", {"media": (int(total.percentile(50)), int(total.percentile(99)))})
    counts = model.ExactCounts(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    return model.PathExplanation("local", None, steps, way_back, counts, latency(total.summary()))


def _channel(options: ExplainOptions, made: Subject, running: Bench, path: str) -> model.PathExplanation:
    disk = running.disks[path]
    traced(made, running, path, options.block_size, min(options.count, 200), seed=1)  # warm: caches, spinning

    def counts() -> dict[str, int]:
        host, guest = running.vm.counters()["disks"][disk.number], guest_counters(disk)
        return {name: host[name] + guest.get(name, 0) for name in EXACT} | {"requests": host["requests"]}

    before = counts()
    hops = traced(made, running, path, options.block_size, options.count, seed=2)
    after = counts()
    requests = after["requests"] - before["requests"]
    per_request = model.ExactCounts(**{name: (after[name] - before[name]) / requests for name in EXACT})
    steps, way_back = timed_steps(path, hops.percentiles(), hops.accesses())
    ide_mode = options.ide_mode if path in IDE_MODE_PATHS else None
    return model.PathExplanation(path, ide_mode, steps, way_back, per_request, latency(hops.total.summary()))


def explain(options: ExplainOptions, progress: Progress) -> model.Explanation:
    """Follows options.count random reads on each path. hvcore.Error, OSError, OptionError."""
    check_block(options.block_size, options.paths)
    with (
        subject(options.image, options.format, None) as made,
        bench(made, options.paths, ide_mode=options.ide_mode, writes=False, memory=MEMORY) as running,
    ):
        paths = []
        for number, path in enumerate(options.paths):
            progress(path, number / len(options.paths))
            if running is None or path == "local":
                paths.append(_local(options, made))
            else:
                paths.append(_channel(options, made, running, path))
        described = machine.describe()
        return model.Explanation(made.described, described, options.block_size, options.count, paths)
