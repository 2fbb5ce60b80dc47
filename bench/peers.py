"""The peers that are programs of their own: qemu-nbd and nbdkit behind libnbd or fio, and fio itself."""

import contextlib
import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import Figures, pinned

SYSTEM_PYTHON = "/usr/bin/python3"
HERE = Path(__file__).parent
PATIENCE = 30.0


class Missing(Exception):
    """A peer that is not installed; says what would bring it."""


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(f"left out: {name} is not installed (Debian: {package})")
    return found


@functools.cache
def libnbd() -> str:
    """The interpreter that has libnbd's binding."""
    for python in (sys.executable, SYSTEM_PYTHON):
        if shutil.which(python) and not subprocess.run([python, "-c", "import nbd"], capture_output=True).returncode:
            return python
    raise Missing("left out: libnbd's Python binding is not installed (Debian: python3-libnbd)")


@contextlib.contextmanager
def started(command: list[str], cpu: int, **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """A process on one CPU, ended with the block."""
    with pinned(cpu):
        process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def nbd_server(kind: str, image: Path, cpu: int) -> Iterator[str]:
    """A server of the image ("qemu-nbd"), or of memory of its size ("nbdkit"): the path of its Unix socket."""
    with tempfile.TemporaryDirectory(prefix="hvcore-nbd-") as folder:
        place = str(Path(folder, "socket"))
        if kind == "qemu-nbd":
            command = [program("qemu-nbd", "qemu-utils"), "--format=raw", "--read-only", "--persistent", "--shared=4"]
            command += [f"--socket={place}", str(image)]
        else:
            command = [program("nbdkit", "nbdkit"), "--foreground", "--exit-with-parent", "--unix", place]
            command += ["memory", f"size={image.stat().st_size}"]
        with started(command, cpu, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + PATIENCE
            while not Path(place).exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{kind} does not serve: {command}")
                time.sleep(0.01)
            yield place


class Client:
    """A program that answers one line of JSON with another."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, **job: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} ended with code {self.process.wait()}")
        return json.loads(answer)

    def reads(self, seed: int, *, count: int, depth: int, block: int = 4096, sequential: bool = False) -> Figures:
        answer = self.ask(count=count, depth=depth, block=block, seed=seed, sequential=sequential)
        return {"ns": 1e9 * answer["seconds"] / count, "p50": statistics.median(answer["latencies_ns"])}


@contextlib.contextmanager
def client(command: list[str], cpu: int) -> Iterator[Client]:
    with started(command, cpu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Client(process)


@contextlib.contextmanager
def nbd_client(place: str, cpu: int, *, fill: bool = False) -> Iterator[Client]:
    with client([libnbd(), str(HERE / "nbd_peer.py"), place], cpu) as made:
        if fill:
            made.ask(fill=True)
        yield made


def fio(cpu: int, *options: str, count: int, depth: int, seed: int, block: int = 4096, rw: str = "randread") -> Figures:
    """One run of fio: nanoseconds per request, and the median of its completion latency."""
    command = [program("fio", "fio"), "--name=bench", "--output-format=json", f"--rw={rw}", f"--bs={block}"]
    command += [f"--iodepth={depth}", f"--number_ios={count}", f"--randseed={seed + 1}", "--norandommap", "--thread"]
    with pinned(cpu):
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return {"ns": 1e9 / job["iops"], "p50": job["clat_ns"]["percentile"]["50.000000"]}


def has_engine(name: str) -> None:
    listed = subprocess.run([program("fio", "fio"), "--enghelp"], capture_output=True, text=True).stdout
    if name not in listed.split():
        raise Missing(f"left out: this fio has no engine {name}")


class Found:
    """Contestants of peers that are there; notes of those that are not."""

    def __init__(self, stack: contextlib.ExitStack, notes: dict[str, Any]) -> None:
        self.stack = stack
        self.notes = notes

    def enter(self, name: str, *contexts: Any) -> Any:
        """The value of the last of the contexts, each made from the one before; None when something is missing."""
        value: Any = None
        try:
            for make in contexts:
                value = self.stack.enter_context(make(value))
        except Missing as why:
            self.notes[name] = str(why)
            return None
        return value
