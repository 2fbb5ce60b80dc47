"""Rings: a stream one way between two processes (Python) or two threads without the GIL (compiled), a CPU each."""

import contextlib
import functools
import importlib.util
import json
import mmap
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_bareloop
import bench_ringloop

from bench.measure import Contest, Contestant, Figures, pinned, placements
from bench.peers import started
from hvcore.errors import RingFull
from hvcore.vmbus import Ring

DATA = 256 << 10  # bytes for packets in every ring, ours and others'
BATCH = 32

Send = Callable[[int], None]  # sends so many packets


class Threads:
    """Two threads, each on a CPU of its own."""

    def __init__(self, place: tuple[int, int]) -> None:
        self.place = place
        self.pool = ThreadPoolExecutor(2)
        meet = threading.Barrier(2)
        for task in [self.pool.submit(meet.wait) for _ in range(2)]:
            task.result()

    def __call__(self, produce: Callable[[], Any], consume: Callable[[], int], count: int) -> Figures:
        def side(cpu: int, run: Callable[[], Any]) -> Any:
            with pinned(cpu):
                return run()

        other = self.pool.submit(side, self.place[0], produce)
        taken = self.pool.submit(side, self.place[1], consume).result()
        other.result()
        return {"ns": taken / count}


def compiled(threads: Threads, size: int, count: int, burst: int) -> dict[str, Contestant]:
    """hvcore's ring and the bare one, `burst` packets per publication, by loops that never hold the GIL."""
    ends = bench_ringloop.Ends(mmap.mmap(-1, 4096 + DATA))
    bare = mmap.mmap(-1, 4096 + DATA)
    return {
        "ring": lambda _: threads(
            lambda: bench_ringloop.produce(ends, count, size, burst),
            lambda: bench_ringloop.consume(ends, count, burst),
            count,
        ),
        "bare ring": lambda _: threads(
            lambda: bench_bareloop.bare_produce(bare, count, size, burst),
            lambda: bench_bareloop.bare_consume(bare, count, size, burst),
            count,
        ),
    }


class Stream:
    """This process sends, another receives (bench.far); nanoseconds per packet until the last was received."""

    def __init__(
        self, stack: contextlib.ExitStack, place: tuple[int, int], kind: str, where: str, size: int, send: Send,
        descriptors: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.place, self.send = place, send
        self.process = stack.enter_context(
            started(
                [sys.executable, "-m", "bench.far", kind, where, str(size)], place[1], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path)))},
            )
        )  # fmt: skip

    def run(self, count: int) -> Figures:
        with pinned(self.place[0]):
            print(json.dumps({"count": count}), file=self.process.stdin, flush=True)
            begin = time.perf_counter_ns()
            self.send(count)
            if not self.process.stdout.readline():
                raise RuntimeError(f"{self.process.args} ended with code {self.process.wait()}")
            return {"ns": (time.perf_counter_ns() - begin) / count}


def mapped(folder: str, name: str) -> tuple[str, mmap.mmap]:
    path = Path(folder, name)
    with open(path, "x+b") as file:
        file.truncate(4096 + DATA)
        return str(path), mmap.mmap(file.fileno(), 0)


def sender(ring: Ring, body: bytes) -> Send:
    send = ring.send

    def run(count: int) -> None:
        for _ in range(count):
            while True:
                try:
                    send(body)
                except RingFull:
                    continue
                break

    return run


def list_sender(ring: Ring, body: bytes) -> Send:
    def run(count: int) -> None:
        while count:
            count -= ring.send_batch([body] * min(BATCH, count))[0]

    return run


def buffer_sender(ring: Any, body: bytes) -> Send:
    bodies = body * BATCH

    def run(count: int) -> None:
        while count:
            part = bodies if count >= BATCH else bodies[: count * len(body)]
            count -= ring.send_from(part, len(body))[0]

    return run


def repeated(call: Callable[[bytes], Any], body: bytes) -> Send:
    def run(count: int) -> None:
        for _ in range(count):
            call(body)

    return run


def pushed(call: Callable[[bytes], bool], body: bytes) -> Send:
    def run(count: int) -> None:
        for _ in range(count):
            while not call(body):
                pass

    return run


def streams(
    stack: contextlib.ExitStack, contest: Contest, size: int, place: tuple[int, int], counts: dict[str, int]
) -> None:
    """From Python, between two processes: the ring call by call and in batches, and its peers."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hvcore-ring-", dir="/dev/shm"))
    body = bytes(range(256)) * 16
    body = body[:size]

    def add(name: str, kind: str, where: str, send: Send, descriptors: tuple[int, ...] = ()) -> None:
        stream = Stream(stack, place, kind, where, size, send, descriptors)
        count = counts.get(kind, counts["ring"])
        contest.contestants[name] = lambda _: stream.run(count)

    kinds = {"Ring, a call per packet": ("ring", sender), "Ring, lists of 32": ("ring list", list_sender)}
    if hasattr(Ring, "receive_into"):
        kinds["Ring, buffers of 32"] = ("ring buffer", buffer_sender)
    for name, (kind, make) in kinds.items():
        path, memory = mapped(folder, kind)
        ring = Ring.create(memory)
        stack.callback(ring.close)
        ring.interrupt_mask = True  # the reader polls
        add(name, kind, path, make(ring, body))

    mine, other = multiprocessing.Pipe()
    stack.callback(mine.close)
    add("multiprocessing.Pipe", "Pipe", str(other.fileno()), repeated(mine.send_bytes, body), (other.fileno(),))
    other.close()

    if importlib.util.find_spec("zmq") is None:
        contest.notes["pyzmq"] = "left out: pyzmq is not installed (pip install hvcore[bench])"
    else:
        import zmq

        context = stack.enter_context(zmq.Context())
        socket = stack.enter_context(context.socket(zmq.PUSH))
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(f"ipc://{folder}/zmq")
        add("pyzmq", "pyzmq", f"ipc://{folder}/zmq", repeated(socket.send, body))

    if importlib.util.find_spec("subetha") is None:
        contest.notes["subetha-ipc"] = "left out: subetha-ipc is not installed (pip install hvcore[bench])"
    else:
        import subetha

        made = stack.enter_context(subetha.SpscRing(f"{folder}/subetha", DATA // 64))
        if size > made.payload_size:
            contest.notes["subetha-ipc"] = f"left out: its SpscRing carries at most {made.payload_size} bytes"
        else:
            add("subetha-ipc", "subetha", f"{folder}/subetha", pushed(made.push, body))


@contextlib.contextmanager
def one_way(size: int, quick: bool) -> Iterator[Contest]:
    place = placements()[0]
    contest = Contest(
        f"ring, {size} B", f"{size}-byte packets one way, rings of {DATA >> 10} KiB",
        notes={"placement": place},
    )  # fmt: skip
    scale = 1 if quick else 5
    with contextlib.ExitStack() as stack:
        threads = Threads(place)
        stack.callback(threads.pool.shutdown)
        count = 20_000 * scale
        for burst, words in ((1, "one by one"), (BATCH, f"batches of {BATCH}")):
            for name, run in compiled(threads, size, count, burst).items():
                contest.contestants[f"{name}, {words}"] = functools.partial(run)
        counts = {"ring": 10_000 * scale, "pyzmq": 2_000 * scale, "Pipe": 1_000 * scale, "ring buffer": 20_000 * scale}
        streams(stack, contest, size, place, counts)
        yield contest
