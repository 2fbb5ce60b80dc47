"""hvcore.vhd.merge: a child into its parent (disk-formats.md 8)."""

from pathlib import Path
from uuid import UUID

import pytest

from hvcore.errors import ImageError, ImageInUse, ParentError
from hvcore.vhd import chain, create_child, info, merge, resize
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
    qemu_img,
    scribble,
    seven_zip,
    write,
)

SIZE = 5 * MIB + 8192


def pair(folder: Path, format: str, sector_size: int = 512, type: str = "dynamic") -> tuple[Path, Path]:
    base, path = new(folder / f"base.{format}", SIZE, sector_size, type), folder / f"child.{format}"
    with open_vhd(base, "r+") as image:
        write(image, 0, SIZE, 1)
    create_child(base, path)
    scribble(path, 2)
    with open_vhd(path, "r+") as image:
        image.trim(MIB, 2 * MIB)
        image.write(4 * MIB, bytes(sector_size))
    return base, path


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
@pytest.mark.parametrize("type", ["dynamic", "fixed"])
def test_parent_reads_as_the_child_did(tmp_path: Path, format: str, sector_size: int, type: str) -> None:
    base, path = pair(tmp_path, format, sector_size, type)
    expected = content(path)
    assert merge(path) == info(base)
    assert [each.name for each in tmp_path.iterdir()] == [base.name]
    assert content(base) == expected
    assert info(base).type == type
    seven_zip(base, expected)
    if sector_size == 512:
        qemu_img(base, expected)


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
def test_parent_that_is_a_child_itself(tmp_path: Path, format: str, sector_size: int) -> None:
    paths = chain_of(tmp_path, format, sector_size, SIZE, SIZE, SIZE)
    with open_vhd(paths[2], "r+") as image:
        image.trim(0, 3 * MIB)
    expected, bottom = content(paths[2]), paths[0].read_bytes()
    merge(paths[2])
    assert content(paths[1]) == expected
    assert paths[0].read_bytes() == bottom
    seven_zip(paths[1], expected)


@pytest.mark.parametrize("size", [9 * MIB, 2 * MIB + 8192])
@pytest.mark.parametrize("type", ["dynamic", "fixed"])
def test_vhdx_parent_gets_the_childs_size(tmp_path: Path, size: int, type: str) -> None:
    base, path = pair(tmp_path, "vhdx", type=type)
    resize(path, size, force=True)
    scribble(path, 5)
    expected = content(path)
    merge(path)
    assert content(base) == expected
    seven_zip(base, expected)


def test_vhd_parent_grows_but_does_not_shrink(tmp_path: Path) -> None:
    base, path = pair(tmp_path, "vhd")
    resize(path, 7 * MIB)
    expected = content(path)
    resize(base, 9 * MIB)
    raw = path.read_bytes()
    with pytest.raises(ImageError, match=r"base\.vhd: it has \d+ bytes, its child only"):
        merge(path)
    assert path.read_bytes() == raw and content(path) == expected
    (tmp_path / "other").mkdir()
    base, path = pair(tmp_path / "other", "vhd")
    resize(path, 7 * MIB)
    expected = content(path)
    merge(path)
    assert content(base) == expected


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_sibling_is_named_and_nothing_changes(tmp_path: Path, format: str) -> None:
    base, path = pair(tmp_path, format)
    (tmp_path / "folder").mkdir()
    create_child(base, tmp_path / f"sibling.{format}")
    before = {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
    with pytest.raises(ParentError, match=rf"other images have it as theirs: .*sibling\.{format}$"):
        merge(path)
    assert {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == before
    (tmp_path / f"sibling.{format}").unlink()
    other = create_child(base, tmp_path / f"folder/elsewhere.{format}")  # not beside them: cannot be known
    merge(path)
    assert other.type == "differencing"


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
def test_children_of_the_merged_image_get_its_parent(tmp_path: Path, format: str, sector_size: int) -> None:
    paths = chain_of(tmp_path, format, sector_size, SIZE, SIZE, SIZE)
    create_child(paths[1], tmp_path / f"second.{format}")
    expected = content(paths[2]), content(paths[1])
    merge(paths[1])
    assert content(paths[2]) == expected[0] and content(tmp_path / f"second.{format}") == expected[1]
    assert [each.path for each in chain(paths[2])] == [str(paths[2]), str(paths[0])]


def test_who_uses_one_of_both_is_in_the_way(tmp_path: Path) -> None:
    base, path = pair(tmp_path, "vhdx")
    expected = content(path)
    for each in (base, path):
        with open_vhd(each), pytest.raises(ImageInUse):
            merge(path)
    assert content(path) == expected
    with pytest.raises(ImageError, match="not a differencing image"):
        merge(base)


def test_wrong_parent_is_not_touched(tmp_path: Path) -> None:
    base, path = pair(tmp_path, "vhdx")
    with open_vhd(base, "r+") as image:
        write(image, 0, 4096, 9)
    raw = base.read_bytes()
    with pytest.raises(ParentError, match=r"child\.vhdx: .*base\.vhdx: not the parent"):
        merge(path)
    assert base.read_bytes() == raw


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
@pytest.mark.parametrize("size", [SIZE, 8 * MIB])
def test_interruption_at_any_moment(tmp_path: Path, format: str, sector_size: int, size: int) -> None:
    base, path = pair(tmp_path, format, sector_size)
    if size != SIZE:
        resize(path, size)
    expected = content(path)
    fds = len(list(Path("/proc/self/fd").iterdir()))
    identities: set[UUID | None] = set()
    for at in range(1, 100):
        try:
            merge(path, progress=Stop(at))
            break
        except Stopped:
            if not path.exists():
                break
            assert content(path) == expected
            identities.add(info(base).identity)
    assert content(base) == expected and at > 3
    assert not path.exists() and len(list(Path("/proc/self/fd").iterdir())) == fds
    # A merge that goes on keeps the id that the child was told of.
    assert len(identities) <= 2


def test_child_behind_a_link_is_deleted_with_its_file(tmp_path: Path) -> None:
    base, path = pair(tmp_path, "vhdx")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/child.vhdx").symlink_to(path)
    expected = content(path)
    merge(tmp_path / "links/child.vhdx")
    assert not path.exists() and content(base) == expected


def test_untouched_child_changes_only_ids(tmp_path: Path) -> None:
    base, path = new(tmp_path / "base.vhdx", SIZE), tmp_path / "child.vhdx"
    with open_vhd(base, "r+") as image:
        write(image, 0, SIZE, 1)
    create_child(base, path)
    identity = info(base).identity
    merge(path)
    assert content(base) == pattern(0, SIZE, 1)
    assert info(base).identity != identity
