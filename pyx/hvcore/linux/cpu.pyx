"""The CPUs that this process may use, and its budget of spinners."""

import math
import os
from pathlib import Path

cdef SpinBudget BUDGET


cdef SpinBudget *spin_budget() noexcept nogil:
    return &BUDGET


def _quota() -> float:
    """CPUs that the control group's quota is worth; infinity without one (cgroup v2 and v1)."""
    try:
        group = next(line.split(":", 2)[2].strip() for line in open("/proc/self/cgroup") if line.startswith("0::"))
        quota, period = Path("/sys/fs/cgroup" + group, "cpu.max").read_text().split()
    except (OSError, StopIteration, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def available_cpus() -> int:
    """CPUs this process may keep busy: its affinity, and the whole CPUs of its control group's quota (at least 1)."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota())))


def limit_spinners(limit: int | None = None) -> int:
    """Sets how many threads of this process may spin at once (None: its CPUs less one) and returns that."""
    BUDGET.limit = available_cpus() - 1 if limit is None else max(0, limit)
    return BUDGET.limit


limit_spinners()
