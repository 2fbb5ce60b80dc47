"""Every kind of image that hvcore makes, judged and read by other people's programs, and theirs read here (20).

The programs' limits (disk-formats.md 17, 20.3) that the tests step around: 7-Zip refuses disks with an odd number of
sectors of 512 bytes, so no size is odd; QEMU reads neither sectors of 4096 bytes nor chains (of a VHD child it shows
wrong data without a word) and judges no VHD; of chains libvhdi is asked for what they are, not for their content, as it
reads a child's ZERO blocks as the parent's and misreads a VHD child's bitmap.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from hvcore.errors import ImageError
from hvcore.vhd import chain, convert, create, info
from hvcore.vhd import open as open_vhd
from hvcore.vhd.check import check
from hvcore.vhd.child import create_child
from tests.reference.vhdx import pattern

KIB, MIB = 1 << 10, 1 << 20
SIZE = 11 * MIB + 64 * KIB  # the last block is cut by the disk's end
TIMEOUT = 60


@dataclass(frozen=True)
class Kind:
    format: str
    type: str
    block: int | None = None
    sector: int = 512

    def __str__(self) -> str:
        block = "" if self.block is None else f" {self.block // KIB}k"
        return f"{self.format} {self.type}{block} {self.sector}"

    @property
    def child(self) -> bool:
        return self.type == "differencing"

    @property
    def qemu(self) -> str:
        return {"vhdx": "vhdx", "vhd": "vpc"}[self.format]

    def reason_against_qemu(self) -> str | None:
        if self.sector == 4096:
            return "QEMU refuses VHDX with sectors of 4096 bytes"
        return "QEMU knows no differencing disks" if self.child else None


KINDS = [
    *(Kind("vhdx", "dynamic", block, sector) for block in (MIB, 2 * MIB, 32 * MIB) for sector in (512, 4096)),
    *(Kind("vhdx", "fixed", MIB, sector) for sector in (512, 4096)),
    *(Kind("vhdx", "differencing", block, sector) for block in (MIB, 8 * MIB) for sector in (512, 4096)),
    Kind("vhd", "fixed"),
    *(Kind("vhd", "dynamic", block) for block in (4 * KIB, 512 * KIB, 2 * MIB)),
    *(Kind("vhd", "differencing", block) for block in (512 * KIB, 2 * MIB)),
]
HOW = ["written", "sessions", "converted"]


def need(name: str, package: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"needs {name} (package {package})")


def run(*command: str | Path, stdin: bytes = b"", codes: tuple[int, ...] = (0,)) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT)
    assert done.returncode in codes, (command, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def session(path: Path, model: bytearray, random: Random, writes: int = 40) -> None:
    """Random writes of sectors that tell where they belong, trims and flushes; the model follows."""
    with open_vhd(path, "r+") as image:
        step = image.sector_size
        for number in range(writes):
            length = random.choice((1, 2, 8, 33, 128)) * step
            at = random.randrange(0, (SIZE - length) // step) * step
            data = pattern(random.randrange(1 << 31), -(-length // 512) * 512)[:length]
            image.write(at, data)
            model[at : at + length] = data
            if number % 8 == 7:
                image.flush()
            if number % 10 == 9 and image.info.type != "fixed":
                at, length = random.randrange(8) * MIB, random.choice((step, MIB, 3 * MIB))
                image.trim(at, length)
                model[at : at + length] = bytes(length)


def make(folder: Path, kind: Kind, how: str) -> tuple[Path, bytes]:
    """An image of this kind, and what it reads as."""
    random = Random(f"{kind} {how}")
    model = bytearray(SIZE)
    path = folder / f"d.{kind.format}"
    if kind.child:
        base = folder / f"base.{kind.format}"
        create(base, SIZE, kind.format, sector_size=kind.sector)
        session(base, model, random)
        create_child(base, path, block_size=kind.block)
    elif how == "converted":
        source = folder / "source.vhdx"
        create(source, SIZE, sector_size=kind.sector, block_size=MIB)
        session(source, model, random)
        convert(source, path, kind.format, kind.type, block_size=kind.block, preallocate=False)
    else:
        create(path, SIZE, kind.format, kind.type, kind.block, kind.sector, preallocate=False)
    for _ in range({"written": 1, "sessions": 3, "converted": 0}[how]):
        session(path, model, random)
    return path, bytes(model)


def made_kinds() -> list[object]:
    """ "sessions" begin with what "written" does: the latter only says which of them is to blame."""
    return [
        pytest.param(kind, how, id=f"{kind} {how}", marks=[pytest.mark.slow] if how == "written" else [])
        for kind in KINDS
        for how in HOW
        if not (kind.child and how == "converted")
    ]


@pytest.mark.parametrize(("kind", "how"), made_kinds())
def test_made_here(tmp_path: Path, kind: Kind, how: str) -> None:
    """One image, all judges: what is not installed is left out, and none at all skips."""
    if not any(map(shutil.which, ("7zz", "qemu-img", "vhdiinfo"))):
        pytest.skip("needs 7zz (package 7zip), qemu-img (qemu-utils) or vhdiinfo (libvhdi-utils)")
    path, content = make(tmp_path, kind, how)
    with open_vhd(path) as image:
        assert image.read(0, SIZE) == content
    assert check(path).clean
    expected = tmp_path / "expected.raw"
    expected.write_bytes(content)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    if shutil.which("7zz"):
        option = f"-t{kind.format.upper()}"
        assert b"Everything is Ok" in run("7zz", "t", option, path)
        assert run("7zz", "e", "-so", option, path) == content
    if shutil.which("qemu-img") and kind.reason_against_qemu() is None:
        if kind.format == "vhdx":
            assert b"No errors were found" in run("qemu-img", "check", "-f", "vhdx", path)
        assert b"identical" in run("qemu-img", "compare", "-f", kind.qemu, "-F", "raw", path, expected)
    if shutil.which("vhdiinfo"):
        said = run("vhdiinfo", path).decode()
        assert f"({SIZE} bytes)" in said
        assert ("Differential" if kind.child else kind.type.capitalize()) in said
        assert str(info(path).disk_id) in said or kind.format == "vhdx"
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


# Theirs -------------------------------------------------------------------------------------------------------------

VHDX_OPTIONS = [
    (f"subformat={subformat},block_size={block},block_state_zero={zero},log_size={log}", (zero == "on") == even)
    for subformat in ("dynamic", "fixed")
    for block, log, even in (("1M", "1M", subformat == "dynamic"), ("16M", "4M", subformat == "fixed"))
    for zero in ("on", "off")
]
VHD_OPTIONS = [
    (f"subformat={type},force_size={force}", True) for type in ("dynamic", "fixed") for force in ("on", "off")
]
# By default every pair of values in one image at least; -m slow has the rest of all combinations.
THEIRS = [
    pytest.param(format, options, marks=[] if default else [pytest.mark.slow])
    for format, choices in (("vhdx", VHDX_OPTIONS), ("vpc", VHD_OPTIONS))
    for options, default in choices
]
NAMES = {"vhdx": "vhdx", "vpc": "vhd"}


def need_qemu() -> None:
    need("qemu-img", "qemu-utils")
    need("qemu-io", "qemu-utils")


def commands(random: Random, count: int) -> list[str]:
    found = []
    for _ in range(count):
        length = random.choice((512, 4096, 65536, 3 * 65536))
        at = random.randrange(0, (10 * MIB - length) // 512) * 512
        found.append(f"write -q -P {random.randrange(1, 255)} {at} {length}")
    return found


def io(path: Path, format: str, lines: list[str], codes: tuple[int, ...] = (0,)) -> None:
    run("qemu-io", "-f", format, path, stdin="\n".join([*lines, ""]).encode(), codes=codes)


def content_by_qemu(path: Path, format: str) -> bytes:
    raw = path.with_name("by_qemu.raw")
    run("qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
    return raw.read_bytes()


@pytest.mark.parametrize(("format", "options"), THEIRS, ids=lambda value: str(value))
def test_made_by_qemu(tmp_path: Path, format: str, options: str) -> None:
    """It reads here as there; what is written here is read there; and what was made of it here too."""
    need_qemu()
    path = tmp_path / "q.image"
    run("qemu-img", "create", "-q", "-f", format, "-o", options, path, "10M")
    io(path, format, commands(Random(options), 25))
    content = bytearray(content_by_qemu(path, format))
    assert check(path).clean
    with open_vhd(path, "r+") as image:
        assert (image.format, image.size, image.parent) == (NAMES[format], len(content), None)
        assert image.read(0, image.size) == content
        for at in (0, 5 * MIB + 512, image.size - 512):
            image.write(at, pattern(at, 512))
            content[at : at + 512] = pattern(at, 512)
    assert content_by_qemu(path, format) == content
    convert(path, tmp_path / "c.vhdx")
    assert content_by_qemu(tmp_path / "c.vhdx", "vhdx") == content


@pytest.mark.parametrize(
    "options", ["block_size=1M", "block_size=2M,block_state_zero=off", "subformat=fixed,block_size=1M"]
)
@pytest.mark.parametrize("writes", [1, 6, 25])
def test_left_by_a_killed_qemu(tmp_path: Path, options: str, writes: int) -> None:
    """Its log is replayed here as there, for reading without a change to the file; then it is an image like others."""
    need_qemu()
    path = tmp_path / "q.vhdx"
    run("qemu-img", "create", "-q", "-f", "vhdx", "-o", options, path, "10M")
    io(path, "vhdx", [*commands(Random(options), writes), "abort"], codes=(-6, 134))
    dirty = path.read_bytes()
    theirs = tmp_path / "theirs.vhdx"
    theirs.write_bytes(dirty)
    run("qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", theirs)
    content = content_by_qemu(theirs, "vhdx")
    assert any(content)
    with open_vhd(path) as image:
        assert image.read(0, image.size) == content
    assert path.read_bytes() == dirty
    with open_vhd(path, "r+") as image:
        assert image.read(0, image.size) == content
        image.write(0, b"h" * 512)
    assert check(path).clean
    assert content_by_qemu(path, "vhdx") == b"h" * 512 + content[512:]


def test_child_of_an_image_by_qemu(tmp_path: Path) -> None:
    need_qemu()
    base = tmp_path / "q.vhdx"
    run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", base, "10M")
    io(base, "vhdx", commands(Random(3), 20))
    content = bytearray(content_by_qemu(base, "vhdx"))
    create_child(base, tmp_path / "c.vhdx")
    with open_vhd(tmp_path / "c.vhdx", "r+") as image:
        image.write(3 * MIB, b"c" * 512)
    content[3 * MIB : 3 * MIB + 512] = b"c" * 512
    convert(tmp_path / "c.vhdx", tmp_path / "flat.vhdx")
    assert content_by_qemu(tmp_path / "flat.vhdx", "vhdx") == content
    assert [Path(link.path).name for link in chain(tmp_path / "c.vhdx")] == ["c.vhdx", "q.vhdx"]
    io(base, "vhdx", ["write -q -P 9 0 512"])
    with pytest.raises(ImageError):  # a parent that was written is another disk
        open_vhd(tmp_path / "c.vhdx")
