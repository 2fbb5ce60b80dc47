"""How the suite measures: contestants in interleaved rounds, their spread, and the machine they ran on."""

import contextlib
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvcore.linux.quota import read_text
from hvcore.report.machine import cpu_list, cpu_model, describe

Figures = dict[str, float]  # of one round of one contestant, by metric
Contestant = Callable[[int], Figures]  # from the round's seed

FILE_SYSTEMS = {
    0x01021994: "tmpfs",
    0x2FC12FC1: "zfs",
    0x4D44: "vfat",
    0x58465342: "xfs",
    0x6969: "nfs",
    0x794C7630: "overlayfs",
    0x9123683E: "btrfs",
    0xEF53: "ext2/3/4",
    0xF2F52010: "f2fs",
}


def file_system(path: str | Path) -> str:
    """The type of the file system that holds a path, as statfs(2) says it."""
    space = (ctypes.c_long * 32)()  # struct statfs: f_type comes first
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), space) != 0:
        return "unknown"
    return FILE_SYSTEMS.get(space[0], hex(space[0]))


def placements() -> list[tuple[int, int]]:
    """Pairs of CPUs for two sides: the first with its neighbour and, on larger machines, with the last."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return [(cpus[0], cpus[0])]
    return list(dict.fromkeys([(cpus[0], cpus[1]), (cpus[0], cpus[-1])]))


def threads_of(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    return []


@contextlib.contextmanager
def pinned(cpu: int, pid: int | None = None, other: int | None = None) -> Iterator[None]:
    """This thread on `cpu` and all threads of process `pid` on `other`; all may run anywhere again afterwards."""
    usable = os.sched_getaffinity(0)
    threads = threads_of(pid) if pid is not None and other is not None else []
    try:
        os.sched_setaffinity(0, {cpu})
        for thread in threads:
            os.sched_setaffinity(thread, {other or 0})
        yield
    finally:
        for thread in [0, *threads]:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, usable)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, in nanosecond steps."""
    return time.clock_gettime((~pid << 3) | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)


def status(pid: int, key: str) -> int:
    """A number of /proc/PID/status; kB as bytes."""
    for line in (read_text(Path(f"/proc/{pid}/status")) or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            number, *unit = value.split()
            return int(number) * (1024 if unit else 1)
    raise KeyError(key)


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names of smaps_rollup: Pss, Pss_Anon, Pss_File, Pss_Shmem, Rss and so on."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found


def bursts(step: Callable[[], Any], calls: int, size: int = 20) -> Figures:
    """The median of a call's time, from bursts of `size` calls: a look at the clock costs as much as a short call."""
    clock, each, taken = time.perf_counter_ns, [None] * size, []
    for _ in range(max(1, calls // size)):
        begin = clock()
        for _ in each:
            step()
        taken.append((clock() - begin) / size)
    return {"p50": statistics.median(taken), "ns": statistics.fmean(taken)}


def bursts_over(step: Callable[[int], Any], values: list[int], size: int = 20) -> Figures:
    """The same for a call with an argument."""
    clock, taken = time.perf_counter_ns, []
    for start in range(0, len(values) - size + 1, size):
        part = values[start : start + size]
        begin = clock()
        for value in part:
            step(value)
        taken.append((clock() - begin) / size)
    return {"p50": statistics.median(taken), "ns": statistics.fmean(taken)}


def spread(values: list[float]) -> dict[str, Any]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {
        "median": statistics.median(values),
        "q1": low,
        "q3": high,
        "min": min(values),
        "max": max(values),
        "rounds": values,
    }


@dataclass
class Contest:
    """Contestants of one question, each once per round, so that a disturbance meets all of them.

    notes: what a reader must know, among it which peers are missing and why. A contestant that fails ends the contest.
    """

    name: str
    title: str
    contestants: dict[str, Contestant] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def run(self, rounds: int) -> dict[str, Any]:
        found: dict[str, dict[str, list[float]]] = {}
        load = os.getloadavg()[0]
        begin = time.monotonic()
        for number in range(rounds + 1):
            for name, contestant in self.contestants.items():
                figures = contestant(number)
                if number:  # the first round fills caches, and teaches waiters how long to spin
                    for metric, value in figures.items():
                        found.setdefault(name, {}).setdefault(metric, []).append(value)
        return {
            "title": self.title,
            "rounds": rounds,
            "seconds": round(time.monotonic() - begin, 2),
            "load_average": [load, os.getloadavg()[0]],
            "notes": self.notes,
            "contestants": {
                name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in found.items()
            },
        }


def machine() -> dict[str, Any]:
    about = describe(placement="guest and host on one CPU each, named per contest")
    return {
        "cpu_model": cpu_model(),
        "cpus": cpu_list(sorted(os.sched_getaffinity(0))),
        "cpu_quota": about.cpu_quota,
        "placements": placements(),
        "kernel": about.kernel,
        "python": about.python,
        "hvcore": about.hvcore,
    }
