"""hvcore.vhd.create_child."""

from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.image import describe
from hvcore.errors import ImageDirty, ImageError
from hvcore.vhd import chain, create, create_child, info
from hvcore.vhd import open as open_vhd
from tests.reference.images import KINDS, MIB, chain_of, content, new, pattern, scribble, seven_zip
from tests.reference.vhdx import METADATA_AT, build, metadata, standard_items

SIZE = 5 * MIB + 8192


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
@pytest.mark.parametrize("type", ["dynamic", "fixed"])
def test_child_reads_as_its_parent_until_it_is_written(
    tmp_path: Path, format: str, sector_size: int, type: str
) -> None:
    base, child = new(tmp_path / f"base.{format}", SIZE, sector_size, type), tmp_path / f"child.{format}"
    scribble(base, 1)
    before, file = content(base), base.read_bytes()
    made = create_child(base, child)
    parent = info(base)
    assert made == info(child) and made.parent == str(base)
    assert (made.type, made.size, made.sector_size) == ("differencing", SIZE, sector_size)
    assert (made.disk_id == parent.disk_id) == (format == "vhdx")  # 5: a VHDX child copies it
    assert content(child) == before
    with open_vhd(child, "r+") as image:
        image.write(sector_size, pattern(0, sector_size, 9))
        image.trim(2 * MIB, 2 * MIB)
    expected = bytearray(before)
    expected[sector_size : 2 * sector_size] = pattern(0, sector_size, 9)
    expected[2 * MIB : 4 * MIB] = bytes(2 * MIB)
    assert content(child) == expected
    assert base.read_bytes() == file
    seven_zip(child, bytes(expected))


@pytest.mark.parametrize("block_size", [MIB, 4 * MIB])
def test_block_size_of_a_child_is_the_parents_or_chosen(tmp_path: Path, block_size: int) -> None:
    base = new(tmp_path / "base.vhdx", SIZE)
    create_child(base, tmp_path / "a.vhdx")
    create_child(base, tmp_path / "b.vhdx", block_size=block_size)
    assert info(tmp_path / "a.vhdx").block_size == MIB
    assert info(tmp_path / "b.vhdx").block_size == block_size


def test_path_is_stored_from_the_childs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bases/old", "disks"):
        (tmp_path / folder).mkdir(parents=True)
    for format in ("vhdx", "vhd"):
        base = new(tmp_path / f"bases/old/base.{format}", MIB)
        create_child(base, tmp_path / f"disks/child.{format}")
        assert "..\\bases\\old\\base".encode("utf-16-le") in (tmp_path / f"disks/child.{format}").read_bytes()
    monkeypatch.chdir(tmp_path / "disks")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bases").rename(tmp_path / "elsewhere/bases")
    (tmp_path / "disks").rename(tmp_path / "elsewhere/disks")
    for format in ("vhdx", "vhd"):  # both moved together: still found
        assert content(tmp_path / f"elsewhere/disks/child.{format}") == bytes(MIB)


def test_metadata_of_the_virtual_disk_are_inherited(tmp_path: Path) -> None:
    """5: an unknown item of the virtual disk goes to the child, another one does not."""
    base = tmp_path / "base.vhdx"
    build(base, MIB, {})
    extra = [(UUID(int=1), 2, b"of the disk"), (UUID(int=2), 0, b"of the file")]
    with base.open("r+b") as file:
        file.seek(METADATA_AT)
        file.write(metadata([*standard_items(MIB, MIB), *extra]))
    create_child(base, tmp_path / "child.vhdx")
    raw = (tmp_path / "child.vhdx").read_bytes()
    assert b"of the disk" in raw and b"of the file" not in raw


def test_raw_has_no_children(tmp_path: Path) -> None:
    create(tmp_path / "base.raw", MIB, "raw")
    with pytest.raises(ImageError, match=r"base\.raw: a raw image cannot have children: convert it"):
        create_child(tmp_path / "base.raw", tmp_path / "child.vhdx", parent_format="raw")
    assert [path.name for path in tmp_path.iterdir()] == ["base.raw"]


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_parent_that_was_not_closed_cleanly_is_refused(tmp_path: Path, format: str) -> None:
    base = new(tmp_path / f"base.{format}", MIB)
    image = open_vhd(base, "r+")
    image.write(0, pattern(0, 4096, 1))
    image.flush()
    raw = base.read_bytes()
    image.close()
    dirty = tmp_path / f"dirty.{format}"
    dirty.write_bytes(raw if format == "vhdx" else bytes(512) + raw[512:])
    with pytest.raises(ImageDirty, match=rf"dirty\.{format}: it was not closed cleanly"):
        create_child(dirty, tmp_path / "child")
    assert not (tmp_path / "child").exists()


def test_existing_file_is_not_touched(tmp_path: Path) -> None:
    base = new(tmp_path / "base.vhdx", MIB)
    for _ in range(2):
        with pytest.raises(ImageError, match=r"base\.vhdx: exists already"):
            create_child(base, base)
    assert info(base).type == "dynamic"


def test_names_that_a_child_cannot_store(tmp_path: Path) -> None:
    for name in ("a\\b.vhdx", "a\nb.vhdx"):
        base = new(tmp_path / name, MIB)
        with pytest.raises(ImageError, match="its path cannot be stored in a child"):
            create_child(base, tmp_path / "child.vhdx")
    base = new(tmp_path / ("b" * 250 + ".vhd"), MIB)
    create_child(base, tmp_path / "child.vhd")
    assert describe(tmp_path / "child.vhd").parent == str(base)


def test_chain_lists_all_files(tmp_path: Path) -> None:
    paths = chain_of(tmp_path, "vhdx", 512, MIB, MIB, MIB)
    assert [each.path for each in chain(paths[2])] == list(map(str, paths[::-1]))
    assert [each.type for each in chain(paths[2])] == ["differencing", "differencing", "dynamic"]
