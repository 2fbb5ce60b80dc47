"""What `compare` and `explain` found, as typed values and as the JSON objects hvcore.compare/1 and hvcore.explain/1.

Field names are the JSON's keys. Times are nanoseconds, sizes bytes; per_request figures are totals divided by the
number of requests.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

COMPARE_SCHEMA = "hvcore.compare/1"
EXPLAIN_SCHEMA = "hvcore.explain/1"
BASE_PATH = "synthetic"


def dump(value: dict[str, Any]) -> str:
    """The JSON text that --json prints; NaN and infinities are refused because JSON has none."""
    return json.dumps(value, indent=2, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Image:
    """The disk image that was used; path is None for a temporary one."""

    path: str | None
    format: str
    size_bytes: int
    sector_size: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran. cpus: what this process may use; cpu_quota: the cgroup's limit in CPUs, None when it has none."""

    cpu_model: str
    cpus: list[int]
    cpus_online: int
    cpu_quota: float | None
    kernel: str
    python: str
    hvcore: str
    placement: str
    spinners: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Distribution of one request's time from submission to completion, as the guest sees it."""

    min: int
    p50: int
    p90: int
    p99: int
    p99_9: int
    max: int
    mean: float


@dataclass(frozen=True, slots=True)
class PerRequest:
    """Costs of one request. The first five are exact; the last three are as measured on this machine."""

    hand_overs: float
    ring_packets: float
    port_accesses: float
    intercepts: float
    bytes_copied: float
    doorbells: float
    blocking_waits: float
    context_switches: float


@dataclass(frozen=True, slots=True)
class Hop:
    """Time between two stamps of the traced pass."""

    name: str
    p50_ns: int
    p99_ns: int


@dataclass(frozen=True, slots=True)
class Run:
    """One workload on one path. ide_mode is None where no IDE controller takes part. moved_bytes: read and written,
    None where every request is one block. load: what was asked for, where rw and block_size do not say it all. behind:
    requests of an open loop that were due and never started."""

    path: str
    partition: str
    rw: str
    block_size: int
    queue_depth: int
    requests: int
    seconds: float
    errors: int
    verified_bytes: int
    latency_ns: Latency
    per_request: PerRequest
    hops: list[Hop] = field(default_factory=list)
    ide_mode: str | None = None
    moved_bytes: int | None = None
    behind: int = 0
    load: dict[str, Any] | None = None

    @property
    def iops(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        if self.moved_bytes is not None:
            return self.moved_bytes / self.seconds if self.seconds else 0.0
        return self.iops * self.block_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"iops": self.iops, "bytes_per_second": self.bytes_per_second}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Figures of one path divided by those of another: latencies above 1 are slower, iops below 1 are fewer.

    None where the divisor is zero.
    """

    path: str
    over: str
    p50: float | None
    p99: float | None
    mean: float | None
    iops: float | None


def _quotient(value: float, base: float) -> float | None:
    return value / base if base else None


def ratio(run: Run, base: Run) -> Ratio:
    """`run` measured by `base`."""
    mine, theirs = run.latency_ns, base.latency_ns
    return Ratio(
        path=run.path,
        over=base.path,
        p50=_quotient(mine.p50, theirs.p50),
        p99=_quotient(mine.p99, theirs.p99),
        mean=_quotient(mine.mean, theirs.mean),
        iops=_quotient(run.iops, base.iops),
    )


def ratios(runs: Sequence[Run]) -> list[Ratio]:
    """Every run over the synthetic one among them; empty when there is none."""
    base = next((run for run in runs if run.path == BASE_PATH), None)
    return [ratio(run, base) for run in runs if run is not base] if base else []


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answer of `hvcore compare`: the same workload on each path."""

    image: Image
    machine: Machine
    runs: Sequence[Run]

    @property
    def ratios(self) -> list[Ratio]:
        """Every other path over the synthetic one; empty when that was not run."""
        return ratios(self.runs)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": COMPARE_SCHEMA,
            "image": asdict(self.image),
            "machine": asdict(self.machine),
            "runs": [run.to_dict() for run in self.runs],
            "ratios": [asdict(ratio) for ratio in self.ratios],
        }

    def to_json(self) -> str:
        return dump(self.to_dict())


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of a sweep: its parameters as the command line names them, and a run for each path."""

    parameters: dict[str, Any]
    runs: Sequence[Run]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The answer of `hvcore compare --sweep`; as JSON a comparison with more runs, which carry their parameters."""

    image: Image
    machine: Machine
    points: Sequence[Point]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": COMPARE_SCHEMA,
            "image": asdict(self.image),
            "machine": asdict(self.machine),
            "runs": [run.to_dict() for point in self.points for run in point.runs],
            "ratios": [
                asdict(each) | {"parameters": point.parameters} for point in self.points for each in ratios(point.runs)
            ],
        }

    def to_json(self) -> str:
        return dump(self.to_dict())


@dataclass(frozen=True, slots=True)
class Step:
    """One numbered step of a request's path. hop names the trace hop whose time it is; no time where it has none.
    accesses: how many port accesses of a request that time is the sum of, None where it is no sum."""

    number: int
    text: str
    hop: str
    p50_ns: int | None
    p99_ns: int | None
    accesses: float | None = None


@dataclass(frozen=True, slots=True)
class ExactCounts:
    """Costs of one request that are the same on every machine."""

    hand_overs: float
    ring_packets: float
    port_accesses: float
    intercepts: float
    bytes_copied: float
    media_accesses: float


@dataclass(frozen=True, slots=True)
class PathExplanation:
    """One path, step by step; way_back goes on numbering where steps ends."""

    path: str
    ide_mode: str | None
    steps: list[Step]
    way_back: list[Step]
    per_request: ExactCounts
    total_ns: Latency


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of `hvcore explain`: single reads of block_size bytes, `requests` of them on each path."""

    image: Image
    machine: Machine
    block_size: int
    requests: int
    paths: Sequence[PathExplanation]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": EXPLAIN_SCHEMA} | asdict(self)

    def to_json(self) -> str:
        return dump(self.to_dict())
