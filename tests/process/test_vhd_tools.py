"""VHDs made here, judged and read by other people's programs; and theirs read and written here (disk-formats.md 20)."""

import os
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.image import open_image
from hvcore.disk.ops import Backend
from hvcore.disk.vhd.create import Parent, build_vhd
from tests.reference import vhd
from tests.reference.vhd import MIB
from tests.reference.vhd_disk import image_file, opened

SIZE = 9 * MIB + 1024  # an even number of sectors: 7-Zip refuses others
WRITES = [(0, 4096, 1), (2 * MIB - 512, 1024, 2), (4 * MIB, 2 * MIB, 3), (SIZE - 4096, 4096, 4)]


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (package {package})")
    return found


def run(*command: str | Path) -> bytes:
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr)
    return done.stdout


def make(path: Path, kind: str, disk_id: UUID, parent: tuple[UUID, str] | None = None) -> None:
    with image_file(path, os.O_RDWR | os.O_CREAT) as file:
        build_vhd(
            file,
            size=SIZE,
            type=kind,
            disk_id=disk_id,
            timestamp=700_000_000,
            parent=Parent(parent[0], 0, parent[1], [("W2ru", f".\\{parent[1]}")]) if parent else None,
            preallocate=False,
        )


def fill(disk: Backend, model: bytearray, shift: int, value: int) -> None:
    """Writes in units of 8 sectors: in smaller ones libvhdi reads a child's bitmap wrongly."""
    for at, length, byte in WRITES:
        at = min(at + shift, SIZE - length) // 4096 * 4096
        disk.write(at, bytes([byte + value]) * length)
        model[at : at + length] = bytes([byte + value]) * length
    at = 5 * MIB + shift
    disk.trim(at, 65536)
    model[at : at + 65536] = bytes(65536)


def chain(folder: Path, kind: str) -> dict[str, bytes]:
    """base.vhd, mid.vhd over it, leaf.vhd over that. Returns what each reads as."""
    ids = [UUID(int=0xA0B0C0D0 + n) for n in range(3)]
    make(folder / "base.vhd", kind, ids[0])
    make(folder / "mid.vhd", "differencing", ids[1], (ids[0], "base.vhd"))
    make(folder / "leaf.vhd", "differencing", ids[2], (ids[1], "mid.vhd"))
    model = bytearray(SIZE)
    content = {}
    with open_image(folder / "base.vhd", mode="r+") as disk:
        if kind == "fixed":
            for at, length, byte in WRITES:
                disk.write(at, bytes([byte]) * length)
                model[at : at + length] = bytes([byte]) * length
            disk.flush()
        else:
            fill(disk, model, 0, 0)
    content["base.vhd"] = bytes(model)
    with opened(folder / "mid.vhd", write=True, parent=open_image(folder / "base.vhd")) as disk:
        fill(disk, model, 8192, 16)
    content["mid.vhd"] = bytes(model)
    middle = opened(folder / "mid.vhd", parent=open_image(folder / "base.vhd"))
    with opened(folder / "leaf.vhd", write=True, parent=middle) as disk:
        fill(disk, model, 3 * MIB, 32)
        assert disk.read(0, SIZE) == model
    content["leaf.vhd"] = bytes(model)
    return content


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_chain_in_7zip(tmp_path: Path, kind: str) -> None:
    seven = tool("7zz", "7zip")
    for name, expected in chain(tmp_path, kind).items():
        assert b"Everything is Ok" in run(seven, "t", "-tVHD", tmp_path / name)
        assert run(seven, "e", "-so", "-tVHD", tmp_path / name) == expected


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_dynamic_and_fixed_in_qemu(tmp_path: Path, kind: str) -> None:
    """QEMU opens a differencing disk as a dynamic one, so only the others can be compared."""
    qemu = tool("qemu-img", "qemu-utils")
    content = chain(tmp_path, kind)["base.vhd"]
    (tmp_path / "raw").write_bytes(content)
    assert b"identical" in run(qemu, "compare", "-f", "vpc", "-F", "raw", tmp_path / "base.vhd", tmp_path / "raw")


def test_qemu_converts_to_dynamic(tmp_path: Path) -> None:
    qemu = tool("qemu-img", "qemu-utils")
    model = bytearray(8 * MIB)
    model[: 64 << 10], model[5 * MIB : 6 * MIB] = vhd.pattern(1, 64 << 10), vhd.pattern(5, MIB)
    (tmp_path / "raw").write_bytes(model)
    options = ("-O", "vpc", "-o", "subformat=dynamic,force_size=on")
    run(qemu, "convert", "-f", "raw", *options, tmp_path / "raw", tmp_path / "q.vhd")
    with open_image(tmp_path / "q.vhd", mode="r+") as disk:
        assert disk.read(0, disk.size) == model
        disk.write(3 * MIB, b"h" * 512)
    model[3 * MIB : 3 * MIB + 512] = b"h" * 512
    run(qemu, "convert", "-f", "vpc", "-O", "raw", tmp_path / "q.vhd", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == model
    with open_image(tmp_path / "q.vhd") as disk:
        assert disk.read(0, disk.size) == model


@pytest.mark.parametrize("first", [(1, 4), (0,), ()])
def test_qemu_adds_blocks_to_ours_and_we_to_its(tmp_path: Path, first: tuple[int, ...]) -> None:
    """Its next block begins at the packed end of the last one, and must find zeros behind its bitmap: our footer, had
    it stood further on, would be read as the guest's data."""
    qemu, qemu_io = tool("qemu-img", "qemu-utils"), tool("qemu-io", "qemu-utils")
    path, size = tmp_path / "d.vhd", 24 * MIB
    model = bytearray(size)

    def read_by_both() -> None:
        with open_image(path) as disk:
            assert disk.read(0, size) == model
        run(qemu, "convert", "-f", "vpc", "-O", "raw", path, tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == model

    with image_file(path, os.O_RDWR | os.O_CREAT) as file:
        build_vhd(file, size=size, type="dynamic")
    for ours, theirs in ((first, (7, 2)), ((8, 3), (9, 10)), ((6, 1), (11,))):
        if ours:
            with open_image(path, mode="r+") as disk:
                for block in ours:
                    at = block * 2 * MIB + 12288
                    disk.write(at, bytes([block + 1]) * 1024)
                    model[at : at + 1024] = bytes([block + 1]) * 1024
            read_by_both()
        for block in theirs:
            at = block * 2 * MIB + MIB
            run(qemu_io, "-f", "vpc", "-c", f"write -P {block + 1} {at} 8192", path)
            model[at : at + 8192] = bytes([block + 1]) * 8192
        read_by_both()


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_chain_in_libvhdi(tmp_path: Path, kind: str) -> None:
    info = tool("vhdiinfo", "libvhdi-utils")
    chain(tmp_path, kind)
    types = {"base.vhd": kind.capitalize(), "mid.vhd": "Differential", "leaf.vhd": "Differential"}
    for number, (name, expected) in enumerate(types.items()):
        text = run(info, tmp_path / name).decode()
        assert f": {expected}" in text and f"({SIZE} bytes)" in text
        assert f": {UUID(int=0xA0B0C0D0 + number)}" in text
        assert name == "base.vhd" or f": {UUID(int=0xA0B0C0D0 + number - 1)}" in text


@pytest.mark.parametrize("gap", [0, 3584])
def test_the_builder_is_sound_to_7zip(tmp_path: Path, gap: int) -> None:
    """The tests' own builder is judged by other people's code, too."""
    seven = tool("7zz", "7zip")
    base = {n: vhd.pattern(n, 2 * MIB) for n in (3, 0)}
    vhd.build(tmp_path / "base.vhd", 8 * MIB, dict(base), gap=gap)
    blocks = {0: (vhd.pattern(10, 2 * MIB), {1, 9, 4095}), 2: vhd.pattern(12, 2 * MIB)}
    vhd.build(tmp_path / "c.vhd", 8 * MIB, dict(blocks), gap=gap, parent=(vhd.ID, "base.vhd"), disk_id=vhd.CHILD_ID)
    below = vhd.read(tmp_path / "base.vhd")
    for name, expected in (("base.vhd", below), ("c.vhd", vhd.read(tmp_path / "c.vhd", below))):
        assert b"Everything is Ok" in run(seven, "t", "-tVHD", tmp_path / name)
        assert run(seven, "e", "-so", "-tVHD", tmp_path / name) == expected
