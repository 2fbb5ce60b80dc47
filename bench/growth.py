"""How cost grows: CPU time per request over VMs and depth, and what an idle VM takes."""

import contextlib
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from bench.image import BLOCK
from bench.measure import cpu_seconds, memory_of, status, threads_of
from bench.requests import BATCH, parts, raw
from hvcore.linux.quota import read_text
from hvcore.partition.client import Host
from hvcore.partition.config import DiskConfig
from hvcore.partition.guest import Guest

VMS = (1, 4, 16, 64)
DEPTHS = (1, 4, 32, 256)
IDLE_SECONDS = 2.0
IDLE_VMS = 16
MEMORY = "16M"


def spent(pid: int) -> float:
    return cpu_seconds(pid) + time.process_time()


class Crowd:
    """VMs of one host, all guests of this process, one disk each of the same image."""

    def __init__(self, stack: contextlib.ExitStack, path: Path, count: int) -> None:
        self.host = stack.enter_context(Host())
        self.guests: list[Guest] = []
        for number in range(count):
            vm = self.host.create_vm(f"vm{number}", MEMORY, [raw(path)])
            vm.start()
            self.guests.append(stack.enter_context(vm.attach()))
        self.buffers = [guest.alloc(BATCH * BLOCK) for guest in self.guests]

    def read(self, number: int, batches: Any, depth: int) -> None:
        for part in batches:
            self.guests[number].disks[0].read_batch(part, self.buffers[number], queue_depth=depth)

    def in_turn(self, seed: int, requests: int, depth: int) -> float:
        """CPU nanoseconds per request of host and guests, one VM working at a time."""
        batches = parts(seed, requests)
        begin = spent(self.host.pid)
        for number, part in enumerate(batches):
            self.read(number % len(self.guests), [part], depth)
        return 1e9 * (spent(self.host.pid) - begin) / batches.size

    def at_once(self, seed: int, requests: int, depth: int) -> float:
        """The same with all VMs working."""
        batches = parts(seed, max(requests, BATCH * len(self.guests)))
        shares = [batches[number :: len(self.guests)] for number in range(len(self.guests))]
        threads = [
            threading.Thread(target=self.read, args=(number, share, depth)) for number, share in enumerate(shares)
        ]
        begin = spent(self.host.pid)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 1e9 * (spent(self.host.pid) - begin) / batches.size


def scaling(path: Path, rounds: int, requests: int) -> dict[str, Any]:
    """CPU time per request over the number of VMs at depth 32, and over depth with one VM."""
    load, begin = os.getloadavg()[0], time.monotonic()
    found: dict[str, dict[str, list[float]]] = {}

    def add(name: str, metric: str, value: float) -> None:
        found.setdefault(name, {}).setdefault(metric, []).append(value)

    with contextlib.ExitStack() as stack:
        crowds = {count: Crowd(stack, path, count) for count in VMS}
        for number in range(rounds + 1):
            for count, crowd in crowds.items():
                taken = {
                    "cpu_ns in turn": crowd.in_turn(number, requests, 32),
                    "cpu_ns at once": crowd.at_once(number, requests, 32),
                }
                for metric, value in taken.items():
                    if number:
                        add(f"{count} VMs", metric, value)
            for depth in DEPTHS:
                value = crowds[1].in_turn(number, requests, depth)
                if number:
                    add(f"depth {depth}", "cpu_ns in turn", value)
    from bench.measure import spread

    return {
        "title": "CPU time of host and guest per 4 KiB read: VMs at depth 32, depths with one VM; waiters spin",
        "rounds": rounds,
        "seconds": round(time.monotonic() - begin, 2),
        "load_average": [load, os.getloadavg()[0]],
        "notes": {},
        "contestants": {
            name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in found.items()
        },
    }


def switches(pid: int) -> int:
    """Context switches of all threads of a process so far."""
    total = 0
    for thread in threads_of(pid):
        for line in (read_text(Path(f"/proc/{pid}/task/{thread}/status")) or "").splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def children_of(pid: int) -> list[int]:
    found = []
    for thread in threads_of(pid):
        found += map(int, (read_text(Path(f"/proc/{pid}/task/{thread}/children")) or "").split())
    return found


def idle(path: Path) -> dict[str, Any]:
    """What idle VMs cost: CPU and switches of the host over two seconds, memory of the host per VM, a worker's PSS."""
    load, begin = os.getloadavg()[0], time.monotonic()
    notes: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Host())

        def add(number: int, disk: DiskConfig) -> Guest:
            vm = host.create_vm(f"idle{number}", MEMORY, [disk])
            before = children_of(host.pid)
            vm.start()
            notes["workers"] = {"before the start": len(before), "after": len(children_of(host.pid))}
            return stack.enter_context(vm.attach())

        add(0, raw(path))  # the first VM loads what all of them share
        notes["workers of a synthetic VM"] = notes.pop("workers")
        base, resident = memory_of(host.pid), status(host.pid, "VmRSS")
        for number in range(1, IDLE_VMS + 1):
            add(number, raw(path))
        full = memory_of(host.pid)
        private = (full["Pss_Anon"] + full["Pss_File"]) - (base["Pss_Anon"] + base["Pss_File"])
        time.sleep(0.2)  # whatever the last attachment left to do
        cpu, turns = cpu_seconds(host.pid), switches(host.pid)
        time.sleep(IDLE_SECONDS)
        cpu, turns = cpu_seconds(host.pid) - cpu, switches(host.pid) - turns
        grown = {
            "resident bytes": (status(host.pid, "VmRSS") - resident) / IDLE_VMS,
            "shared bytes": (full["Pss_Shmem"] - base["Pss_Shmem"]) / IDLE_VMS,
        }
        notes.pop("workers")
        add(IDLE_VMS + 1, DiskConfig(str(path), "emulated", "raw", read_only=True))
        notes["workers of an emulated VM"] = notes.pop("workers")
        workers = [memory_of(child)["Pss"] for child in children_of(host.pid)]
    values = {
        "CPU seconds": cpu,
        "context switches": float(turns),
        "host bytes per VM": private / IDLE_VMS,
        "worker PSS": float(statistics.median(workers)) if workers else 0.0,
        **{f"host {name} per VM": value for name, value in grown.items()},
    }
    return {
        "title": f"{IDLE_VMS + 1} idle VMs with a guest attached, over {IDLE_SECONDS:g} s",
        "rounds": 1,
        "seconds": round(time.monotonic() - begin, 2),
        "load_average": [load, os.getloadavg()[0]],
        "notes": notes,
        "contestants": {"idle": {name: {"median": value, "rounds": [value]} for name, value in values.items()}},
    }
