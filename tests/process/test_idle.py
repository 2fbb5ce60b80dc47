"""Nothing to do costs nothing: host, worker and guest sleep until somebody wants something."""

import os
import select
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

import hvcore
from tests.reference.vms import IDE_MODES, MIB, raw

IDLE_S = 1.0
TICKS = 2  # of a hundred; a thread that spins takes all of them
SWITCHES = 5


def ticks(pid: int) -> int:
    """CPU time of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def switches(pid: int) -> int:
    """How often the process's threads blocked so far: what wakes up, however short, blocks again."""
    lines = (
        line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "status").read_text().splitlines()
    )
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def spent(of: Callable[[int], int], pids: dict[str, int]) -> dict[str, int]:
    return {name: of(pid) for name, pid in pids.items()}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - count for name, count in before.items()}


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "left"])
def test_idle_takes_no_cpu(tmp_path: Path, attached: bool) -> None:
    disks = [raw(tmp_path / "synthetic")]
    disks += [raw(tmp_path / mode, path="emulated", ide_mode=mode) for mode in IDE_MODES]
    offsets = numpy.arange(0, MIB, 4096, dtype=numpy.uint64)
    out = numpy.empty((len(offsets), 4096), numpy.uint8)
    with hvcore.Host() as host:
        vm = host.create_vm("idle", "32M", disks)
        vm.start()
        guest = vm.attach()
        for disk in guest.disks:
            disk.read_batch(offsets, out)
            disk.write(0, bytes(4096))
            disk.flush()
        if not attached:
            guest.close()
        pids = {"host": host.pid, "worker": vm.describe()["worker"], "guest": os.getpid()}
        time_before, switches_before = spent(ticks, pids), spent(switches, pids)
        # The one wait that has to be an amount of time: it is what the ticks are counted over.
        select.select([], [], [], IDLE_S)
        time, woken = grown(time_before, spent(ticks, pids)), grown(switches_before, spent(switches, pids))
        assert all(count <= TICKS for count in time.values()), f"ticks: {time}"
        assert all(count <= SWITCHES for count in woken.values()), f"voluntary context switches: {woken}"
