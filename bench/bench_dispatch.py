"""Both paths beside what they can be compared with: 4 KiB random reads of a file in the page cache, interleaved.

synthetic, emulated: the guest's request loop, all compiled, on one disk of each kind (depth 1: every IDE mode).
"pinned": guest and host on a CPU of their own, as the floor always is; everything else is placed by the scheduler.
read, readinto, read_batch: the Python interface on the synthetic path, into bytes, guest memory or a numpy array.
floor: a server process behind two bare rings. local: the storage stack, called directly. python: os.preadv.
nbd: qemu-nbd through libnbd's Python binding (Debian: qemu-utils, python3-libnbd), left out where it is not installed.
Run by pytest-benchmark (its time is a round of the synthetic path), or alone: python -m bench.bench_dispatch [--json].
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.rounds import (
    BLOCK,
    DEPTHS,
    Contestant,
    Result,
    Rounds,
    each,
    placement,
    preadv_step,
    random_offsets,
    script,
    table,
)
from hvcore.disk.image import open_image
from hvcore.dispatch.floor import Floor
from hvcore.dispatch.load import run_channel, run_disk
from hvcore.metrics.histogram import LatencyHistogram
from hvcore.partition.client import Host
from hvcore.partition.config import IDE_MODES, DiskConfig
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest

REQUESTS = 50_000
PYTHON_REQUESTS = 20_000
EMULATED_REQUESTS = 5_000
PEER_REQUESTS = 5_000
BATCH = 1024
PEER_PYTHON = "/usr/bin/python3"
PEER = Path(__file__).with_name("nbd_peer.py")


def loaded(done: dict[str, Any]) -> Result:
    """What run_channel and run_disk return."""
    if done["errors"]:
        raise RuntimeError(f"{done['errors']} of {done['requests']} reads failed")
    return Result(done["requests"], done["seconds"], done["latency"])


def channel(guest: Guest, disk: Disk, depth: int, requests: int) -> Contestant:
    buffer = guest.alloc(depth * BLOCK)
    return lambda seed: loaded(
        run_channel(disk.channel, buffer, disk.size, disk.sector_size, depth=depth, requests=requests, seed=seed)
    )


@contextlib.contextmanager
def pinned(pid: int) -> Iterator[None]:
    """This thread on one CPU and all threads of another process on the next."""
    places = placement()
    usable = os.sched_getaffinity(0)
    threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    try:
        if places is not None:
            os.sched_setaffinity(0, {places[0]})
            for thread in threads:
                os.sched_setaffinity(thread, {places[1]})
        yield
    finally:
        for thread in [0, *threads]:
            os.sched_setaffinity(thread, usable)


def apart(pid: int, contestant: Contestant) -> Contestant:
    def run(seed: int) -> Result:
        with pinned(pid):
            return contestant(seed)

    return run


def batches(disk: Disk, out: Any, depth: int) -> Contestant:
    count = REQUESTS // BATCH

    def run(seed: int) -> Result:
        offsets = random_offsets(seed, count * BATCH).reshape(count, BATCH)
        begin = time.monotonic()
        for batch in offsets:
            disk.read_batch(batch, out, queue_depth=depth)
        return Result(offsets.size, time.monotonic() - begin, None)

    return run


class Peer:
    """qemu-nbd and its client, a process that answers one round after the other."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [PEER_PYTHON, str(PEER), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def rounds(self, depth: int) -> Contestant:
        def run(seed: int) -> Result:
            assert self.process.stdin is not None and self.process.stdout is not None
            print(depth, PEER_REQUESTS, seed, file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
            histogram = LatencyHistogram()
            for ns in answer["latencies_ns"]:
                histogram.record(ns)
            return Result(PEER_REQUESTS, answer["seconds"], histogram)

        return run

    def close(self) -> None:
        self.process.communicate()


def missing() -> str | None:
    """The package without which there is no qemu-nbd to compare with."""
    if shutil.which("qemu-nbd") is None:
        return "qemu-utils"
    found = shutil.which(PEER_PYTHON) and subprocess.run([PEER_PYTHON, "-c", "import nbd"], capture_output=True)
    return None if found and found.returncode == 0 else "python3-libnbd"


@contextlib.contextmanager
def rounds(path: Path, depth: int) -> Iterator[Rounds]:
    with contextlib.ExitStack() as stack:
        image = open_image(str(path), format="raw")
        stack.callback(image.close)
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        modes = IDE_MODES if depth == 1 else IDE_MODES[:1]
        configs = [DiskConfig(str(path), format="raw", read_only=True)]
        configs += [DiskConfig(str(path), "emulated", "raw", read_only=True, ide_mode=mode) for mode in modes]
        host = stack.enter_context(Host())
        vm = host.create_vm("bench", "64M", configs)
        vm.start()
        guest = stack.enter_context(vm.attach())
        floor = stack.enter_context(Floor(path, BLOCK, depth, placement()))
        disk = guest.disks[0]
        synthetic = channel(guest, disk, depth, REQUESTS)
        contestants = {"synthetic": synthetic, "synthetic pinned": apart(host.pid, synthetic)}
        if depth == 1:
            place = guest.alloc(BLOCK)
            contestants["read"] = each(lambda offset: disk.read(offset, BLOCK), PYTHON_REQUESTS)
            contestants["readinto guest memory"] = each(lambda offset: disk.readinto(offset, place), PYTHON_REQUESTS)
        else:
            memory, array = guest.alloc(BATCH * BLOCK), np.empty((BATCH, BLOCK), np.uint8)
            contestants["read_batch guest memory"] = batches(disk, memory, depth)
            contestants["read_batch pinned"] = apart(host.pid, batches(disk, memory, depth))
            contestants["read_batch numpy"] = batches(disk, array, depth)
        for emulated in guest.disks[1:]:
            contestants[f"emulated {emulated.ide_mode}"] = channel(guest, emulated, depth, EMULATED_REQUESTS)
        contestants["floor"] = lambda seed: Result(REQUESTS, *floor.run(random_offsets(seed, REQUESTS)))
        contestants["local"] = lambda seed: loaded(run_disk(image, requests=REQUESTS, seed=seed))
        contestants["python"] = each(preadv_step(fd, depth), REQUESTS)
        if not missing():
            peer = Peer(path)
            stack.callback(peer.close)
            contestants["nbd"] = peer.rounds(depth)
        yield Rounds(depth, contestants, bases=("floor", "nbd"))


def figures(compared: Rounds) -> dict[str, Any]:
    notes: dict[str, Any] = {"floor and pinned on CPUs": placement()}
    if package := missing():
        notes["nbd"] = f"left out, it needs {package}"
    return {**compared.figures(), "notes": notes}


def compare(path: Path, depth: int) -> dict[str, Any]:
    with rounds(path, depth) as compared:
        compared.all()
    return figures(compared)


@pytest.mark.parametrize("depth", DEPTHS)
def test_dispatch(benchmark: Any, image: Path, depth: int) -> None:
    with rounds(image, depth) as compared:
        compared.benchmark(benchmark)
    benchmark.extra_info.update(figures(compared))
    print("\n" + table(benchmark.extra_info))


if __name__ == "__main__":
    script("Both paths beside what they can be compared with.", compare)
