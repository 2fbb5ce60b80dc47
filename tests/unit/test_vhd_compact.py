"""hvcore.vhd.compact: a smaller file, the same disk (disk-formats.md 13, 15.3)."""

from pathlib import Path

import pytest

from hvcore.errors import ImageError, ImageInUse
from hvcore.vhd import compact, create_child
from hvcore.vhd import open as open_vhd
from tests.reference.images import (
    BLOCK,
    KINDS,
    MIB,
    Stop,
    Stopped,
    content,
    new,
    pattern,
    qemu_img,
    scribble,
    seven_zip,
    write,
)

SIZE = 9 * MIB + 8192


def fragmented(path: Path, sector_size: int = 512, child: bool = False) -> Path:
    """Blocks in the reverse order, of which every second one holds zeros."""
    new(path, SIZE, sector_size)
    if child:
        create_child(path, path.with_stem("child"))
        path = path.with_stem("child")
    block = BLOCK[path.suffix[1:]]
    with open_vhd(path, "r+") as image:
        for at in range(SIZE // block * block, -1, -block):
            write(image, at, min(block, SIZE - at), 1)
        for at in range(0, SIZE - block, 2 * block):
            image.write(at, bytes(block))
    return path


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
def test_zeros_are_given_up_and_gaps_closed(tmp_path: Path, format: str, sector_size: int) -> None:
    path = fragmented(tmp_path / f"d.{format}", sector_size)
    expected, block = content(path), BLOCK[format]
    zeros = len(range(0, SIZE - block, 2 * block))
    before = path.stat().st_size
    result = compact(path)
    assert (result.path, result.before, result.after) == (str(path), before, path.stat().st_size)
    assert result.freed_blocks == zeros and result.moved_blocks > 0
    assert before - result.after >= zeros * block
    assert content(path) == expected
    seven_zip(path, expected)
    if sector_size == 512:
        qemu_img(path, expected)
    again = compact(path)
    assert (again.before, again.after, again.freed_blocks, again.moved_blocks) == (result.after, result.after, 0, 0)
    with open_vhd(path, "r+") as image:
        write(image, 0, SIZE, 2)
    assert content(path) == pattern(0, SIZE, 2)


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_blocks_of_zeros_stay_if_asked(tmp_path: Path, format: str) -> None:
    path = fragmented(tmp_path / f"d.{format}")
    before = path.stat().st_size
    result = compact(path, zeros=False)
    assert (result.freed_blocks, result.moved_blocks, path.stat().st_size) == (0, 0, before)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_child_keeps_what_hides_its_parent(tmp_path: Path, sector_size: int) -> None:
    base, path = new(tmp_path / "base.vhdx", SIZE, sector_size), tmp_path / "child.vhdx"
    with open_vhd(base, "r+") as image:
        write(image, 0, 4 * MIB, 1)
    create_child(base, path)
    with open_vhd(path, "r+") as image:
        image.write(0, bytes(2 * MIB))  # hides the parent's data
        image.write(5 * MIB, bytes(MIB))  # as the parent
        write(image, 7 * MIB, MIB, 2)
        image.write(2 * MIB + sector_size, bytes(sector_size))
    expected = content(path)
    result = compact(path)
    assert result.freed_blocks == 3 and result.moved_blocks > 0  # as zeros, not as the parent's
    assert content(path) == expected
    seven_zip(path, expected)


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
def test_children_of_a_compacted_image_stay_its_children(tmp_path: Path, format: str, sector_size: int) -> None:
    path = fragmented(tmp_path / f"d.{format}", sector_size)
    child = tmp_path / f"child.{format}"
    create_child(path, child)
    expected = content(child)
    compact(path)
    assert content(child) == expected


def test_vhd_child_is_compacted_without_losing_zeros(tmp_path: Path) -> None:
    base, path = new(tmp_path / "base.vhd", SIZE), tmp_path / "child.vhd"
    with open_vhd(base, "r+") as image:
        write(image, 0, SIZE, 1)
    create_child(base, path)
    with open_vhd(path, "r+") as image:
        image.write(MIB, bytes(2 * MIB))
    expected, before = content(path), path.stat().st_size
    result = compact(path)
    assert (result.freed_blocks, result.after) == (0, before)
    assert content(path) == expected


@pytest.mark.parametrize("format", ["vhdx", "vhd", "raw"])
def test_what_has_nothing_to_give_back(tmp_path: Path, format: str) -> None:
    path = new(tmp_path / f"d.{format}", MIB, type="fixed") if format != "raw" else tmp_path / "d.raw"
    if format == "raw":
        path.write_bytes(bytes(MIB))
    with pytest.raises(ImageError, match=r"there is nothing to compact|the format is not recognised"):
        compact(path)
    other = new(tmp_path / "open.vhdx", MIB)
    with open_vhd(other), pytest.raises(ImageInUse):
        compact(other)


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
@pytest.mark.parametrize("child", [False, True])
def test_interruption_at_any_moment(tmp_path: Path, format: str, sector_size: int, child: bool) -> None:
    path = fragmented(tmp_path / f"d.{format}", sector_size, child)
    scribble(path, 3)
    expected = content(path)
    fds = len(list(Path("/proc/self/fd").iterdir()))
    for at in range(1, 200):
        try:
            compact(path, progress=Stop(at))
            break
        except Stopped:
            assert content(path) == expected
    assert content(path) == expected and at > 10
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    seven_zip(path, expected)


def test_table_of_another_writer_is_judged_first(tmp_path: Path) -> None:
    """15.5: two blocks of a VHD at one place; nothing is moved."""
    path = fragmented(tmp_path / "d.vhd")
    raw = bytearray(path.read_bytes())
    raw[1536:1540] = raw[1540:1544]
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="the block allocation table is damaged"):
        compact(path)
    assert path.read_bytes() == raw
