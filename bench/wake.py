"""An idle wake-up's round trip: a command to a host that sleeps, beside a futex between two threads that sleep as long.

The number of spinners a process allows itself is fixed when it starts, so each placement is measured by a process that
has only its CPUs: python -m bench.wake IMAGE ROUNDS WAKES CPU [CPU], which prints one line of JSON.
"""

import json
import mmap
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

IDLE_NS = 3_000_000  # between two wake-ups: much longer than any waiter spins


def measured(image: str, rounds: int, wakes: int, cpus: list[int]) -> dict[str, list[float]]:
    """Median round trip of each round in nanoseconds, the contestants in turn. Both ends of each sleep before."""
    os.sched_setaffinity(0, set(cpus))
    # Not before: what they may spin is counted on import.
    import bench_bareloop

    from bench.measure import pinned
    from bench.requests import ready
    from hvcore.partition.client import Host
    from hvcore.partition.config import DiskConfig

    words = mmap.mmap(-1, 4096)
    found: dict[str, list[float]] = {"hvcore": [], "futex": []}
    with Host() as host:
        vm = host.create_vm("wake", "16M", [DiskConfig(image, format="raw", read_only=True)])
        vm.start()
        with vm.attach() as guest:
            step = ready(guest.disks[0])

            def command() -> int:
                time.sleep(IDLE_NS / 1e9)
                begin = time.perf_counter_ns()
                step()
                return time.perf_counter_ns() - begin

            def answer() -> None:
                with pinned(cpus[-1]):
                    bench_bareloop.futex_answer(words, wakes * (rounds + 1))

            other = threading.Thread(target=answer)
            other.start()
            with pinned(cpus[0], host.pid, cpus[-1]):
                for number in range(rounds + 1):
                    for name, call in (
                        ("hvcore", command), ("futex", lambda: bench_bareloop.futex_ask(words, IDLE_NS)),
                    ):  # fmt: skip
                        taken = statistics.median(call() for _ in range(wakes))
                        if number:
                            found[name].append(taken)
            other.join()
    return found


def contest(image: Path, rounds: int, wakes: int, cpus: list[int]) -> dict[str, Any]:
    """The section of the report for one placement."""
    from bench.measure import spread

    load = os.getloadavg()[0]
    begin = time.monotonic()
    command = [sys.executable, "-m", "bench.wake", str(image), str(rounds), str(wakes), *map(str, cpus)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": search()})
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    where = f"CPU {cpus[0]} to CPU {cpus[-1]}" if cpus[0] != cpus[-1] else f"both on CPU {cpus[0]}"
    return {
        "title": f"Round trip to a sleeping process, {where}, after {IDLE_NS // 1_000_000} ms of sleep",
        "rounds": rounds,
        "seconds": round(time.monotonic() - begin, 2),
        "load_average": [load, os.getloadavg()[0]],
        "notes": {"placement": cpus},
        "contestants": {name: {"p50": spread(values)} for name, values in json.loads(done.stdout).items()},
    }


def search() -> str:
    return os.pathsep.join(filter(None, sys.path))


if __name__ == "__main__":
    image, rounds, wakes, *cpus = sys.argv[1:]
    print(json.dumps(measured(image, int(rounds), int(wakes), list(map(int, cpus)))))
