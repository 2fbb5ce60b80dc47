"""The machine that figures were taken on."""

import os
import platform
from pathlib import Path

from hvcore import __version__
from hvcore.linux.quota import cpu_quota, read_text, usable_cpus
from hvcore.report.model import Machine


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name as the kernel says it, else the architecture."""
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.machine()


def cpu_list(cpus: list[int]) -> str:
    """CPU numbers as the kernel writes them: [0, 1, 2, 5] -> "0-2,5"."""
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and spans[-1][1] == cpu - 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def describe(placement: str = "not pinned", spinners: int | None = None) -> Machine:
    """This machine. placement: where the processes ran, in words; spinners: how many waiters were allowed to spin
    before they blocked, by default one fewer than the CPUs this process may use."""
    return Machine(
        cpu_model=cpu_model(),
        cpus=sorted(os.sched_getaffinity(0)),
        cpus_online=os.cpu_count() or 1,
        cpu_quota=cpu_quota(),
        kernel=platform.release(),
        python=platform.python_version(),
        hvcore=__version__,
        placement=placement,
        spinners=usable_cpus() - 1 if spinners is None else spinners,
    )
