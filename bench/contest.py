"""What the benchmarks of images share: folders to work in, processes that are timed, and contests of them in turn."""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvcore.report.machine import cpu_model

MIB = 1 << 20
MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def folders(needed: int) -> Iterator[dict[str, Path]]:
    """ "memory": a folder on a file system in memory; "disk": one in the working folder. Those with room only."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, place in (("memory", MEMORY), ("disk", Path.cwd())):
            if place.is_dir() and shutil.disk_usage(place).free > needed:
                made = tempfile.TemporaryDirectory(prefix=".hvcore-bench-", dir=place)
                found[name] = Path(stack.enter_context(made))
        yield found


@dataclass(frozen=True)
class Run:
    """seconds: of the clock; cpu: of all processors; memory: most bytes that the process held at a time."""

    seconds: float
    cpu: float
    memory: int
    answer: Any = None


# Linux counts what a process held before its exec as its own: so that this is little, a small one starts the command.
STARTER = """
import os, sys, time
begin = time.monotonic()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.monotonic() - begin
figures = (os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
os.write(int(sys.argv[1]), " ".join(map(str, figures)).encode())
"""


def process(command: list[str | Path], stdin: bytes = b"") -> Run:
    """Runs a command to its end. answer: what it printed, if that is JSON."""
    out, report = os.pipe()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said, open(out, "rb") as figures:
        given.write(stdin)
        given.seek(0)
        starter = [sys.executable, "-IS", "-c", STARTER, str(report), *map(str, command)]
        subprocess.run(starter, stdin=given, stdout=said, stderr=subprocess.STDOUT, pass_fds=[report], check=True)
        os.close(report)
        code, seconds, cpu, kib = figures.read().split()
        said.seek(0)
        text = said.read().decode(errors="replace")
    if code != b"0":
        raise RuntimeError(f"{command}: {int(code)}: {text[-2000:]}")
    answer = None
    with contextlib.suppress(ValueError):
        answer = json.loads(text)
    return Run(float(seconds), float(cpu), int(kib) * 1024, answer)


def python(code: str, *arguments: str | Path) -> Run:
    return process([sys.executable, "-c", code, *arguments])


@dataclass
class Contest:
    """Contestants that do the same work, each once per round, so that a disturbance meets all of them.

    bases: with whose throughput the others' is compared. settle: called before each run, not timed.
    """

    title: str
    work: int  # bytes
    contestants: dict[str, Callable[[], Run]]
    bases: tuple[str, ...]
    settle: Callable[[], None] = lambda: None
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def all(self, rounds: int) -> "Contest":
        for number in range(rounds + 1):
            for name, contestant in self.contestants.items():
                self.settle()
                run = contestant()
                if number:  # the first round fills caches
                    self.runs.setdefault(name, []).append(run)
        self.settle()
        return self

    def figures(self) -> dict[str, Any]:
        """MB/s and seconds of each, median and spread, and the ratio of the throughput to each base's."""
        found: dict[str, Any] = {}
        for name, runs in self.runs.items():
            seconds = [run.seconds for run in runs]
            median = statistics.median(seconds)
            found[name] = {
                "seconds": {"median": median, "min": min(seconds), "max": max(seconds)},
                "mb_per_s": self.work / median / 1e6,
                "cpu_seconds": statistics.median(run.cpu for run in runs),
                "peak_memory": max(run.memory for run in runs),
            }
        for one in found.values():
            for base in self.bases:
                one[f"to_{base}"] = round(found[base]["seconds"]["median"] / one["seconds"]["median"], 3)
        return {"title": self.title, "work": self.work, "rounds": len(next(iter(self.runs.values()))), **machine(),
                "bases": self.bases, "contestants": found}  # fmt: skip


def machine() -> dict[str, Any]:
    return {"machine": {"cpu": cpu_model(), "cpus": len(os.sched_getaffinity(0))}, "load_average": os.getloadavg()[0]}


def table(figures: dict[str, Any]) -> str:
    contestants, bases = figures["contestants"], figures["bases"]
    width = max(len(name) for name in contestants)
    lines = [
        f"{figures['title']}: {figures['work'] / MIB:.0f} MiB, {figures['rounds']} rounds, load "
        f"{figures['load_average']:.2f}, {figures['machine']['cpus']} CPUs ({figures['machine']['cpu']})",
        f"{'':{width}}{'s':>8}{'min':>8}{'max':>8}{'MB/s':>8}{'CPU s':>8}{'MiB':>7}"
        + "".join(f"  /{base}" for base in bases),
    ]
    for name, one in contestants.items():
        seconds = one["seconds"]
        lines.append(
            f"{name:{width}}{seconds['median']:8.3f}{seconds['min']:8.3f}{seconds['max']:8.3f}{one['mb_per_s']:8.0f}"
            f"{one['cpu_seconds']:8.2f}{one['peak_memory'] / MIB:7.0f}"
            + "".join(f"{one[f'to_{base}']:{len(base) + 3}.2f}" for base in bases)
        )
    return "\n".join(lines)
