"""Images by QEMU read here, and images made here judged by QEMU."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hvcore.disk.image import open_image
from hvcore.vhd import create, info
from hvcore.vhd import open as open_vhd
from tests.reference import vhdx

MIB = 1 << 20


@pytest.fixture(autouse=True)
def need_qemu() -> None:
    if not (shutil.which("qemu-img") and shutil.which("qemu-io")):
        pytest.skip("needs qemu-img and qemu-io (package qemu-utils)")


def qemu(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def fill(path: Path, format: str, *writes: tuple[int, int, int]) -> None:
    """writes: (offset, length, byte)."""
    commands = [part for at, length, byte in writes for part in ("-c", f"write -P {byte} {at} {length}")]
    qemu("qemu-io", "-f", format, *commands, path)


def expected(path: Path, format: str) -> bytes:
    raw = path.with_suffix(".raw")
    qemu("qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
    return raw.read_bytes()


WRITES = [
    (0, 4096, 1),
    (MIB - 512, 1024, 2),
    (3 * MIB, 2 * MIB, 3),
    (9 * MIB + 512, 65536, 4),
    (20 * MIB - 512, 512, 5),
]


@pytest.mark.parametrize("block", ["1M", "8M"])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("zero", ["on", "off"])
def test_vhdx_by_qemu(tmp_path: Path, subformat: str, block: str, zero: str) -> None:
    path = tmp_path / "q.vhdx"
    options = f"subformat={subformat},block_size={block},block_state_zero={zero}"
    qemu("qemu-img", "create", "-q", "-f", "vhdx", "-o", options, path, "20M")
    fill(path, "vhdx", *WRITES)
    with open_vhd(path) as image:
        assert (image.size, image.sector_size, image.block_size) == (20 * MIB, 512, int(block[:-1]) * MIB)
        assert image.read(0, image.size) == expected(path, "vhdx")


def test_vhdx_by_qemu_beyond_the_first_chunk(tmp_path: Path) -> None:
    path = tmp_path / "q.vhdx"
    qemu("qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "9G")
    places = [0, 4095 << 20, 4096 << 20, (4097 << 20) - 512, 8191 << 20, 8192 << 20, (9 << 30) - 65536]
    fill(path, "vhdx", *[(at, 65536, n + 1) for n, at in enumerate(places)])
    with open_image(path) as disk:
        for n, at in enumerate(places):
            assert disk.read(at, 65536) == bytes([n + 1]) * 65536
            assert at == 0 or disk.read(at - 512, 512) == bytes(512)


def test_fixed_vhd_by_qemu(tmp_path: Path) -> None:
    path = tmp_path / "q.vhd"
    qemu("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", path, "20M")
    fill(path, "vpc", *WRITES)
    assert info(path).size == 20 * MIB
    content = expected(path, "vpc")
    with open_image(path, mode="r+") as disk:
        assert disk.read(0, disk.size) == content
        disk.write(7 * MIB, b"h" * 4096)
        disk.flush()
    assert expected(path, "vpc")[7 * MIB : 7 * MIB + 4096] == b"h" * 4096


def test_fixed_vhd_by_qemu_rounded_to_its_geometry(tmp_path: Path) -> None:
    path = tmp_path / "q.vhd"
    qemu("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed", path, "64M")
    assert info(path).size == 67_125_248 == path.stat().st_size - 512


@pytest.mark.parametrize("force_size", ["on", "off"])
def test_dynamic_vhd_by_qemu(tmp_path: Path, force_size: str) -> None:
    """Packed blocks, the first of them right behind the table; written on by hvcore and read by QEMU again."""
    path = tmp_path / "q.vhd"
    qemu("qemu-img", "create", "-q", "-f", "vpc", "-o", f"subformat=dynamic,force_size={force_size}", path, "20M")
    fill(path, "vpc", *WRITES)
    content = bytearray(expected(path, "vpc"))
    with open_vhd(path, "r+") as image:
        assert (image.format, image.info.type, image.size, image.block_size) == (
            "vhd",
            "dynamic",
            len(content),
            2 * MIB,
        )
        assert image.read(0, image.size) == content
        for at in (512, 5 * MIB, 11 * MIB, 17 * MIB - 512):
            image.write(at, b"h" * 1024)
            content[at : at + 1024] = b"h" * 1024
        image.trim(3 * MIB, MIB)
        content[3 * MIB : 4 * MIB] = bytes(MIB)
    assert expected(path, "vpc") == content
    # Into a block that hvcore allocated. (For a block of its own QEMU takes the space right behind the last one, and
    # leaves in it the footer that hvcore keeps at a multiple of 4096 less 512.)
    fill(path, "vpc", (11 * MIB + 4096, 512, 9))
    content[11 * MIB + 4096 : 11 * MIB + 4608] = b"\x09" * 512
    with open_vhd(path) as image:
        assert image.read(0, image.size) == content


@pytest.mark.parametrize("size", [3 * MIB, 3 * MIB + 512, 64 * MIB, 504 * MIB, (10 << 30) + 1536])
def test_our_fixed_vhd_in_qemu(tmp_path: Path, size: int) -> None:
    """The size is ours to the byte: QEMU does not cut it to the geometry (disk-formats.md 15.4)."""
    path = tmp_path / "h.vhd"
    create(path, size, "vhd", "fixed", preallocate=False)
    with open_image(path, mode="r+") as disk:
        disk.write(size - 512, b"e" * 512)
        disk.write(0, b"s" * 512)
        disk.flush()
    found: dict[str, Any] = json.loads(qemu("qemu-img", "info", "--output=json", "-f", "vpc", path))
    assert (found["virtual-size"], found["format"]) == (size, "vpc")
    check = f"read -P {ord('e')} {size - 512} 512"
    qemu("qemu-io", "-r", "-f", "vpc", "-c", f"read -P {ord('s')} 0 512", "-c", check, path)
    raw = tmp_path / "same.raw"
    with raw.open("wb") as file:
        file.write(b"s" * 512)
        file.seek(size - 512)
        file.write(b"e" * 512)
    assert "identical" in qemu("qemu-img", "compare", "-f", "vpc", "-F", "raw", path, raw)


def test_built_vhdx_is_sound_to_qemu(tmp_path: Path) -> None:
    """The tests' own builder is judged by other people's code."""
    path = tmp_path / "b.vhdx"
    content = {n: vhdx.pattern(n, MIB) for n in (0, 2, 4)}
    vhdx.build(path, 5 * MIB, dict(content), reverse=True)
    assert "No errors" in qemu("qemu-img", "check", "-f", "vhdx", path)
    with open_image(path) as disk:
        assert disk.read(0, 5 * MIB) == expected(path, "vhdx")
