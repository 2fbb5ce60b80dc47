"""hvcore.vhd.resize: every format and type, larger and smaller (disk-formats.md 14, 15.5)."""

from pathlib import Path

import pytest

from hvcore.errors import ImageError, ImageInUse, ParentError
from hvcore.vhd import create, create_child, info, resize
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
    seven_zip,
    write,
)

UNEVEN = 3 * MIB + 8192
SIZES = [(UNEVEN, 9 * MIB), (UNEVEN, 12 * MIB + 8192), (2 * MIB, 3 * MIB), (2 * MIB, 2 * MIB + 8192), (UNEVEN, UNEVEN)]


def filled(path: Path, tag: int = 1) -> bytes:
    with open_vhd(path, "r+") as image:
        write(image, 0, image.size, tag)
    return content(path)


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
@pytest.mark.parametrize("type", ["dynamic", "fixed"])
@pytest.mark.parametrize(("old", "size"), SIZES)
def test_grown_disk(tmp_path: Path, format: str, sector_size: int, type: str, old: int, size: int) -> None:
    path = new(tmp_path / f"d.{format}", old, sector_size, type)
    expected = filled(path) + bytes(size - old)
    assert resize(path, size) == info(path)
    assert (info(path).size, info(path).type) == (size, type)
    assert content(path) == expected
    seven_zip(path, expected)
    if sector_size == 512:
        qemu_img(path, expected)
    with open_vhd(path, "r+") as image:
        write(image, 0, size, 2)
    assert content(path) == pattern(0, size, 2)


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_what_lay_behind_the_old_end_does_not_appear(tmp_path: Path, format: str) -> None:
    """14: other writers leave anything in the rest of the last block."""
    path = new(tmp_path / f"d.{format}", UNEVEN)
    expected = filled(path) + bytes(5 * MIB - UNEVEN)
    with open_vhd(path) as image:
        *_, last = image.extents()
    assert last.file_offset is not None
    with path.open("r+b") as file:
        file.seek(last.file_offset + last.length)
        file.write(b"\xaa" * 65536)
    resize(path, 5 * MIB)
    assert content(path) == expected


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("own", ["nothing", "last sectors", "all"])
@pytest.mark.parametrize("block_size", [MIB, 2 * MIB])
@pytest.mark.parametrize(
    ("old", "size"), [(UNEVEN, 8 * MIB), (UNEVEN, 20 * MIB), (2 * MIB, 7 * MIB), (9 * MIB, 11 * MIB)]
)
def test_grown_child_hides_what_its_parent_holds(
    tmp_path: Path, sector_size: int, own: str, block_size: int, old: int, size: int
) -> None:
    base, path = new(tmp_path / "base.vhdx", 9 * MIB, sector_size), tmp_path / "child.vhdx"
    filled(base)
    create_child(base, path, block_size=block_size)
    resize(path, old, force=True)
    with open_vhd(path, "r+") as image:
        if own == "last sectors":
            write(image, old - 8192, 8192, 2)
        elif own == "all":
            write(image, 0, old, 2)
    expected = content(path) + bytes(size - old)
    resize(path, size)
    assert content(path) == expected
    if size > 9 * MIB or old == 9 * MIB:
        with open_vhd(path) as image:
            assert all(extent.state != "parent" for extent in image.extents() if extent.offset >= 9 * MIB)
    seven_zip(path, expected)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("type", ["dynamic", "fixed"])
def test_shrunk_vhdx(tmp_path: Path, sector_size: int, type: str) -> None:
    path = new(tmp_path / "d.vhdx", 9 * MIB, sector_size, type)
    with open_vhd(path, "r+") as image:
        write(image, 0, UNEVEN, 1)
        image.write(8 * MIB, bytes(MIB))
    before = path.stat().st_size
    expected = content(path)[:UNEVEN]
    resize(path, UNEVEN)
    assert content(path) == expected
    assert path.stat().st_size <= before - MIB
    seven_zip(path, expected)
    resize(path, 6 * MIB)
    assert content(path) == expected + bytes(6 * MIB - UNEVEN)


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "child", "grandchild"])
def test_data_behind_the_new_end_are_lost_by_force_only(tmp_path: Path, kind: str) -> None:
    """What a child's parent holds there is lost as well."""
    path = new(tmp_path / "d.vhdx", 9 * MIB, type=kind if kind == "fixed" else "dynamic")
    with open_vhd(path, "r+") as image:
        write(image, 7 * MIB, 4096, 1)
    for name in {"child": ["c"], "grandchild": ["c", "g"]}.get(kind, []):
        create_child(path, tmp_path / f"{name}.vhdx")
        path = tmp_path / f"{name}.vhdx"
    raw, expected = path.read_bytes(), content(path)
    with pytest.raises(ImageError, match=r"there are data behind the new end, from about \d+ on: force it"):
        resize(path, 5 * MIB)
    assert path.read_bytes() == raw
    resize(path, 7 * MIB + 4096)
    assert content(path) == expected[: 7 * MIB + 4096]
    resize(path, 5 * MIB, force=True)
    assert content(path) == expected[: 5 * MIB]
    resize(path, 9 * MIB)
    assert content(path) == expected[: 5 * MIB] + bytes(4 * MIB)


def test_vhd_does_not_shrink(tmp_path: Path) -> None:
    for type in ("dynamic", "fixed"):
        path = new(tmp_path / f"{type}.vhd", 3 * MIB, type=type)
        for force in (False, True):
            with pytest.raises(ImageError, match="a VHD cannot be made smaller"):
                resize(path, 2 * MIB, force=force)


def test_vhd_child_of_a_larger_parent_does_not_grow(tmp_path: Path) -> None:
    base, path = new(tmp_path / "base.vhd", 3 * MIB), tmp_path / "child.vhd"
    create_child(base, path)
    resize(base, 5 * MIB)
    with pytest.raises(ImageError, match="would appear"):
        resize(path, 4 * MIB)
    path = tmp_path / "other.vhd"
    create_child(base, path)
    expected = filled(path) + bytes(3 * MIB)
    resize(path, 8 * MIB)
    assert content(path) == expected


@pytest.mark.parametrize("blocks", [100, 128, 129, 3000])
def test_table_of_a_vhd_grows_in_its_padding_or_moves(tmp_path: Path, blocks: int) -> None:
    path = tmp_path / "d.vhd"
    create(path, 100 * 4096, "vhd", block_size=4096)
    expected = filled(path) + bytes((blocks - 100) * 4096)
    resize(path, blocks * 4096)
    assert content(path) == expected
    with open_vhd(path, "r+") as image:
        write(image, 0, image.size, 2)
    assert content(path) == pattern(0, blocks * 4096, 2)
    seven_zip(path, content(path))


def test_raw_grows_and_shrinks_by_force(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    create(path, MIB, "raw")
    path.write_bytes(pattern(0, MIB, 1))
    assert resize(path, 2 * MIB, format="raw").size == 2 * MIB
    assert path.read_bytes() == pattern(0, MIB, 1) + bytes(MIB)
    with pytest.raises(ImageError, match="by force only"):
        resize(path, MIB, format="raw")
    resize(path, 512, format="raw", force=True)
    assert path.read_bytes() == pattern(0, 512, 1)


def test_64_tib_is_quick_and_sparse(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    create(path, 1 << 30)
    with open_vhd(path, "r+") as image:
        write(image, 0, 4096, 1)
    resize(path, 64 << 40)  # its table of 257 MiB has to move
    with open_vhd(path, "r+") as image:
        write(image, (64 << 40) - 4096, 4096, 2)
    with open_vhd(path) as image:
        assert image.read(0, 4096) == pattern(0, 4096, 1)
        assert image.read((64 << 40) - 4096, 4096) == pattern((64 << 40) - 4096, 4096, 2)
        assert len(list(image.extents())) == 3
    resize(path, MIB, force=True)
    assert content(path) == pattern(0, 4096, 1) + bytes(MIB - 4096)
    assert path.stat().st_blocks * 512 < 16 * MIB


@pytest.mark.parametrize(("format", "size"), [("vhdx", 3 * MIB + 100), ("vhdx", 0), ("vhdx", (64 << 40) + 512)])
def test_sizes_that_do_not_exist(tmp_path: Path, format: str, size: int) -> None:
    path = new(tmp_path / f"d.{format}", MIB)
    raw = path.read_bytes()
    with pytest.raises(ValueError):
        resize(path, size)
    assert path.read_bytes() == raw


def test_children_refuse_a_vhdx_that_was_resized(tmp_path: Path) -> None:
    paths = chain_of(tmp_path, "vhdx", 512, 3 * MIB, 3 * MIB)
    resize(paths[0], 4 * MIB)
    with pytest.raises(ParentError, match="not the parent"):
        open_vhd(paths[1])


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_open_image_is_refused(tmp_path: Path, format: str) -> None:
    path = new(tmp_path / f"d.{format}", MIB)
    for mode in ("r", "r+"):
        with open_vhd(path, mode), pytest.raises(ImageInUse):
            resize(path, 2 * MIB)


@pytest.mark.parametrize(("format", "size"), [("vhdx", 9 * MIB), ("vhdx", 2 * MIB), ("vhd", 9 * MIB)])
@pytest.mark.parametrize("type", ["dynamic", "child"])
def test_interruption_at_any_moment(tmp_path: Path, format: str, size: int, type: str) -> None:
    path = new(tmp_path / f"d.{format}", UNEVEN)
    filled(path)
    if type == "child":
        create_child(path, tmp_path / f"c.{format}")
        path = tmp_path / f"c.{format}"
    before = content(path)
    fds = len(list(Path("/proc/self/fd").iterdir()))
    for at in range(1, 100):
        stop = Stop(at)
        try:
            resize(path, size, force=True, progress=stop)
            break
        except Stopped:
            assert content(path) in (before, before[:size].ljust(size, b"\0"))
    assert content(path) == before[:size].ljust(size, b"\0")
    assert at > 2 and len(list(Path("/proc/self/fd").iterdir())) == fds
