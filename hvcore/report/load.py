"""`hvcore load`: the jobs of a file, all at once, each on a disk of its own."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvcore.dispatch.load import LoadRun, run_loads
from hvcore.dispatch.series import LoadSeries
from hvcore.metrics.histogram import LatencyHistogram
from hvcore.partition.client import Host
from hvcore.partition.config import DiskConfig
from hvcore.progress import Progress
from hvcore.report import machine, model
from hvcore.report.bench import Content, Subject, check_block, latency, open_local, requester, subject
from hvcore.report.job import Job, JobFile

LOAD_SCHEMA = "hvcore.load/1"


@dataclass(frozen=True, slots=True)
class OperationResult:
    """One kind of operation of a job."""

    requests: int
    bytes: int
    errors: int
    latency_ns: model.Latency


@dataclass(frozen=True, slots=True)
class JobResult:
    """What one job did, or all of them together. latency: of all its requests. lag_ns: of an open loop, from when a
    request was due to its start, which the latency includes; behind: how many were due and never started. error: the
    first. series: by the second."""

    name: str
    path: str
    requests: int
    seconds: float
    bytes: int
    errors: int
    outcomes: dict[str, int]
    error: str | None
    verified_bytes: int
    wrong_blocks: int
    wrong: str | None
    behind: int
    latency: LatencyHistogram
    lag_ns: model.Latency | None
    operations: dict[str, OperationResult]
    series: list[dict[str, Any]]
    image: model.Image | None = None
    workload: dict[str, Any] | None = None

    @property
    def iops(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "latency"}
        facts["image"] = dataclasses.asdict(self.image) if self.image else None
        facts["lag_ns"] = dataclasses.asdict(self.lag_ns) if self.lag_ns else None
        facts["operations"] = {name: dataclasses.asdict(each) for name, each in self.operations.items()}
        return facts | {
            "iops": self.iops,
            "bytes_per_second": self.bytes_per_second,
            "latency_ns": self.latency.summary(),
            "histogram": self.latency.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The answer of `hvcore load`. total: all jobs as one; None of a single one."""

    machine: model.Machine
    jobs: list[JobResult]
    total: JobResult | None

    @property
    def wrong(self) -> str | None:
        """The first block that did not hold what it must."""
        return next((f"job {job.name}: {job.wrong}" for job in self.jobs if job.wrong), None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": LOAD_SCHEMA,
            "machine": dataclasses.asdict(self.machine),
            "jobs": [job.to_dict() for job in self.jobs],
            "total": self.total.to_dict() if self.total else None,
        }

    def to_json(self) -> str:
        return model.dump(self.to_dict())


def _summary(found: LatencyHistogram) -> model.Latency:
    return latency(found.summary())


def _result(job: Job, made: Subject, content: Content, found: dict[str, Any]) -> JobResult:
    wrong = None
    if found["wrong_blocks"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["wrong_kinds"].items())
        wrong = f"{found['wrong_blocks']} reads brought wrong data ({kinds}), first at byte {found['wrong_offset']}"
    workload = dataclasses.asdict(content.workload)
    workload["block_sizes"] = {str(size): weight for size, weight in workload["block_sizes"].items()}
    return JobResult(
        name=job.name,
        path=job.path,
        requests=found["requests"],
        seconds=found["seconds"],
        bytes=found["bytes"],
        errors=found["errors"],
        outcomes=found["outcomes"],
        error=found["error"],
        verified_bytes=found["verified_bytes"],
        wrong_blocks=found["wrong_blocks"],
        wrong=wrong,
        behind=found["behind"],
        latency=found["latency"],
        lag_ns=None if found["lag"] is None else _summary(found["lag"]),
        operations={
            name: OperationResult(each["requests"], each["bytes"], each["errors"], _summary(each["latency"]))
            for name, each in found["operations"].items()
        },
        series=[] if found["series"] is None else found["series"].rows(),
        image=made.described,
        workload=workload,
    )


def _total(jobs: list[JobResult], found: list[dict[str, Any]]) -> JobResult:
    """All jobs as one: their histograms are merged, never their percentiles."""
    whole, lag = LatencyHistogram(), LatencyHistogram()
    operations: dict[str, tuple[list[int], LatencyHistogram]] = {}
    outcomes: dict[str, int] = {}
    series: LoadSeries | None = LoadSeries() if all(each["series"] for each in found) else None
    for each in found:
        whole.merge(each["latency"])
        if each["lag"] is not None:
            lag.merge(each["lag"])
        if series is not None:
            series.add(each["series"])
        for kind, count in each["outcomes"].items():
            outcomes[kind] = outcomes.get(kind, 0) + count
        for name, one in each["operations"].items():
            counts, merged = operations.setdefault(name, ([0, 0, 0], LatencyHistogram()))
            for place, key in enumerate(("requests", "bytes", "errors")):
                counts[place] += one[key]
            merged.merge(one["latency"])
    paths = {job.path for job in jobs}
    return JobResult(
        name="total",
        path=paths.pop() if len(paths) == 1 else "several",
        requests=sum(job.requests for job in jobs),
        seconds=max(job.seconds for job in jobs),
        bytes=sum(job.bytes for job in jobs),
        errors=sum(job.errors for job in jobs),
        outcomes=outcomes,
        error=next((job.error for job in jobs if job.error), None),
        verified_bytes=sum(job.verified_bytes for job in jobs),
        wrong_blocks=sum(job.wrong_blocks for job in jobs),
        wrong=next((job.wrong for job in jobs if job.wrong), None),
        behind=sum(job.behind for job in jobs),
        latency=whole,
        lag_ns=_summary(lag) if lag.count else None,
        operations={
            name: OperationResult(counts[0], counts[1], counts[2], _summary(merged))
            for name, (counts, merged) in operations.items()
        },
        series=[] if series is None else series.rows(),
    )


def _config(job: Job, made: Subject) -> DiskConfig:
    return DiskConfig(
        str(Path(made.path).absolute()),
        path=job.path,
        format=made.format,
        read_only=not job.workload.writes,
        ide_mode=job.ide_mode,
        sector_size=made.sector_size if made.format == "raw" else None,
    )


def load(file: JobFile, progress: Progress) -> LoadResult:
    """Runs all jobs at once. A disk that answers wrongly does not end the load: see LoadResult.wrong.

    hvcore.Error, OSError, OptionError, ValueError.
    """
    with contextlib.ExitStack() as stack:
        progress("preparing", 0.0)
        made: list[Subject] = []
        for job in file.jobs:
            check_block(job.workload.largest, [job.path])
            made.append(stack.enter_context(subject(job.image, job.format, job.sector_size, job.size_bytes)))
        contents = [
            Content(job.workload, each.described.size_bytes, each.pattern_seed, verify=job.verify)
            for job, each in zip(file.jobs, made, strict=True)
        ]
        in_vm = [number for number, job in enumerate(file.jobs) if job.path != "local"]
        disks: dict[int, Any] = {}
        for number, job in enumerate(file.jobs):
            if job.path == "local":
                disks[number] = stack.enter_context(open_local(made[number], job.workload.writes))
        guest = None
        if in_vm:
            host = stack.enter_context(Host())
            configs = [_config(file.jobs[number], made[number]) for number in in_vm]
            vm = stack.enter_context(host.create_vm("load", file.memory_bytes, configs))
            vm.start()
            guest = stack.enter_context(vm.attach())
            disks |= dict(zip(in_vm, guest.disks, strict=True))
        runs: list[LoadRun] = []
        for number, (job, content) in enumerate(zip(file.jobs, contents, strict=True)):
            buffer = guest.alloc(job.workload.buffer_bytes) if guest is not None and number in in_vm else None
            runs.append(content.run(requester(disks[number]), buffer, number, series=file.series))
        progress("running", 0.1)
        found = run_loads(runs, seconds=file.seconds, requests=file.requests, warm_up=file.warm_up)
        progress("done", 1.0)
        jobs = [_result(*each) for each in zip(file.jobs, made, contents, found, strict=True)]
        return LoadResult(machine.describe(), jobs, _total(jobs, found) if len(jobs) > 1 else None)
