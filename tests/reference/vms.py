"""What the tests of whole VMs share: images with known content, stopped processes, waits with a deadline."""

import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hvcore
from hvcore.vhd import create
from tests.conftest import ended
from tests.reference import vhdx

MIB = 1 << 20
IDE_MODES = ("dma", "pio", "pio-string", "pio-multiple")
PATIENCE = 30.0  # for what must happen; nothing waits this long but a failing test


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def make_image(path: Path, format: str, data: bytes) -> Path:
    """An image of that format which holds `data`."""
    if format == "raw":
        path.write_bytes(data)
    elif format == "vhd":
        create(path, len(data), format="vhd", type="fixed")
        with path.open("r+b") as file:
            file.write(data)
    else:
        blocks = {at // MIB: data[at : at + MIB].ljust(MIB, b"\0") for at in range(0, len(data), MIB)}
        vhdx.build(path, len(data), {n: block for n, block in blocks.items() if any(block)}, reverse=True)
    return path


def raw(image: Path, data: bytes = bytes(MIB), **options: Any) -> hvcore.DiskConfig:
    """A raw disk, made with that content if it is not there."""
    if not image.exists():
        image.write_bytes(data)
    return hvcore.DiskConfig(str(image), format="raw", **options)


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for something of another process that gives no descriptor to wait on."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        select.select([], [], [], 0.002)


def state(task: Path) -> str:
    """One letter: R running, S sleeping, T stopped, Z ended."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: all(state(t) == "T" for t in Path(f"/proc/{pid}/task").iterdir()), f"process {pid} stops")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def gone(pids: Iterable[int]) -> bool:
    return all(ended(pid, PATIENCE) for pid in pids)


def events(host: hvcore.Host) -> list[str]:
    return [event["event"] for event in host.events()]
