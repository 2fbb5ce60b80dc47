"""Images beside QEMU and raw files: conversion, random reads, allocating writes, opening; and the memory they take.

convert: `hvcore vhd convert`, and convert() in this process, which leave a durable file, beside `qemu-img convert`,
which syncs nothing unless asked ("synced": -t writeback), each with its own block size, in memory and on the disk of
the working folder. MB/s are of the bytes that the disk holds. reads: 4 KiB, without the GIL, of each kind beside a
raw image. writes: in order, to new blocks, one flush per interval, beside qemu-io on a VHDX of its own. open: a disk of
64 TiB.
Run by pytest-benchmark, or alone: python -m bench.bench_images [--json] [--rounds N] [convert|reads|writes|open ...].
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore.vhd
from bench.contest import MIB, Contest, Run, folders, machine, process, python, table
from bench.rounds import Rounds, loaded
from bench.rounds import table as reads_table
from hvcore.disk.image import open_image
from hvcore.dispatch.load import fill_pattern, run_disk

ROUNDS = 5
DISK = 2 << 30
RUN = 32 * MIB  # of data, then as much of nothing
READ_DISK = 256 * MIB
READS = 50_000
BLOCK = 2 * MIB
SEEDS = 1

Figures = dict[str, Any]


def fill(path: Path, size: int) -> None:
    """A raw disk of `size`, every other 32 MiB of it written, no sector like another."""
    buffer = bytearray(MIB)
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, 2 * RUN):
            for at in range(start, min(start + RUN, size), MIB):
                fill_pattern(buffer, at, SEEDS)
                os.pwrite(file.fileno(), buffer, at)
        os.fsync(file.fileno())


# Conversion ---------------------------------------------------------------------------------------------------------

CONVERT = "import sys, hvcore.vhd; hvcore.vhd.convert(sys.argv[1], sys.argv[2], sys.argv[3], source_format=sys.argv[4])"
PAIRS = (("raw", "vhdx"), ("vhdx", "raw"), ("vhd", "vhdx"))
QEMU_NAMES = {"raw": "raw", "vhdx": "vhdx", "vhd": "vpc"}


def hvcore_convert(source: Path, target: Path, to: str, of: str) -> Callable[[], Run]:
    command = [sys.executable, "-m", "hvcore", "vhd", "convert", source, target, "--to", to, "--format", of]
    return lambda: process(command)


def hvcore_call(source: Path, target: Path, to: str, of: str) -> Callable[[], Run]:
    """The same without a process of its own: what a program that uses hvcore sees."""

    def run() -> Run:
        before, begin = time.process_time(), time.monotonic()
        hvcore.vhd.convert(source, target, to, source_format=of)
        return Run(time.monotonic() - begin, time.process_time() - before, 0)

    return run


def qemu_convert(source: Path, target: Path, to: str, of: str, *options: str) -> Callable[[], Run]:
    names = ["-f", QEMU_NAMES[of], "-O", QEMU_NAMES[to]]
    return lambda: process(["qemu-img", "convert", *options, *names, source, target])


@contextlib.contextmanager
def sources(folder: Path, size: int) -> Iterator[dict[str, Path]]:
    found = {format: folder / f"source.{format}" for format in ("raw", "vhdx", "vhd")}
    fill(found["raw"], size)
    for format in ("vhdx", "vhd"):
        hvcore.vhd.convert(found["raw"], found[format], format, source_format="raw")
    try:
        yield found
    finally:
        for path in found.values():
            path.unlink()


def convert_contest(place: str, folder: Path, found: dict[str, Path], pair: tuple[str, str]) -> Contest:
    of, to = pair
    target = folder / f"target.{to}"
    arguments = (found[of], target, to, of)

    def settle() -> None:
        """What the one before wrote shall not burden the next."""
        target.unlink(missing_ok=True)
        if place == "disk":
            os.sync()

    contestants = {"hvcore": hvcore_convert(*arguments), "convert()": hvcore_call(*arguments)}
    if shutil.which("qemu-img"):
        contestants["qemu-img"] = qemu_convert(*arguments)
        contestants["qemu-img synced"] = qemu_convert(*arguments, "-t", "writeback")
    bases = tuple(name for name in contestants if name.startswith("qemu"))
    return Contest(f"{of} to {to}, {place}", DISK // 2, contestants, bases, settle)


def conversions(rounds: int) -> Iterator[Figures]:
    with folders(4 * DISK) as found:
        for place, folder in found.items():
            with sources(folder, DISK) as images:
                for pair in PAIRS:
                    yield convert_contest(place, folder, images, pair).all(rounds).figures()


def memory() -> Figures:
    """Peak memory of a conversion, by the size of the image, beside that of the imports alone."""
    with folders(4 * DISK) as found:
        folder = next(iter(found.values()))
        peaks = {"imports": python("import hvcore.vhd; hvcore.vhd.convert").memory}
        for size in (DISK // 4, DISK):
            with sources(folder, size) as images:
                for of, to in PAIRS:
                    target = folder / f"target.{to}"
                    peaks[f"{of} to {to}, {size // MIB} MiB"] = python(CONVERT, images[of], target, to, of).memory
                    target.unlink()
    return {"title": "peak memory of a conversion", "bytes": peaks, **machine()}


# Random reads -------------------------------------------------------------------------------------------------------


def full(path: Path, format: str, **options: Any) -> Path:
    hvcore.vhd.create(path, READ_DISK, format, **options)
    overwrite(path, format, BLOCK, 1)
    return path


def overwrite(path: Path, format: str, piece: int, every: int) -> None:
    """Writes each `every`-th piece of the disk."""
    buffer = bytearray(piece)
    with hvcore.vhd.open(path, "r+", format) as image:
        for at in range(0, READ_DISK, piece * every):
            fill_pattern(buffer, at, SEEDS)
            image.write(at, buffer)


def child(path: Path, parent: Path, piece: int, every: int) -> Path:
    from hvcore.vhd.child import create_child

    create_child(parent, path)
    overwrite(path, path.suffix[1:], piece, every)
    return path


@contextlib.contextmanager
def reads() -> Iterator[Rounds]:
    """Images that hold the same disk; those with a parent differ in which of the two holds a sector."""
    with contextlib.ExitStack() as stack:
        folder = next(iter(stack.enter_context(folders(16 * READ_DISK)).values()))
        raw, vhdx, vhd = folder / "d.raw", folder / "d.vhdx", folder / "d.vhd"
        images = {
            "raw": full(raw, "raw"),
            "VHDX dynamic": full(vhdx, "vhdx"),
            "VHDX fixed": full(folder / "f.vhdx", "vhdx", type="fixed"),
            "VHDX 4096": full(folder / "4.vhdx", "vhdx", sector_size=4096),
            "VHD dynamic": full(vhd, "vhd"),
        }
        images |= {
            "VHDX child, full blocks": child(folder / "cf.vhdx", vhdx, BLOCK, 1),
            "VHDX child, half of each block": child(folder / "cp.vhdx", vhdx, 64 << 10, 2),
            "VHDX child, all the parent's": child(folder / "cn.vhdx", vhdx, BLOCK, READ_DISK // BLOCK),
            "VHD child, half of each block": child(folder / "cp.vhd", vhd, 64 << 10, 2),
        }
        disks = {}
        for name, path in images.items():
            disks[name] = open_image(path, format=path.suffix[1:])
            stack.callback(disks[name].close)
        contestants = {name: reader(disk) for name, disk in disks.items()}
        yield Rounds(1, contestants, bases=("raw",))


def reader(disk: Any) -> Callable[[int], Any]:
    return lambda seed: loaded(run_disk(disk, requests=READS, seed=seed))


# Allocating writes --------------------------------------------------------------------------------------------------

WRITES = """
import json, sys, time
import hvcore.vhd
path, total, piece, interval = sys.argv[1], *map(int, sys.argv[2:])
hvcore.vhd.create(path, 2 * total, block_size=2 << 20)
data = b"w" * piece
begin = time.monotonic()
with hvcore.vhd.open(path, "r+") as image:
    write, flush = image.write, image.flush
    for at in range(0, total, piece):
        write(at, data)
        if (at + piece) % interval == 0:
            flush()
print(json.dumps(time.monotonic() - begin))
"""


def hvcore_writes(path: Path, total: int, piece: int, interval: int) -> Callable[[], Run]:
    def run() -> Run:
        done = python(WRITES, path, str(total), str(piece), str(interval))
        return Run(done.answer, done.cpu, done.memory)

    return run


def qemu_writes(path: Path, total: int, piece: int, interval: int) -> Callable[[], Run]:
    lines = []
    for at in range(0, total, piece):
        lines.append(f"write -q -P 119 {at} {piece}\n")
        if (at + piece) % interval == 0:
            lines.append("flush\n")
    script = "".join(lines).encode()

    def run() -> Run:
        process(["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=2M", path, str(2 * total)])
        return process(["qemu-io", "-f", "vhdx", path], script)

    return run


def write_contests(rounds: int) -> Iterator[Figures]:
    """hvcore from opening to closing; qemu-io the whole process, which starts in about 15 ms."""
    with folders(DISK) as found:
        for place, folder in found.items():
            for piece, interval in ((64 << 10, MIB), (64 << 10, 16 * MIB), (4096, MIB), (4096, 16 * MIB)):
                total = (512 if place == "memory" else 256) * MIB if piece > 4096 else 128 * MIB
                path = folder / "written.vhdx"
                contestants = {"hvcore": hvcore_writes(path, total, piece, interval)}
                if shutil.which("qemu-io"):
                    contestants["qemu-io"] = qemu_writes(path, total, piece, interval)
                title = f"writes of {piece >> 10} KiB, flush every {interval // MIB} MiB, {place}"
                bases = tuple(name for name in contestants if name != "hvcore")
                contest = Contest(title, total, contestants, bases, settler(path, place == "disk"))
                yield contest.all(rounds).figures()


def settler(path: Path, sync: bool) -> Callable[[], None]:
    def settle() -> None:
        path.unlink(missing_ok=True)
        if sync:
            os.sync()

    return settle


# Opening ------------------------------------------------------------------------------------------------------------

OPEN = """
import json, sys
import hvcore.vhd
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
hvcore.vhd.open(sys.argv[1]).close()
before = resident()
image = hvcore.vhd.open(sys.argv[1])
opened = resident()
for n in range(1000):
    image.read(n * (image.size // 1000) // 4096 * 4096, 4096)
print(json.dumps({"open": opened - before, "touched": resident() - before}))
"""


def opening(repeats: int = 21) -> Figures:
    """Milliseconds to open and close a disk of 64 TiB with 1000 blocks, and the memory it takes, also with all read."""
    with folders(DISK) as found:
        path = next(iter(found.values())) / "large.vhdx"
        hvcore.vhd.create(path, 64 << 40, block_size=32 * MIB)
        with hvcore.vhd.open(path, "r+") as image:
            for n in range(1000):
                image.write(n * (image.size // 1000) // 4096 * 4096, bytes(4096))
        milliseconds = {}
        for mode in ("r", "r+"):
            spent = []
            for _ in range(repeats):
                begin = time.monotonic()
                hvcore.vhd.open(path, mode).close()
                spent.append(1e3 * (time.monotonic() - begin))
            milliseconds[mode] = {"median": statistics.median(spent), "min": min(spent), "max": max(spent)}
        grown = python(OPEN, path).answer
    return {"title": "opening 64 TiB", "milliseconds": milliseconds, "memory_growth": grown, **machine()}


# The command line and pytest ----------------------------------------------------------------------------------------


def text(figures: Figures) -> str:
    if "contestants" in figures:
        return table(figures)
    if "bytes" in figures:
        peaks = figures["bytes"]
        lines = [
            f"{name}: {peak / MIB:.1f} MiB ({(peak - peaks['imports']) / MIB:+.1f})" for name, peak in peaks.items()
        ]
        return "\n".join([figures["title"], *lines])
    lines = [
        f"{mode}: {ms['median']:.2f} ms ({ms['min']:.2f} to {ms['max']:.2f})"
        for mode, ms in figures["milliseconds"].items()
    ]
    lines += [f"memory after {name}: {grown / MIB:+.2f} MiB" for name, grown in figures["memory_growth"].items()]
    return "\n".join([figures["title"], *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description="Images beside QEMU and raw files.")
    parser.add_argument("--json", action="store_true", help="one object per contest instead of tables")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("parts", nargs="*", choices=["convert", "reads", "writes", "open", []], default=[])
    arguments = parser.parse_args()
    parts = arguments.parts or ["convert", "reads", "writes", "open"]

    def show(figures: Figures, as_text: Callable[[Figures], str] = text) -> None:
        print(json.dumps(figures) if arguments.json else as_text(figures) + "\n", flush=True)

    if "open" in parts:
        show(opening())
    if "reads" in parts:
        with reads() as compared:
            compared.all()
        show(compared.figures(), reads_table)
    if "writes" in parts:
        for figures in write_contests(arguments.rounds):
            show(figures)
    if "convert" in parts:
        show(memory())
        for figures in conversions(arguments.rounds):
            show(figures)


def test_reads(benchmark: Any) -> None:
    with reads() as compared:
        compared.benchmark(benchmark)
    benchmark.extra_info.update(compared.figures())
    print("\n" + reads_table(benchmark.extra_info))


@pytest.mark.parametrize("part", [conversions, write_contests], ids=["convert", "writes"])
def test_beside_qemu(benchmark: Any, part: Callable[[int], Iterator[Figures]]) -> None:
    found = benchmark.pedantic(lambda: list(part(ROUNDS)), rounds=1)
    benchmark.extra_info["contests"] = found
    print("\n" + "\n".join(map(text, found)))


@pytest.mark.parametrize("part", [memory, opening], ids=["memory", "open"])
def test_costs(benchmark: Any, part: Callable[[], Figures]) -> None:
    benchmark.extra_info.update(benchmark.pedantic(part, rounds=1))
    print("\n" + text(benchmark.extra_info))


if __name__ == "__main__":
    main()
