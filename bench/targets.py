"""What is aimed at, row by row, and how each figure is taken from the contests."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Contests = dict[str, Any]
Source = tuple[str, str, str]  # contest, contestant, metric
PEER = {"nbdkit", "qemu-nbd", "fio", "pyzmq", "subetha-ipc", "multiprocessing.Pipe"}


@dataclass(frozen=True)
class Aim:
    """A ratio and its limit: `of` over the sum of `over`, or the other way round where more is better.

    faster: how many times lower than the base the figure must be at least (nanoseconds: a rate, turned over).
    slower: how many times the base it may be at most. absolute: a bound on the figure itself. Exactly one is set, or
    none: then the ratio of(base) is only reported.
    """

    of: Source
    over: tuple[Source, ...] = ()
    slower: float | None = None
    faster: float | None = None
    absolute: float | None = None
    base: str = ""


@dataclass(frozen=True)
class Row:
    measure: str
    target: str
    aims: tuple[Aim, ...]
    unit: str = "ns"


D1, D32, W1, W32 = "reads, depth 1", "reads, depth 32", "writes, depth 1", "writes, depth 32"
R64, R4K = "ring, 64 B", "ring, 4096 B"
BATCHED, BARE = "ring, batches of 32", "bare ring, batches of 32"

ROWS = (
    Row(
        "no-data command (TEST UNIT READY) from Python, provider polling, median",
        "at most 3.5 x (cache-line ping-pong + empty call that releases the GIL)",
        (
            Aim(
                ("commands", "ready", "p50"),
                (("commands", "ping-pong", "ns"), ("commands", "gil call", "p50")),
                slower=3.5,
                base="ping-pong + GIL call",
            ),
        ),
    ),
    Row(
        "4 KiB read, depth 1, median",
        "at most 1.4 x the floor; 15 x lower than nbdkit, 40 x lower than qemu-nbd through libnbd",
        (
            Aim((D1, "readinto", "p50"), ((D1, "floor", "p50"),), slower=1.4, base="floor"),
            Aim((D1, "readinto", "p50"), ((D1, "nbdkit libnbd", "p50"),), faster=15, base="nbdkit"),
            Aim((D1, "readinto", "p50"), ((D1, "qemu-nbd libnbd", "p50"),), faster=40, base="qemu-nbd"),
        ),
    ),
    Row(
        "the same without Python between the requests",
        "reported",
        (Aim((D1, "load", "p50"), ((D1, "floor", "p50"),), base="floor"),),
    ),
    Row(
        "4 KiB read, depth 32, `read_batch`",
        "at least 0.7 of the floor's IOPS; 1.5 x fio's io_uring engine; 20 x qemu-nbd through libnbd",
        (
            Aim((D32, "read_batch", "ns"), ((D32, "floor", "ns"),), faster=0.7, base="floor"),
            Aim((D32, "read_batch", "ns"), ((D32, "fio io_uring", "ns"),), faster=1.5, base="fio io_uring"),
            Aim((D32, "read_batch", "ns"), ((D32, "qemu-nbd libnbd", "ns"),), faster=20, base="qemu-nbd"),
        ),
    ),
    Row(
        "the same through one Python call per request",
        "at least 0.35 of the floor's IOPS at depth 32",
        (Aim((D32, "readinto", "p50"), ((D32, "floor", "ns"),), faster=0.35, base="floor"),),
    ),
    Row(
        "4 KiB write, depth 1, median",
        "at most 1.4 x the floor writing",
        (Aim((W1, "write", "p50"), ((W1, "floor", "p50"),), slower=1.4, base="floor"),),
    ),
    Row(
        "4 KiB write, depth 32",
        "at least 0.7 of the floor's IOPS writing",
        (Aim((W32, "write_batch", "ns"), ((W32, "floor", "ns"),), faster=0.7, base="floor"),),
    ),
    Row(
        "allocated dynamic VHDX instead of raw, depth 32",
        "at least 0.85 of the IOPS",
        (Aim(("formats", "vhdx, depth 32", "ns"), (("formats", "raw, depth 32", "ns"),), faster=0.85, base="raw"),),
    ),
    Row(
        "128 KiB sequential read",
        "at least 0.7 of a preadv loop into the same pages; 10 x qemu-nbd",
        (
            Aim(("sequential", "read_batch", "ns"), (("sequential", "preadv", "ns"),), faster=0.7, base="preadv"),
            Aim(
                ("sequential", "read_batch", "ns"),
                (("sequential", "qemu-nbd libnbd", "ns"),),
                faster=10,
                base="qemu-nbd",
            ),
        ),
    ),
    Row(
        "ring, 64 B one way, one Python call per packet",
        "at least 4 x pyzmq, 1.5 x subetha-ipc",
        (
            Aim((R64, "Ring, a call per packet", "ns"), ((R64, "pyzmq", "ns"),), faster=4, base="pyzmq"),
            Aim((R64, "Ring, a call per packet", "ns"), ((R64, "subetha-ipc", "ns"),), faster=1.5, base="subetha-ipc"),
        ),
    ),
    Row(
        "ring, 64 B one way, batches of 32",
        "at least 0.4 of a bare C ring with batches of 32; 50 x pyzmq",
        (
            Aim((R64, BATCHED, "ns"), ((R64, BARE, "ns"),), faster=0.4, base="bare"),
            Aim((R64, "ring, batches of 32", "ns"), ((R64, "pyzmq", "ns"),), faster=50, base="pyzmq"),
        ),
    ),
    Row(
        "ring, 4 KiB one way, batches of 32",
        "at least 0.8 of a bare C ring; 15 x pyzmq",
        (
            Aim((R4K, BATCHED, "ns"), ((R4K, BARE, "ns"),), faster=0.8, base="bare"),
            Aim((R4K, "ring, batches of 32", "ns"), ((R4K, "pyzmq", "ns"),), faster=15, base="pyzmq"),
        ),
    ),
    Row(
        "idle wake-up round trip, a CPU each",
        "at most 1.2 x a futex round trip",
        (Aim(("wake", "hvcore", "p50"), (("wake", "futex", "p50"),), slower=1.2, base="futex"),),
    ),
    Row(
        "idle wake-up round trip, both processes on one CPU",
        "at most 2 x a futex round trip",
        (Aim(("wake, one CPU", "hvcore", "p50"), (("wake, one CPU", "futex", "p50"),), slower=2, base="futex"),),
    ),
    Row(
        "doorbells per request at depth 32",
        "at most 0.05",
        (Aim((D32, "doorbells", "both"), absolute=0.05),),
        unit="",
    ),
    Row("idle VM: CPU of the host over 2 s", "0 s", (Aim(("idle", "idle", "CPU seconds"), absolute=0),), unit="s"),
    Row(
        "idle VM: context switches of the host over 2 s",
        "0",
        (Aim(("idle", "idle", "context switches"), absolute=0),),
        unit="",
    ),
    Row(
        "idle VM: memory of the host beyond the guest's",
        "at most 2 MiB",
        (Aim(("idle", "idle", "host bytes per VM"), absolute=2 << 20),),
        unit="B",
    ),
    Row("a worker's PSS", "at most 15 MiB", (Aim(("idle", "idle", "worker PSS"), absolute=15 << 20),), unit="B"),
)


def values(contests: Contests, source: Source) -> list[float] | None:
    """A metric's value in every round; None when the contestant was left out."""
    contest, contestant, metric = source
    section = contests.get(contest)
    if section is None:
        return None
    found = section["contestants"].get(contestant, {}).get(metric)
    if found is None and isinstance(section["notes"].get(contestant), dict):
        noted = section["notes"][contestant].get(metric)
        return None if noted is None else [noted]
    return None if found is None else found["rounds"]


def judged(aim: Aim, contests: Contests) -> dict[str, Any]:
    """The ratio round by round, as far as rounds pair, its median and spread, and whether the limit is kept."""
    own = values(contests, aim.of)
    bases = [values(contests, source) for source in aim.over]
    answer: dict[str, Any] = {"base": aim.base, "of": list(aim.of)}
    if own is None or any(base is None for base in bases):
        return {**answer, "verdict": "not measured"}
    answer["value"] = statistics.median(own)
    if aim.absolute is not None:
        return {**answer, "limit": aim.absolute, "verdict": "met" if answer["value"] <= aim.absolute else "missed"}
    summed = [sum(parts) for parts in zip(*(base for base in bases if base is not None), strict=True)]
    inverse = aim.faster is not None
    ratios = [base / one if inverse else one / base for one, base in zip(own, summed, strict=True)]
    total, mine = statistics.median(summed), answer["value"]
    ratio = total / mine if inverse else mine / total
    answer |= {"base value": total, "ratio": ratio, "spread": [min(ratios), max(ratios)]}
    if aim.faster is not None:
        return {**answer, "limit": aim.faster, "verdict": "met" if ratio >= aim.faster else "missed"}
    if aim.slower is not None:
        return {**answer, "limit": aim.slower, "verdict": "met" if ratio <= aim.slower else "missed"}
    return {**answer, "verdict": "reported"}


def growth_rows(contests: Contests) -> list[dict[str, Any]]:
    """How much dearer the dearest is than the first: over VMs, and over depth."""
    section = contests.get("growth")
    if section is None:
        return []
    rows = []
    for word, metric, measure in (
        ("VMs", "cpu_ns in turn", "CPU time per request, 1 to 64 VMs, one working at a time"),
        ("VMs", "cpu_ns at once", "CPU time per request, 1 to 64 VMs, all working"),
        ("depth", "cpu_ns in turn", "CPU time per request, depth 1 to 256"),
    ):
        found = {
            name: one[metric]["median"]
            for name, one in section["contestants"].items()
            if word in name and metric in one
        }
        first, highest = next(iter(found.values())), max(found.values())
        aim = {"base": next(iter(found)), "value": highest, "base value": first, "ratio": highest / first}
        aim |= {"verdict": "reported", "spread": [min(found.values()) / first, highest / first], "all": found}
        rows.append({"measure": measure, "target": "flat", "unit": "ns", "aims": [aim]})
    return rows


def path_rows(contests: Contests) -> list[dict[str, Any]]:
    """Every path over the synthetic one, with the counts that explain it."""
    section = contests.get("paths")
    if section is None or "synthetic" not in section["contestants"]:
        return []
    rows = []
    for name in section["contestants"]:
        if name != "synthetic":
            aim = judged(Aim(("paths", name, "p50"), (("paths", "synthetic", "p50"),), base="synthetic"), contests)
            aim["counts"] = section["notes"].get(f"{name} counts", {})
            rows.append({"measure": f"{name} over synthetic, 4 KiB read, depth 1", "target": "reported", "unit": "ns",
                         "aims": [aim]})  # fmt: skip
    return rows


def rows(contests: Contests) -> list[dict[str, Any]]:
    """Every row with what was measured for it."""
    made: list[dict[str, Any]] = [
        {
            "measure": row.measure,
            "target": row.target,
            "unit": row.unit,
            "aims": [judged(aim, contests) for aim in row.aims],
        }
        for row in ROWS
    ]
    several: list[Callable[[Contests], list[dict[str, Any]]]] = [growth_rows, path_rows]
    for more in several:
        made += more(contests)
    return made
