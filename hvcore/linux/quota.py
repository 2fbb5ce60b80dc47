"""How many CPUs this process may use."""

import math
import os
from pathlib import Path, PurePosixPath


def read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (read_text(folder / "cpu.max") or "max").strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def _quota_v1(folder: Path) -> float | None:
    quota = int(read_text(folder / "cpu.cfs_quota_us") or -1)
    period = int(read_text(folder / "cpu.cfs_period_us") or 0)
    return quota / period if quota > 0 and period > 0 else None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroup of this process may use at once, the tightest of its ancestors; None without a limit.

    Knows cgroup 2 and the cpu controller of cgroup 1. In a container the cgroup's path may be the host's and not
    exist here: then the mount's own top is the container's group.
    """
    limits = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
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
