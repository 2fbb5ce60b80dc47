"""The footer of a VHD: every field kept, every fault named, and which of two footers counts (disk-formats.md 15.5)."""

import os
import struct
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.image import open_described, open_image
from hvcore.disk.vhd.footer import MAX_SIZE, Footer, build, geometry, new_footer, parse, resized
from hvcore.errors import ImageDamaged, ImageDirty, ImageError
from hvcore.vhd import open as open_vhd
from tests.reference import vhd
from tests.reference.vhd import MIB
from tests.reference.vhd_disk import layout_of, opened

OTHER = UUID("deadbeef-0000-4000-8000-000000000001")


def test_every_byte_is_kept() -> None:
    raw = bytearray(b"conectix" + bytes(range(8, 256)) * 3)[:512]
    struct.pack_into(">I", raw, 12, 0x00010000)
    sealed = vhd.sealed(bytes(raw), 64)
    footer = parse(sealed)
    assert footer is not None and build(footer) == sealed
    assert (footer.features, footer.creator, footer.saved_state) == (0x08090A0B, bytes(raw[28:32]), raw[84])
    assert footer.reserved == raw[85:]


def test_footer_of_511_bytes_is_the_same() -> None:
    raw = vhd.footer(MIB)
    assert parse(raw[:511]) == parse(raw)
    assert parse(raw[:100].replace(b"conectix", b"CONECTIX")) is None
    with pytest.raises(ImageDamaged, match="ends inside the VHD footer"):
        parse(raw[:510])


def test_faults_say_where() -> None:
    with pytest.raises(ImageDamaged, match="checksum is wrong") as caught:
        parse(vhd.footer(MIB)[:-1] + b"\1", 4096)
    assert (caught.value.structure, caught.value.offset) == ("VHD footer", 4096)


def test_resized_keeps_what_was_at_creation() -> None:
    footer = resized(new_footer(64 * MIB, 3, vhd.ID, 5), 1024 * MIB)
    assert (footer.original_size, footer.size, footer.geometry) == (64 * MIB, 1024 * MIB, (2080, 16, 63))
    assert isinstance(footer, Footer) and geometry(1024 * MIB) == footer.geometry


def build_disk(path: Path, **options: object) -> bytes:
    content = {0: vhd.pattern(0, MIB), 2: vhd.pattern(2, MIB)}
    vhd.build(path, 3 * MIB, content, block_size=MIB, **options)
    return content[0] + bytes(MIB) + content[2]


def test_equal_footers(tmp_path: Path) -> None:
    content = build_disk(tmp_path / "d.vhd")
    assert (layout_of(tmp_path / "d.vhd").footer_state, layout_of(tmp_path / "d.vhd").notes) == ("tail", ())
    with open_image(tmp_path / "d.vhd") as disk:
        assert disk.read(0, 3 * MIB) == content


@pytest.mark.parametrize("head", [bytes(512), vhd.footer(3 * MIB)[:-1] + b"\1", vhd.footer(3 * MIB, t=(24, ">I", 7))])
def test_tail_counts_and_the_head_is_rewritten_before_the_first_change(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "d.vhd"
    content = build_disk(path, head=head)
    before = path.read_bytes()
    layout = layout_of(path)
    assert layout.footer_state == "differs" and "at the start" in layout.notes[0]
    with opened(path, write=True) as disk:
        assert disk.read(0, 3 * MIB) == content
        disk.flush()
    assert path.read_bytes() == before  # nothing was written
    with opened(path, write=True) as disk:
        disk.write(0, content[:512])
        assert path.read_bytes()[:512] == before[-512:]
    assert path.read_bytes()[512:] == before[512:]
    assert layout_of(path).footer_state == "tail"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (vhd.footer(3 * MIB, 4), "types differ"),
        (vhd.footer(3 * MIB, disk_id=OTHER), "ids differ"),
        (vhd.footer(3 * MIB, data_offset=1024), "data offsets differ"),
    ],
)
def test_footers_of_different_disks_are_refused(tmp_path: Path, head: bytes, words: str) -> None:
    build_disk(tmp_path / "d.vhd", head=head)
    with pytest.raises(ImageDamaged, match=words):
        open_image(tmp_path / "d.vhd")


@pytest.mark.parametrize("tail", [b"", bytes(512), b"\1" * 100, vhd.footer(3 * MIB)[:-1] + b"\1"])
def test_dynamic_disk_without_a_tail_opens_and_gets_one_before_the_first_change(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "d.vhd"
    content = build_disk(path, tail=tail)
    layout = layout_of(path)
    assert layout.footer_state == "head only" and "at the end is" in layout.notes[0]
    before = path.read_bytes()
    with open_image(path, mode="r+") as disk:
        assert disk.read(0, 3 * MIB) == content
        disk.write(0, content[:512])
        raw = path.read_bytes()
        assert raw[: len(before)] == before and raw[-512:] == vhd.footer(3 * MIB) and len(raw) % 512 == 0
        disk.write(MIB, b"n" * 512)
    assert layout_of(path).footer_state == "tail"
    assert vhd.read(path) == content[:MIB] + (b"n" * 512).ljust(MIB, b"\0") + content[2 * MIB :]


def test_differencing_disk_without_a_tail_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "c.vhd"
    build_disk(path, parent=(OTHER, "base.vhd"), tail=b"")
    with pytest.raises(ImageDirty, match="hvcore vhd repair --trust-head"):
        layout_of(path)
    with pytest.raises(ImageDirty, match="hvcore vhd repair --trust-head"):
        open_image(path)
    layout = layout_of(path, trust_head=True)
    assert (layout.footer_state, layout.disk_type, layout.parent_id) == ("head only", 4, OTHER)
    with opened(path, write=True, trust_head=True) as disk:
        disk.write(0, b"n" * 512)
    assert layout_of(path).footer_state == "tail"


def test_trust_is_in_the_image_itself_and_not_in_its_parents(tmp_path: Path) -> None:
    """What the message names as the remedy; without a parent that is sound, too, it is none."""
    build_disk(tmp_path / "base.vhd", disk_id=OTHER)
    blocks = {1: (vhd.pattern(11, MIB), {0, 5})}
    vhd.build(tmp_path / "c.vhd", 3 * MIB, dict(blocks), block_size=MIB, parent=(OTHER, "base.vhd"), tail=b"")
    expected = vhd.read(tmp_path / "c.vhd", vhd.read(tmp_path / "base.vhd"))
    with open_image(tmp_path / "c.vhd", trust_head=True) as disk:
        assert disk.read(0, 3 * MIB) == expected
    disk, info = open_described(tmp_path / "c.vhd", trust_head=True, parent=tmp_path / "base.vhd")
    disk.close()
    assert info.type == "differencing" and "its copy at the start is used" in info.notes[0]
    vhd.build(tmp_path / "leaf.vhd", 3 * MIB, {}, block_size=MIB, parent=(vhd.ID, "c.vhd"), disk_id=vhd.CHILD_ID)
    with pytest.raises(ImageDirty, match=r"c\.vhd: a differencing VHD whose footer"):
        open_image(tmp_path / "leaf.vhd", trust_head=True)
    with open_vhd(tmp_path / "c.vhd", "r+", trust_head=True) as image:
        assert image.read(0, 3 * MIB) == expected
        image.write(0, b"n" * 512)
    with open_image(tmp_path / "leaf.vhd") as disk:
        assert disk.read(0, 3 * MIB) == b"n" * 512 + expected[512:]


def test_tail_of_511_bytes(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    content = build_disk(path, tail=vhd.footer(3 * MIB)[:511])
    assert layout_of(path).footer_state == "tail"
    with opened(path, write=True) as disk:
        disk.write(MIB, b"n" * 512)
    assert path.read_bytes()[-512:] == vhd.footer(3 * MIB)
    assert vhd.read(path) == content[:MIB] + (b"n" * 512).ljust(MIB, b"\0") + content[2 * MIB :]


@pytest.mark.parametrize("size", [0, 1000, MAX_SIZE + 512, (1 << 64) - 512])
def test_sizes_that_no_disk_has(tmp_path: Path, size: int) -> None:
    path = tmp_path / "d.vhd"
    raw = vhd.footer(3 * MIB, s=(48, ">Q", size))
    build_disk(path, head=raw, tail=raw)
    with pytest.raises(ImageDamaged, match=f"the VHD size {size} is not"):
        open_image(path)
    os.truncate(path, path.stat().st_size - 512)
    with pytest.raises(ImageDamaged, match=f"the VHD size {size} is not"):
        open_image(path)


def test_fixed_disk_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "f.vhd").write_bytes(bytes(MIB) + vhd.footer(MIB, 2))
    with pytest.raises(ImageError, match="a fixed VHD has no block allocation table"):
        layout_of(tmp_path / "f.vhd")
