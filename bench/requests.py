"""Disk requests: commands, reads and writes at depth 1 and 32, VHDX beside raw, sequential reads, the paths.

Everywhere the guest's thread is on one CPU and the host on another, as the floor's and the servers' two sides are.
"""

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_bareloop
import bench_ringloop
import numpy as np
from bench_floor import Floor, local_preadv

from bench import peers
from bench.image import BLOCK, FILE_BYTES, random_offsets
from bench.measure import Contest, Figures, bursts, bursts_over, file_system, pinned, placements
from hvcore import vhd
from hvcore.dispatch.load import run_channel
from hvcore.partition.client import Host, VirtualMachine
from hvcore.partition.config import IDE_MODES, PATHS, DiskConfig
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest

BATCH = 1024
LARGE = 128 << 10
LARGE_DEPTH = 8
TEST_UNIT_READY = bytes(6)


def windows(run: Callable[[Any], float], offsets: Any) -> Figures:
    """`run` takes one window of offsets after the other and returns its seconds. ns: per request, in the median window,
    so that a moment in which either side had to give its CPU away does not count for the rest; mean: of all."""
    taken = [1e9 * run(part) / len(part) for part in offsets]
    return {"ns": statistics.median(taken), "mean": statistics.fmean(taken)}


class Sizes:
    """Requests of each contestant in a round."""

    def __init__(self, quick: bool) -> None:
        self.native = 5_000 if quick else 40_000
        self.python = 2_000 if quick else 10_000
        self.emulated = 1_000 if quick else 5_000
        self.peer = 500 if quick else 3_000
        self.fio = 5_000 if quick else 100_000


class Running:
    """A VM of one disk or more with this process as its guest; contestants run with both sides on their CPUs."""

    def __init__(self, stack: contextlib.ExitStack, disks: list[DiskConfig], place: tuple[int, int]) -> None:
        self.host = stack.enter_context(Host())
        self.vm: VirtualMachine = self.host.create_vm("bench", "64M", disks)
        self.vm.start()
        self.guest: Guest = stack.enter_context(self.vm.attach())
        self.place = place

    def apart(self, run: Callable[[int], Figures]) -> Callable[[int], Figures]:
        def both(seed: int) -> Figures:
            with pinned(self.place[0], self.host.pid, self.place[1]):
                return run(seed)

        return both

    def loop(self, disk: Disk, depth: int, requests: int, rw: str = "randread", block: int = BLOCK) -> Any:
        """The compiled request loop of the load generator."""
        buffer = self.guest.alloc(depth * block)

        def run(seed: int) -> Figures:
            parts = []
            for part in range(requests // BATCH):
                done = run_channel(
                    disk.channel, buffer, disk.size, disk.sector_size, rw=rw, block=block, depth=depth, requests=BATCH,
                    seed=1 + seed * requests + part,
                )  # fmt: skip
                if done["errors"]:
                    raise RuntimeError(f"{done['errors']} of {BATCH} requests failed on {disk.path}")
                parts.append(done)
            taken = [1e9 * done["seconds"] / BATCH for done in parts]
            p50 = statistics.median(done["latency"].summary()["p50"] for done in parts)
            return {"ns": statistics.median(taken), "mean": statistics.fmean(taken), "p50": p50}

        return self.apart(run)

    def batches(self, disk: Disk, depth: int, requests: int, *, write: bool = False, block: int = BLOCK) -> Any:
        """read_batch or write_batch of guest memory."""
        memory = self.guest.alloc(BATCH * block)
        call = disk.write_batch if write else disk.read_batch

        def window(part: Any) -> float:
            begin = time.perf_counter()
            call(part, memory, queue_depth=depth)
            return time.perf_counter() - begin

        return self.apart(lambda seed: windows(window, parts(seed, requests)))


def parts(seed: int, requests: int) -> Any:
    return random_offsets(seed, max(1, requests // BATCH) * BATCH).reshape(-1, BATCH)


def raw(path: Path, **options: Any) -> DiskConfig:
    return DiskConfig(str(path), format="raw", **{"read_only": True, **options})


def floor(made: Floor, requests: int) -> Callable[[int], Figures]:
    def run(seed: int) -> Figures:
        medians = []

        def window(part: Any) -> float:
            seconds, histogram = made.run(part)
            medians.append(histogram.summary()["p50"])
            return seconds

        return {**windows(window, parts(seed, requests)), "p50": statistics.median(medians)}

    return run


def ready(disk: Disk) -> Callable[[], Any]:
    """TEST UNIT READY by the leanest call there is."""
    lean = getattr(disk, "ready", None)
    return lean if lean is not None else lambda: disk.channel.execute(TEST_UNIT_READY, lun=disk.lun)


class LinePass:
    """A cache line passed between two threads that do not hold the GIL, on a CPU each."""

    def __init__(self, place: tuple[int, int]) -> None:
        self.place = place
        self.threads = ThreadPoolExecutor(2)
        meet = threading.Barrier(2)
        for task in [self.threads.submit(meet.wait) for _ in range(2)]:
            task.result()

    def run(self, trips: int, runs: int) -> Figures:
        """The median of short runs, each of which the two threads begin together."""
        words = memoryview(bytearray(64 * (runs + 2)))  # a line of its own for each run, wherever the first begins

        def side(cpu: int, first: bool) -> list[int]:
            with pinned(cpu):
                return [
                    bench_ringloop.line_pass(words[64 * (run + 1) : 64 * (run + 2)], trips, first)
                    for run in range(runs)
                ]

        sides = [self.threads.submit(side, cpu, not index) for index, cpu in enumerate(self.place)]
        return {"ns": statistics.median(sides[0].result()) / trips}


@contextlib.contextmanager
def commands(path: Path, sizes: Sizes, place: tuple[int, int]) -> Iterator[Contest]:
    """No-data commands, beside a cache line's way there and back and a call that releases the GIL."""
    contest = Contest(
        "commands", f"TEST UNIT READY, guest on CPU {place[0]}, host on CPU {place[1]}", notes={"placement": place}
    )
    with contextlib.ExitStack() as stack:
        running = Running(stack, [raw(path)], place)
        line, idle = LinePass(place), bench_bareloop.Idle()
        stack.callback(line.threads.shutdown)
        step = ready(running.guest.disks[0])
        contest.contestants = {
            "ready": running.apart(lambda seed: bursts(step, sizes.python)),
            "ping-pong": lambda seed: line.run(200, 200),
            "gil call": running.apart(lambda seed: bursts(idle.call, sizes.python)),
            "call": running.apart(lambda seed: bursts(idle.held, sizes.python)),
        }
        yield contest


@contextlib.contextmanager
def reads(path: Path, sizes: Sizes, depth: int) -> Iterator[Contest]:
    """4 KiB random reads of an image in the page cache."""
    place = placements()[0]
    contest = Contest(
        f"reads, depth {depth}",
        f"4 KiB random reads at depth {depth} of {FILE_BYTES >> 20} MiB in the page cache",
        notes={"placement": place, "file system": file_system(path)},
    )
    with contextlib.ExitStack() as stack:
        running = Running(stack, [raw(path)], place)
        disk, buffer = running.guest.disks[0], running.guest.alloc(BLOCK)
        made = stack.enter_context(Floor(path, BLOCK, depth, place))
        one = {
            "readinto": lambda offset: disk.readinto(offset, buffer),
            "read": lambda offset: disk.read(offset, BLOCK),
        }
        calls = {
            name: running.apart(lambda seed, call=call: bursts_over(call, random_offsets(seed, sizes.python).tolist()))
            for name, call in one.items()
        }
        found = contest.contestants
        if depth > 1:
            found["read_batch"] = running.batches(disk, depth, sizes.native)
        found["readinto"] = calls["readinto"]
        if depth == 1:
            found["read"] = calls["read"]
        found["load"] = running.loop(disk, depth, sizes.native)
        found["floor"] = floor(made, sizes.native)
        found["preadv"] = lambda seed: local(path, random_offsets(seed, sizes.native), place, depth)
        outside(stack, contest, path, sizes, depth, place)
        if depth > 1:
            contest.notes["readinto"] = "one Python call per request, one request at a time"
        yield contest
        if depth > 1:
            contest.notes["doorbells"] = doorbells(running, disk, sizes.native, depth)


def local(path: Path, offsets: Any, place: tuple[int, int], depth: int) -> Figures:
    with pinned(place[1]):
        seconds, histogram = local_preadv(path, offsets, BLOCK, depth)
    return {"ns": 1e9 * seconds / len(offsets), "p50": histogram.summary()["p50"]}


def outside(
    stack: contextlib.ExitStack, contest: Contest, path: Path, sizes: Sizes, depth: int, place: tuple[int, int],
    *, block: int = BLOCK, sequential: bool = False, engines: bool = True,
) -> None:  # fmt: skip
    """The peers: servers on the host's CPU, clients on the guest's."""
    found = peers.Found(stack, contest.notes)
    for kind in ("nbdkit", "qemu-nbd"):
        name = f"{kind} libnbd"
        where = found.enter(name, lambda _, kind=kind: peers.nbd_server(kind, path, place[1]))
        if where is None:
            continue
        asked = found.enter(
            name, lambda _, kind=kind, where=where: peers.nbd_client(where, place[0], fill=kind == "nbdkit")
        )
        if asked is not None:
            contest.contestants[name] = lambda seed, asked=asked: asked.reads(
                seed, count=sizes.peer, depth=depth, block=block, sequential=sequential
            )
        if engines:
            try:
                peers.has_engine("nbd")
            except peers.Missing as why:
                contest.notes[f"{kind} fio"] = str(why)
            else:
                contest.contestants[f"{kind} fio"] = lambda seed, where=where: peers.fio(
                    place[0], "--ioengine=nbd", f"--uri=nbd+unix:///?socket={where}", f"--size={FILE_BYTES}",
                    count=sizes.fio // 10, depth=depth, seed=seed, block=block,
                )  # fmt: skip
    if engines:
        try:
            peers.has_engine("io_uring")
        except peers.Missing as why:
            contest.notes["fio io_uring"] = str(why)
        else:
            contest.contestants["fio io_uring"] = lambda seed: peers.fio(
                place[0], "--ioengine=io_uring", f"--filename={path}", f"--size={FILE_BYTES}", "--direct=0",
                "--invalidate=0", "--readonly", count=sizes.fio, depth=depth, seed=seed, block=block,
            )  # fmt: skip


def doorbells(running: Running, disk: Disk, requests: int, depth: int) -> dict[str, float]:
    """Doorbells per request, both ways, of batches at that depth."""
    before, there = disk.channel.counters(), running.vm.counters()
    running.batches(disk, depth, requests)(99)
    after, back = disk.channel.counters(), running.vm.counters()
    done = after["requests"] - before["requests"]
    host = sum_of(back, "doorbells") - sum_of(there, "doorbells")
    return {
        "requests": done,
        "to host": (after["doorbells"] - before["doorbells"]) / done,
        "to guest": host / done,
        "both": (after["doorbells"] - before["doorbells"] + host) / done,
    }


def sum_of(counters: Any, name: str) -> int:
    """All numbers of that name, wherever in the VM's counters they are."""
    if isinstance(counters, dict):
        return sum(
            value if key == name and isinstance(value, int) else sum_of(value, name) for key, value in counters.items()
        )
    return sum(sum_of(one, name) for one in counters) if isinstance(counters, list) else 0


@contextlib.contextmanager
def writes(path: Path, sizes: Sizes, depth: int) -> Iterator[Contest]:
    """4 KiB random writes into the page cache."""
    place = placements()[0]
    contest = Contest(
        f"writes, depth {depth}",
        f"4 KiB random writes at depth {depth} into the page cache",
        notes={"placement": place, "file system": file_system(path)},
    )
    with contextlib.ExitStack() as stack:
        running = Running(stack, [raw(path, read_only=False)], place)
        disk, buffer = running.guest.disks[0], running.guest.alloc(BLOCK)
        buffer_bytes = memoryview(buffer)
        buffer_bytes[:] = bytes(range(256)) * (BLOCK // 256)
        made = stack.enter_context(Floor(path, BLOCK, depth, place, write=True))
        if depth > 1:
            contest.contestants["write_batch"] = running.batches(disk, depth, sizes.native // 2, write=True)
        else:
            contest.contestants["write"] = running.apart(
                lambda seed: bursts_over(
                    lambda offset: disk.write(offset, buffer), random_offsets(seed, sizes.python).tolist()
                )
            )
        contest.contestants["load"] = running.loop(disk, depth, sizes.native // 2, rw="randwrite")
        contest.contestants["floor"] = floor(made, sizes.native // 2)
        yield contest


@contextlib.contextmanager
def formats(path: Path, sizes: Sizes) -> Iterator[Contest]:
    """A dynamic VHDX whose blocks are all allocated, beside a raw image of the same size."""
    place = placements()[0]
    copy = path.with_suffix(".vhdx")
    vhd.convert(str(path), str(copy), source_format="raw", format="vhdx", type="dynamic")
    contest = Contest(
        "formats", "4 KiB random reads: allocated dynamic VHDX beside raw",
        notes={"placement": place, "file system": file_system(copy)},
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(copy.unlink)
        disks = [raw(path), DiskConfig(str(copy), format="vhdx", read_only=True)]
        running = Running(stack, disks, place)
        for name, disk in zip(("raw", "vhdx"), running.guest.disks, strict=True):
            contest.contestants[f"{name}, depth 32"] = running.batches(disk, 32, sizes.native)
            contest.contestants[f"{name}, depth 1"] = running.loop(disk, 1, sizes.native)
        yield contest


@contextlib.contextmanager
def sequential(path: Path, sizes: Sizes) -> Iterator[Contest]:
    """128 KiB sequential reads into guest memory, and a loop of preadv into the same pages."""
    place = placements()[0]
    contest = Contest(
        "sequential", f"128 KiB sequential reads, depth {LARGE_DEPTH}",
        notes={"placement": place, "file system": file_system(path)},
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        running = Running(stack, [raw(path)], place)
        disk = running.guest.disks[0]
        count = FILE_BYTES // LARGE
        slots = 64
        memory = running.guest.alloc(slots * LARGE)
        everything = (np.arange(count, dtype=np.uint64) * np.uint64(LARGE)).reshape(-1, slots)

        def batch(part: Any) -> float:
            begin = time.perf_counter()
            disk.read_batch(part, memory, queue_depth=LARGE_DEPTH)
            return time.perf_counter() - begin

        def alone(part: Any) -> float:
            return local_preadv(path, part, LARGE, slots, memory)[0]

        def preadv(_seed: int) -> Figures:
            with pinned(place[1]):
                return windows(alone, everything)

        made = stack.enter_context(Floor(path, LARGE, LARGE_DEPTH, place))
        contest.contestants = {
            "read_batch": running.apart(lambda seed: windows(batch, everything)),
            "preadv": preadv,
            "floor": lambda seed: windows(lambda part: made.run(part)[0], everything),
        }
        outside(stack, contest, path, sizes, LARGE_DEPTH, place, block=LARGE, sequential=True, engines=False)
        yield contest


COUNTS = (
    "hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied", "doorbells", "blocking_waits",
)  # fmt: skip


@contextlib.contextmanager
def paths(path: Path, sizes: Sizes) -> Iterator[Contest]:
    """Every path that the host knows, at depth 1, with what it counted per request. IDE paths in each mode."""
    place = placements()[0]
    contest = Contest("paths", "4 KiB random reads at depth 1 on every path", notes={"placement": place})
    with contextlib.ExitStack() as stack:
        for kind in PATHS:
            for mode in IDE_MODES if kind in ("emulated", "trapped") else IDE_MODES[:1]:
                name = kind if mode == IDE_MODES[0] else f"{kind} {mode}"
                try:
                    running = Running(stack, [DiskConfig(str(path), kind, "raw", read_only=True, ide_mode=mode)], place)
                    disk = running.guest.disks[0]
                    buffer = running.guest.alloc(BLOCK)
                    disk.readinto(0, buffer)
                except Exception as error:  # a path of which this host cannot serve a guest of this kind
                    contest.notes[name] = f"left out: {error}"
                    continue
                count = sizes.python if kind in ("synthetic", "accelerated") else sizes.emulated
                contest.contestants[name] = running.apart(
                    lambda seed, disk=disk, buffer=buffer, count=count: bursts_over(
                        lambda offset: disk.readinto(offset, buffer), random_offsets(seed, count).tolist()
                    )
                )
                contest.notes[f"{name} counts"] = counted(running, disk, buffer, sizes.emulated)
        yield contest


def counted(running: Running, disk: Disk, buffer: Any, requests: int) -> dict[str, float]:
    """What one read cost on its path, as the host counted it."""
    before = running.vm.counters()
    for offset in random_offsets(7, requests).tolist():
        disk.readinto(offset, buffer)
    after = running.vm.counters()
    return {name: round((sum_of(after, name) - sum_of(before, name)) / requests, 3) for name in COUNTS}


def fsync(path: Path) -> None:
    """Dirty pages of one contest are not written back during the next."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
