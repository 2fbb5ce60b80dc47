"""Images with content that tells where it came from, and tools that judge them."""

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hvcore.vhd import Image, create, create_child
from hvcore.vhd import open as open_vhd

MIB = 1 << 20
KINDS = [("vhdx", 512), ("vhdx", 4096), ("vhd", 512)]
BLOCK = {"vhdx": MIB, "vhd": 512 << 10}


class Stopped(Exception):
    """What a test's progress raises."""


class Stop:
    """Progress that raises at call number `at`; None: never."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.calls = 0

    def __call__(self, text: str, fraction: float) -> None:
        assert text and 0 <= fraction <= 1
        self.calls += 1
        if self.calls == self.at:
            raise Stopped


def pattern(offset: int, length: int, tag: int) -> bytes:
    """Differs in every 512 bytes and in every tag."""
    return b"".join(struct.pack("<QQ", at, tag) * 32 for at in range(offset, offset + length, 512))


def content(path: Path, format: str | None = None) -> bytes:
    with open_vhd(path, format=format) as image:
        return image.read(0, image.size)


def new(path: Path, size: int, sector_size: int = 512, type: str = "dynamic") -> Path:
    """An image of zeros; its name says the format."""
    format = path.suffix[1:]
    block_size = None if (format, type) == ("vhd", "fixed") else BLOCK[format]
    create(path, size, format, type, block_size=block_size, sector_size=sector_size, preallocate=False)
    return path


def write(image: Image, offset: int, length: int, tag: int) -> None:
    image.write(offset, pattern(offset, length, tag))


def scribble(path: Path, seed: int, count: int = 6) -> None:
    """Writes and trims here and there."""
    choose = random.Random(seed)
    with open_vhd(path, "r+") as image:
        for _ in range(count):
            offset = choose.randrange(0, image.size, image.sector_size)
            length = min(choose.choice([image.sector_size, 12288, MIB, 2 * MIB + 4096]), image.size - offset)
            if choose.random() < 0.3 and image.info.type != "fixed":
                image.trim(offset, length)
            else:
                write(image, offset, length, seed)


def chain_of(folder: Path, format: str, sector_size: int, *sizes: int) -> list[Path]:
    """Images 0, 1, ..., each the child of the one before and changed here and there."""
    paths = [new(folder / f"0.{format}", sizes[0], sector_size)]
    scribble(paths[0], 100, 12)
    for number in range(1, len(sizes)):
        paths.append(folder / f"{number}.{format}")
        create_child(paths[-2], paths[-1])
        scribble(paths[-1], 100 + number)
    return paths


def seven_zip(path: Path, disk: bytes) -> None:
    """7-Zip finds the file, and its parents, sound and reads the same."""
    if shutil.which("7zz") is None:
        pytest.skip("7zz (package 7zip) is not installed")
    kind = f"-t{path.suffix[1:].upper()}"
    test = subprocess.run(["7zz", "t", kind, path], capture_output=True, text=True)
    assert test.returncode == 0, test.stdout + test.stderr
    assert subprocess.run(["7zz", "e", "-so", kind, path], capture_output=True, check=True).stdout == disk


def qemu_img(path: Path, disk: bytes) -> None:
    """QEMU, which knows neither children nor sectors of 4096 bytes, reads the same and finds no fault."""
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    format = {"vhdx": "vhdx", "vhd": "vpc"}[path.suffix[1:]]
    raw = path.with_suffix(".expected")
    raw.write_bytes(disk)
    commands = [["compare", "-f", format, "-F", "raw", path, raw]]
    if format == "vhdx":
        commands.append(["check", "-f", format, path])
    for command in commands:
        done = subprocess.run(["qemu-img", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
