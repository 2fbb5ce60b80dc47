"""New VHDX files: sound for our reader and for other programs, and complete before they have a header."""

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from hvcore.disk.image import open_image
from hvcore.disk.medium import ImageFile, Probe
from hvcore.disk.vhdx.create import build_vhdx, default_block_size
from hvcore.disk.vhdx.layout import read_content, read_layout
from hvcore.disk.vhdx.locator import ParentLocator
from hvcore.disk.vhdx.structures import HEADERS, INCOMPLETE_FILE, METADATA_REGION, NO_GUID, MetadataItem, parse_header
from hvcore.errors import DiskError, ImageError
from hvcore.vhd import info
from tests.reference.journal import FLUSHED, WRITE, parse
from tests.reference.vhdx import DISK, MIB, pattern

LINKAGE = UUID("01234567-89ab-cdef-0123-456789abcdef")
OTHER = UUID("deadbeef-0000-4000-8000-000000000004")
LOCATOR = ParentLocator(LINKAGE, relative_path=".\\base.vhdx")


def make(path: Path, **options: Any) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    with ImageFile(fd) as file:
        build_vhdx(file, **options)


def judged(*command: str | Path) -> None:
    if shutil.which(command[0]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def content_of_7zip(path: Path) -> bytes | None:
    if not shutil.which("7zz"):
        return None
    return subprocess.run(["7zz", "e", "-so", "-tVHDX", path], capture_output=True, check=True).stdout


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("type", ["fixed", "dynamic"])
@pytest.mark.parametrize("block_size", [MIB, 2 * MIB, 32 * MIB])
def test_other_programs_agree(tmp_path: Path, sector_size: int, type: str, block_size: int) -> None:
    """7-Zip wants an even number of sectors; QEMU reads sectors of 512 bytes only (disk-formats.md 17, 20)."""
    if not any(map(shutil.which, ("7zz", "qemu-img", "vhdiinfo"))):
        pytest.skip("needs 7zz, qemu-img or vhdiinfo")
    path = tmp_path / "new.vhdx"
    size = 5 * MIB + 8192
    make(path, size=size, type=type, block_size=block_size, sector_size=sector_size, preallocate=False)
    expected = bytes(size)
    if type == "fixed":
        expected = pattern(0, size)
        with path.open("r+b") as file:
            file.seek(4 * MIB)  # the blocks lie one behind the other
            file.write(expected)
    judged("7zz", "t", "-tVHDX", path)
    assert content_of_7zip(path) in (None, expected)
    judged("vhdiinfo", path)
    if sector_size == 512:
        judged("qemu-img", "check", "-q", "-f", "vhdx", path)
    with open_image(path) as disk:
        assert (disk.size, disk.sector_size) == (size, sector_size)
        assert disk.read(0, size) == expected
    found = info(path)
    assert (found.type, found.block_size, found.physical_sector_size, found.notes) == (type, block_size, 4096, ())
    assert found.file_size == 4 * MIB + (-(-size // block_size) * block_size if type == "fixed" else 0)


@pytest.mark.parametrize("type", ["fixed", "dynamic"])
def test_beyond_the_first_chunk(type: str) -> None:
    """More than one chunk of blocks: bitmap entries lie between, as our reader and the layout's rules want."""
    with ImageFile(os.memfd_create("new")) as file:
        build_vhdx(file, size=9 * 1024 * MIB + 512, type=type, block_size=2 * MIB, preallocate=False)
        layout = read_layout(file, file.size())
        assert (layout.blocks, layout.chunk_ratio, layout.bat_entries) == (4609, 2048, 4611)
        assert layout.fixed == (type == "fixed")
        raw = file.read(layout.bat_offset, 8 * 4612)
        entries = [int.from_bytes(raw[n : n + 8], "little") for n in range(0, len(raw), 8)]
        assert entries[2048] == entries[4097] == entries[4611] == 0
        del entries[4611], entries[4097], entries[2048]
        payload = 4 * MIB
        assert entries == [payload + n * 2 * MIB | 6 if type == "fixed" else 0 for n in range(4609)]


def test_largest_fixed_disk() -> None:
    with ImageFile(os.memfd_create("new")) as file:
        build_vhdx(file, size=64 << 40, type="fixed", block_size=32 * MIB, preallocate=False)
        layout = read_layout(file, file.size())
        last = file.read(layout.bat_offset + 8 * (layout.bat_entries - 1), 16)
        assert int.from_bytes(last[:8], "little") == file.size() - 32 * MIB | 6 and last[8:] == bytes(8)
        assert layout.size == 64 << 40


def test_layout_says_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "new.vhdx"
    make(path, size=MIB, type="dynamic", physical_sector_size=512, disk_id=DISK, log_length=3 * MIB)
    with ImageFile(os.open(path, os.O_RDONLY)) as file:
        layout = read_layout(file, path.stat().st_size)
    assert (layout.physical_sector_size, layout.disk_id, layout.block_size) == (512, DISK, 2 * MIB)
    assert layout.used == [(MIB, 3 * MIB), (4 * MIB, MIB), (5 * MIB, MIB)]
    assert layout.header.log_guid == NO_GUID and layout.header.sequence == 2 and layout.header.copy == 1
    guids = {layout.disk_id, layout.header.file_write_guid, layout.header.data_write_guid, NO_GUID}
    assert len(guids) == 4
    assert layout.file_size == 6 * MIB and layout.locator is None and not layout.has_parent


def test_default_block_sizes() -> None:
    assert [default_block_size(size << 40) // MIB for size in (1, 2, 16, 17, 64)] == [2, 8, 8, 32, 32]


def test_child_takes_items_of_the_virtual_disk(tmp_path: Path) -> None:
    theirs = [
        MetadataItem(OTHER, 2, 0, 0, b"theirs"),
        MetadataItem(OTHER, 3, 0, 0, b"a user's"),
        MetadataItem(LINKAGE, 0, 0, 0, b"of the file only"),
        MetadataItem(INCOMPLETE_FILE, 2, 0, 0, b""),
    ]
    parent, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    # As a differencing disk here too, so that the parent has a locator, which a child must not take.
    make(parent, size=MIB, type="differencing", locator=LOCATOR, parent_items=theirs, physical_sector_size=512)
    with ImageFile(os.open(parent, os.O_RDONLY)) as file:
        layout = read_layout(file, parent.stat().st_size)
        at = next(offset for guid, offset, _, _ in layout.regions if guid == METADATA_REGION)
        items = [read_content(file, at, item) for item in layout.items]
    make(child, size=2 * MIB, type="differencing", locator=LOCATOR, parent_items=items, disk_id=layout.disk_id)
    with ImageFile(os.open(child, os.O_RDONLY)) as file:
        found = read_layout(file, child.stat().st_size)
        at = found.metadata_offset
        unknown = [read_content(file, at, item) for item in found.items if not item.known]
    assert [(item.guid, item.flags, item.content) for item in unknown] == [
        (OTHER, 2, b"theirs"),
        (OTHER, 3, b"a user's"),
    ]
    assert (found.has_parent, found.fixed, found.locator, found.bat_entries) == (True, False, LOCATOR, 2049)
    assert (found.size, found.physical_sector_size, found.disk_id) == (2 * MIB, 4096, layout.disk_id)
    with pytest.raises(ImageError, match="not the parent that its child was made for"):
        open_image(child)


def test_space_is_reserved(tmp_path: Path) -> None:
    for preallocate in (True, False):
        make(tmp_path / f"{preallocate}", size=8 * MIB, type="fixed", preallocate=preallocate)
    full, sparse = ((tmp_path / name).stat() for name in ("True", "False"))
    assert full.st_blocks * 512 >= full.st_size == sparse.st_size == 12 * MIB > sparse.st_blocks * 512


def test_headers_come_last_and_one_by_one(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as journal:
        fd = os.open(tmp_path / "new.vhdx", os.O_RDWR | os.O_CREAT)
        with ImageFile(fd, probe=Probe(journal.fileno())) as file:
            build_vhdx(file, size=4 * MIB, type="fixed")
        records = [
            record for record in parse(os.pread(journal.fileno(), 1 << 24, 0)) if record.kind in (WRITE, FLUSHED)
        ]
    kinds = [record.offset if record.kind == WRITE else "flush" for record in records]
    assert kinds[-5:] == ["flush", HEADERS[0], "flush", HEADERS[1], "flush"]
    assert "flush" not in kinds[:-5] and not set(HEADERS) & set(kinds[:-5])
    one, two = records[-4], records[-2]
    assert [parse_header(record.data, 0).sequence for record in (one, two)] == [1, 2]


@pytest.mark.parametrize("call", range(1, 13))
def test_failure_leaves_no_sound_half(tmp_path: Path, call: int) -> None:
    """A file that opens is complete, wherever the making of it broke off."""
    path = tmp_path / "new.vhdx"
    probe = Probe()
    with ImageFile(os.open(path, os.O_RDWR | os.O_CREAT), probe=probe) as file:
        probe.fail(call, errno.EIO, True)
        try:
            build_vhdx(file, size=4 * MIB, type="fixed")
        except DiskError:
            assert probe.calls >= call
        else:
            assert probe.calls < call
    try:
        with open_image(path, format="vhdx") as disk:
            assert disk.read(0, disk.size) == bytes(4 * MIB)
            assert call >= 8
    except ImageError:
        assert call <= 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": -512},
        {"size": 513},
        {"size": MIB + 512, "sector_size": 4096},
        {"size": (64 << 40) + 512},
        {"block_size": 0},
        {"block_size": MIB // 2},
        {"block_size": 3 * MIB},
        {"block_size": 512 * MIB},
        {"sector_size": 1024},
        {"physical_sector_size": 8192},
        {"log_length": 0},
        {"log_length": MIB + 4096},
        {"log_length": 2 << 30},
        {"type": "sparse"},
        {"type": "differencing"},
        {"locator": LOCATOR},
        {"parent_items": [MetadataItem(OTHER, 2, 65536, 4)]},
        {"parent_items": [MetadataItem(OTHER, 2, 0, 0, bytes(MIB + 1))]},
        {"type": "differencing", "locator": ParentLocator(LINKAGE)},
    ],
)
def test_arguments_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with ImageFile(os.memfd_create("new")) as file:
        with pytest.raises(ValueError, match=r"size|bytes|length|type|locator|content|items"):
            build_vhdx(file, **{"size": MIB, "type": "dynamic", **wrong})
        assert file.size() == 0
