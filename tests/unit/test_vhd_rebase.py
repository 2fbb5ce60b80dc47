"""hvcore.vhd.rebase: another parent, the same disk (disk-formats.md 8, 15.5)."""

from pathlib import Path

import pytest

from hvcore.errors import ImageDirty, ImageError, ImageInUse, ParentError
from hvcore.vhd import chain, create, create_child, info, rebase
from hvcore.vhd import open as open_vhd
from tests.reference.images import (
    KINDS,
    MIB,
    Stop,
    Stopped,
    chain_of,
    content,
    new,
    pattern,
    scribble,
    seven_zip,
    write,
)

SIZE = 5 * MIB + 8192


def other(folder: Path, format: str, sector_size: int, size: int = SIZE) -> Path:
    path = new(folder / f"other.{format}", size, sector_size)
    scribble(path, 50, 12)
    return path


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
@pytest.mark.parametrize("size", [SIZE, 3 * MIB, 7 * MIB])
def test_disk_reads_the_same_with_another_parent(tmp_path: Path, format: str, sector_size: int, size: int) -> None:
    paths = chain_of(tmp_path, format, sector_size, SIZE, SIZE, SIZE)
    parent = other(tmp_path, format, sector_size, size)
    expected = content(paths[1]), content(paths[2])
    raw = parent.read_bytes(), paths[0].read_bytes()
    assert rebase(paths[1], parent) == info(paths[1])
    assert [each.path for each in chain(paths[2])] == [str(each) for each in (paths[2], paths[1], parent)]
    assert (content(paths[1]), content(paths[2])) == expected  # its own children stay valid
    assert (parent.read_bytes(), paths[0].read_bytes()) == raw
    paths[0].unlink()
    if size >= SIZE:
        seven_zip(paths[1], expected[0])


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
def test_parent_in_between_is_left_out(tmp_path: Path, format: str, sector_size: int) -> None:
    paths = chain_of(tmp_path, format, sector_size, SIZE, SIZE, SIZE)
    expected = content(paths[2])
    rebase(paths[2], paths[0])
    paths[1].unlink()
    assert content(paths[2]) == expected
    seven_zip(paths[2], expected)


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
def test_only_the_link_changes_without_copy(tmp_path: Path, format: str, sector_size: int) -> None:
    paths = chain_of(tmp_path, format, sector_size, SIZE, SIZE)
    expected = content(paths[1])
    size = paths[1].stat().st_size
    (tmp_path / "a folder").mkdir()
    moved = tmp_path / f"a folder/renamed – {'x' * 60}.{format}"
    paths[0].rename(moved)
    with pytest.raises(ParentError, match="hvcore vhd rebase"):
        content(paths[1])
    assert rebase(paths[1], moved, copy=False).parent == str(moved)
    assert content(paths[1]) == expected
    assert paths[1].stat().st_size <= size + 4096
    with open_vhd(paths[1], "r+") as image:
        write(image, 0, SIZE, 9)
    assert content(paths[1]) == pattern(0, SIZE, 9)


def test_parent_that_was_changed_is_accepted_without_copy(tmp_path: Path) -> None:
    paths = chain_of(tmp_path, "vhdx", 512, SIZE, SIZE)
    with open_vhd(paths[0], "r+") as image:
        image.write(0, image.read(0, 4096))  # the same, but the id changes
    with pytest.raises(ParentError, match="not the parent"):
        content(paths[1])
    with pytest.raises(ParentError, match="not the parent"):
        rebase(paths[1], paths[0])  # what the old parent held cannot be known
    rebase(paths[1], paths[0], copy=False)
    content(paths[1])


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
def test_interruption_at_any_moment(tmp_path: Path, format: str, sector_size: int) -> None:
    paths = chain_of(tmp_path, format, sector_size, SIZE, SIZE)
    parent = other(tmp_path, format, sector_size)
    expected = content(paths[1])
    fds = len(list(Path("/proc/self/fd").iterdir()))
    for at in range(1, 100):
        try:
            rebase(paths[1], parent, progress=Stop(at))
            break
        except Stopped:
            assert content(paths[1]) == expected
    assert content(paths[1]) == expected and at > 3
    assert info(paths[1]).parent == str(parent)
    assert len(list(Path("/proc/self/fd").iterdir())) == fds


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_circles_are_refused(tmp_path: Path, format: str) -> None:
    paths = chain_of(tmp_path, format, 512, MIB, MIB, MIB)
    raw = paths[1].read_bytes()
    for target in (paths[1], paths[2]):
        for copy in (True, False):
            with pytest.raises(ParentError, match="circle"):
                rebase(paths[1], target, copy=copy)
    assert paths[1].read_bytes() == raw


def test_parents_that_cannot_be(tmp_path: Path) -> None:
    paths = chain_of(tmp_path, "vhdx", 512, MIB, MIB)
    raw = paths[1].read_bytes()
    create(tmp_path / "raw.img", MIB, "raw")
    new(tmp_path / "large.vhdx", MIB, 4096)
    new(tmp_path / "base.vhd", MIB)
    image = open_vhd(new(tmp_path / "dirty.vhdx", MIB), "r+")
    write(image, 0, 4096, 1)
    image.flush()
    (tmp_path / "unclean.vhdx").write_bytes((tmp_path / "dirty.vhdx").read_bytes())
    cases: list[tuple[str, type[ImageError], str]] = [
        ("raw.img", ImageError, "not a VHDX"),
        ("base.vhd", ImageError, "not a VHDX|truncated"),
        ("large.vhdx", ParentError, "sectors of 4096 bytes, its child of 512"),
        ("unclean.vhdx", ImageDirty, "not closed cleanly"),
        ("dirty.vhdx", ImageInUse, "in use"),
        ("missing.vhdx", ImageError, "no such file"),
    ]
    for name, kind, words in cases:
        with pytest.raises(kind, match=rf"{name}: .*({words})"):
            rebase(paths[1], tmp_path / name, copy=False)
    image.close()
    with pytest.raises(ImageError, match="not a differencing image"):
        rebase(paths[0], tmp_path / "dirty.vhdx")
    assert paths[1].read_bytes() == raw


def test_image_in_use_is_refused(tmp_path: Path) -> None:
    paths = chain_of(tmp_path, "vhdx", 512, MIB, MIB)
    create_child(paths[0], tmp_path / "c.vhdx")
    for mode in ("r", "r+"):
        with open_vhd(paths[1], mode), pytest.raises(ImageInUse):
            rebase(paths[1], tmp_path / "c.vhdx")
