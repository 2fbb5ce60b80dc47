"""The machine that figures were taken on."""

import math
import os
import platform
from pathlib import Path, PurePosixPath

from hvcore import __version__
from hvcore.report.model import Machine


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name as the kernel says it, else the architecture."""
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.machine()


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (_text(folder / "cpu.max") or "max").strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def _quota_v1(folder: Path) -> float | None:
    quota = int(_text(folder / "cpu.cfs_quota_us") or -1)
    period = int(_text(folder / "cpu.cfs_period_us") or 0)
    return quota / period if quota > 0 and period > 0 else None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroup of this process may use at once, the tightest of its ancestors; None without a limit.

    Knows cgroup 2 and the cpu controller of cgroup 1. In a container the cgroup's path may be the host's and not
    exist here: then the mount's own top is the container's group.
    """
    limits = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, quota = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, quota = root / "sys/fs/cgroup" / controllers, _quota_v1
            if not mount.is_dir():
                mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        limits += [quota(mount / folder) for folder in (group, *group.parents)]
    return min((limit for limit in limits if limit is not None), default=None)


def usable_cpus() -> int:
    """How many threads of this process can run at once: affinity and cgroup quota, at least one."""
    cpus = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


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
