"""build_vhd: layouts, order of writes, and arguments that make no sense (disk-formats.md 15, V20)."""

import os
import struct
import uuid
from pathlib import Path

import pytest

from hvcore.disk.image import open_image
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.disk.vhd.create import Parent, build_vhd
from hvcore.disk.vhd.footer import parse
from hvcore.errors import DiskError, ImageError
from tests.reference import journal, vhd
from tests.reference.vhd import MIB
from tests.reference.vhd_disk import image_file, layout_of, opened, raw_disk

BASE = Parent(vhd.ID, 7, "base.vhd", [("W2ru", ".\\base.vhd"), ("W2ku", "C:\\base.vhd"), ("MacX", "file:///base.vhd")])


def make(path: Path, **options: object) -> bytes:
    with image_file(path, os.O_RDWR | os.O_CREAT) as file:
        build_vhd(file, **options)
    return path.read_bytes() if path.stat().st_size < 64 * MIB else b""


@pytest.mark.parametrize("preallocate", [True, False])
def test_fixed(tmp_path: Path, preallocate: bool) -> None:
    raw = make(tmp_path / "f", size=MIB, type="fixed", disk_id=vhd.ID, timestamp=9, preallocate=preallocate)
    footer = parse(raw[-512:])
    assert len(raw) == MIB + 512 and raw[:MIB] == bytes(MIB)
    assert footer is not None and (footer.size, footer.disk_type, footer.disk_id) == (MIB, 2, vhd.ID)
    assert (footer.timestamp, footer.creator, footer.original_size) == (9, b"win ", MIB)
    assert ((tmp_path / "f").stat().st_blocks * 512 >= MIB) == preallocate


@pytest.mark.parametrize("block_size", [4 << 10, 2 * MIB, 256 * MIB])
@pytest.mark.parametrize("size", [512, 3 * MIB + 512, 40 << 30])
def test_dynamic(tmp_path: Path, size: int, block_size: int) -> None:
    path = tmp_path / "d"
    raw = make(path, size=size, type="dynamic", block_size=block_size)
    layout = layout_of(path)
    assert (layout.size, layout.block_size, layout.blocks) == (size, block_size, -(-size // block_size))
    assert (layout.entries, layout.table_offset, layout.footer_state) == (layout.blocks, 1536, "tail")
    assert layout.notes == () and path.stat().st_size == max(at + length for at, length in layout.used) + 512
    if raw:
        assert raw[:512] == raw[-512:]
        assert raw[1536 : 1536 + -(-4 * layout.blocks // 512) * 512].strip(b"\xff") == b""
    with open_image(path) as disk:
        assert disk.read(0, min(size, MIB)) == bytes(min(size, MIB))
        assert list(disk.extents()) == [(0, size, "zero", None)]


def test_differencing(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(vhd.pattern(1, MIB))
    make(tmp_path / "c", size=MIB, type="differencing", disk_id=vhd.CHILD_ID, parent=BASE)
    layout = layout_of(tmp_path / "c")
    assert (layout.disk_id, layout.parent_id, layout.parent_timestamp) == (vhd.CHILD_ID, vhd.ID, 7)
    assert (layout.parent_name, layout.locators) == ("base.vhd", BASE.locators)
    with opened(tmp_path / "c", parent=raw_disk(tmp_path / "base")) as disk:
        assert disk.read(0, MIB) == vhd.pattern(1, MIB)


def test_parent_may_be_a_tuple(tmp_path: Path) -> None:
    make(tmp_path / "c", size=MIB, type="differencing", parent=(vhd.ID, 7, "base.vhd", [("W2ru", "base.vhd")]))
    assert layout_of(tmp_path / "c").locators == [("W2ru", "base.vhd")]


def test_ids_are_new(tmp_path: Path) -> None:
    make(tmp_path / "a", size=MIB, type="dynamic")
    make(tmp_path / "b", size=MIB, type="dynamic")
    assert layout_of(tmp_path / "a").disk_id != layout_of(tmp_path / "b").disk_id


@pytest.mark.parametrize("type", ["dynamic", "differencing"])
def test_nothing_is_a_vhd_before_all_is_durable(tmp_path: Path, type: str) -> None:
    """Whatever part of the unflushed writes a crash leaves: a whole disk, or none."""
    log = os.memfd_create("journal")
    with probing(Probe(log)):
        make(tmp_path / "d", size=3 * MIB, type=type, parent=BASE if type == "differencing" else None)
    records = journal.parse(os.pread(log, 1 << 24, 0))
    os.close(log)
    found = [(each.kind, each.offset) for each in records]
    last = max(index for index, each in enumerate(records) if each.kind == journal.WRITE)
    footers = [index for index, each in enumerate(records) if each.data[:8] == b"conectix"]
    assert footers == [last - 3, last] and found[last][1] == 0
    assert [each.kind for each in records[last - 5 :]] == [2, 3, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "sparse"}, "type of a VHD is one of fixed, dynamic, differencing, not 'sparse'"),
        ({"size": 0}, "positive multiple of 512, not 0"),
        ({"size": 1000}, "positive multiple of 512, not 1000"),
        ({"size": (2040 << 30) + 512}, "at most 2190433320960 bytes"),
        ({"block_size": 2048}, "power of two from 4 KiB to 256 MiB, not 2048"),
        ({"block_size": 3 * MIB}, "power of two from 4 KiB to 256 MiB, not 3145728"),
        ({"block_size": 512 * MIB}, "power of two from 4 KiB to 256 MiB"),
        ({"type": "fixed", "block_size": MIB}, "a fixed disk has no blocks"),
        ({"type": "differencing"}, "a differencing disk has a parent"),
        ({"parent": BASE}, "a dynamic disk has no parent"),
        ({"type": "fixed", "parent": BASE}, "a fixed disk has no parent"),
        ({"timestamp": -1}, "timestamp -1 is not"),
        ({"timestamp": 1 << 32}, "timestamp 4294967296 is not"),
        ({"size": 2040 << 30, "block_size": 4096}, "do not fit into a VHD: use larger blocks"),
        ({"type": "differencing", "parent": Parent(vhd.ID, 0, "x" * 256)}, "256 UTF-16 units"),
        ({"type": "differencing", "parent": Parent(vhd.ID, 0, "b", [("W2ru", "b")] * 9)}, "room for 8"),
        ({"type": "differencing", "parent": Parent(vhd.ID, 0, "b", [("Wi2k", "b")])}, "code is one of"),
        ({"type": "differencing", "parent": Parent(vhd.ID, 0, "b", [("W2ku", "")])}, "locator W2ku is empty"),
    ],
)
def test_arguments(tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(tmp_path / "d", **({"size": MIB, "type": "dynamic"} | options))
    assert (tmp_path / "d").read_bytes() == b""


def test_only_into_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"precious")
    with pytest.raises(ValueError, match="not empty"):
        make(tmp_path / "d", size=MIB, type="dynamic")
    assert (tmp_path / "d").read_bytes() == b"precious"


@pytest.mark.parametrize("call", range(1, 8))
def test_full_file_system(tmp_path: Path, call: int) -> None:
    with probing(Probe()) as probe:
        file = image_file(tmp_path / "d", os.O_RDWR | os.O_CREAT)
    probe.fail(call, 28)
    with pytest.raises(DiskError) as caught:
        build_vhd(file, size=MIB, type="dynamic")
    file.close()
    assert caught.value.errno == 28
    if call < 5:  # the footer at the end is the fourth: from then on the disk is whole
        with pytest.raises(ImageError):
            open_image(tmp_path / "d")
    else:
        assert layout_of(tmp_path / "d").size == MIB


def test_all_of_a_disk_that_is_half_a_block(tmp_path: Path) -> None:
    make(tmp_path / "d", size=512, type="dynamic", disk_id=uuid.UUID(int=1))
    with open_image(tmp_path / "d", mode="r+") as disk:
        disk.write(0, b"x" * 512)
    assert vhd.read(tmp_path / "d") == b"x" * 512
    assert struct.unpack_from(">I", (tmp_path / "d").read_bytes(), 1536) == (7,)
