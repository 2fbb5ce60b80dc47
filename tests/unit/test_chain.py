"""Parents: found where the child says, believed by id, locked, and closed with the child (disk-formats.md 8, 15.5)."""

import errno
import os
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.chain import MAX_DEPTH
from hvcore.disk.image import describe, describe_chain, open_described, open_image
from hvcore.errors import ImageDamaged, ImageError, ImageInUse, ParentError
from tests.reference import vhd, vhdx
from tests.reference.vhdx import DATA_WRITE, LINKAGE, LOCATOR, METADATA_AT, MIB, pattern

ID = UUID(int=7)


def child(path: Path, *pairs: tuple[str, str], size: int = MIB, sector_size: int = 512) -> Path:
    """A differencing VHDX whose locator has these pairs; all its content is the parent's."""
    vhdx.build(path, size, {}, sector_size=sector_size, has_parent=True)
    items = [*vhdx.standard_items(size, MIB, sector_size, flags=2), (LOCATOR, 4, vhdx.locator(*pairs))]
    with path.open("r+b") as file:
        file.seek(METADATA_AT)
        file.write(vhdx.metadata(items).ljust(MIB, b"\0"))
    return path


def relative(name: str) -> tuple[str, str]:
    return ("relative_path", name)


def base(path: Path, block: int = 1, size: int = MIB, sector_size: int = 512) -> Path:
    vhdx.build(path, size, {0: pattern(block, MIB)}, sector_size=sector_size)
    return path


def reads(path: Path, **options: object) -> bytes:
    with open_image(path, **options) as disk:  # type: ignore[arg-type]
        return disk.read(0, MIB)


def refused(path: Path, **options: object) -> str:
    with pytest.raises(ParentError) as caught:
        open_image(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("name", [".\\base.vhdx", "base.vhdx", "./base.vhdx", "..\\here\\base.vhdx", ".\\.\\base.vhdx"])
def test_relative_path_counts_from_the_childs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    base(here / "base.vhdx", 1)
    base(other / "base.vhdx", 2)
    path = child(here / "child.vhdx", LINKAGE, relative(name))
    (other / "link.vhdx").symlink_to(path)
    for folder in (tmp_path, here, other):
        monkeypatch.chdir(folder)
        for each in (path, Path(os.path.relpath(path)), other / "link.vhdx"):
            assert reads(each) == pattern(1, MIB)


def test_absolute_path_comes_after_the_relative_one(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    base(far / "base.vhdx", 2)
    pairs = (LINKAGE, relative(".\\base.vhdx"), ("absolute_win32_path", str(far / "base.vhdx")))
    path = child(tmp_path / "child.vhdx", *pairs)
    assert reads(path) == pattern(2, MIB)
    base(tmp_path / "base.vhdx", 1)
    assert reads(path) == pattern(1, MIB)
    assert describe(path).parent == str(tmp_path / "base.vhdx")


def test_named_parent_is_the_only_one_tried(tmp_path: Path) -> None:
    base(tmp_path / "base.vhdx", 1)
    base(tmp_path / "named.vhdx", 2)
    path = child(tmp_path / "child.vhdx", LINKAGE, relative(".\\base.vhdx"))
    assert reads(path, parent=tmp_path / "named.vhdx") == pattern(2, MIB)
    assert "missing.vhdx: no such file" in refused(path, parent=tmp_path / "missing.vhdx")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("absolute_win32_path", "C:\\base.vhdx"), "C:\\base.vhdx: a path of Windows"),
        (("absolute_win32_path", "\\\\?\\C:\\base.vhdx"), "a path of Windows"),
        (("volume_path", "\\\\?\\Volume{1}\\base.vhdx"), "it names no parent that can be followed here"),
        (relative("C:base.vhdx"), "not a relative path"),
        (relative("\\base.vhdx"), "not a relative path"),
        (relative("\\\\server\\base.vhdx"), "not a relative path"),
        (relative("/etc/passwd"), "not a relative path"),
        (relative("missing.vhdx"), "missing.vhdx: no such file or directory"),
        (relative("child.vhdx\\base.vhdx"), "not a directory"),
        (relative("x" * 5000), "file name too long"),
        (relative("a\nb"), "a\\nb: no such file or directory"),
        (relative("."), "a directory, not an image file"),
        (relative("pipe"), "neither a regular file nor a block device"),
        (relative("../../../../../../../../../../dev/zero"), "neither a regular file nor a block device"),
    ],
)
def test_names_that_lead_to_no_image(tmp_path: Path, pair: tuple[str, str], words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = child(tmp_path / "child.vhdx", LINKAGE, pair)
    message = refused(path)
    assert words in message and len(message) < 1000


def test_all_that_was_tried_is_named(tmp_path: Path) -> None:
    pairs = (relative(".\\near.vhdx"), ("absolute_win32_path", "/nowhere/far.vhdx"))
    message = refused(child(tmp_path / "child.vhdx", LINKAGE, *pairs))
    assert f"{tmp_path}/near.vhdx: no such" in message and "/nowhere/far.vhdx: no such" in message


@pytest.mark.parametrize("outside", ["../base.vhdx", "link.vhdx"])
def test_no_parent_outside_of_the_root(tmp_path: Path, outside: str) -> None:
    base(tmp_path / "base.vhdx")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.vhdx").symlink_to(tmp_path / "base.vhdx")
    path = child(root / "child.vhdx", LINKAGE, relative(outside))
    assert reads(path) == pattern(1, MIB)
    assert "lies outside of" in refused(path, parent_root=root)
    base(root / "inside.vhdx")
    assert reads(path, parent=root / "inside.vhdx", parent_root=root) == pattern(1, MIB)
    assert "lies outside of" in refused(path, parent=tmp_path / "base.vhdx", parent_root=root)


def test_wrong_id_names_both_and_the_remedy(tmp_path: Path) -> None:
    base(tmp_path / "base.vhdx")
    other = ("parent_linkage", f"{{{ID}}}")
    path = child(tmp_path / "child.vhdx", other, relative("base.vhdx"))
    message = refused(path)
    assert str(ID) in message and str(DATA_WRITE) in message and "hvcore vhd rebase" in message
    assert f"{path}: {tmp_path / 'base.vhdx'}: not the parent" in message
    second = ("parent_linkage2", f"{{{str(DATA_WRITE).upper()}}}")
    assert reads(child(tmp_path / "merging.vhdx", other, second, relative("base.vhdx"))) == pattern(1, MIB)


def test_identity_is_what_a_child_records(tmp_path: Path) -> None:
    assert describe(base(tmp_path / "base.vhdx")).identity == DATA_WRITE
    vhd.build(tmp_path / "base.vhd", MIB, {}, disk_id=ID)
    assert describe(tmp_path / "base.vhd").identity == ID


def test_format_is_the_childs(tmp_path: Path) -> None:
    """16: what the file looks like decides nothing."""
    vhd.build(tmp_path / "base.vhdx", 2 * MIB, {0: vhd.pattern(1, 2 * MIB)})
    path = child(tmp_path / "child.vhdx", LINKAGE, relative("base.vhdx"))
    with pytest.raises(ImageDamaged, match=r"child\.vhdx: .*base\.vhdx: not a VHDX"):
        open_image(path)


def test_sector_sizes_are_equal_along_a_chain(tmp_path: Path) -> None:
    base(tmp_path / "base.vhdx", sector_size=4096)
    message = refused(child(tmp_path / "child.vhdx", LINKAGE, relative("base.vhdx")))
    assert "it has sectors of 4096 bytes, its child of 512" in message


@pytest.mark.parametrize("length", [1, 2, 5])
def test_circle(tmp_path: Path, length: int) -> None:
    for number in range(length):
        child(tmp_path / f"{number}.vhdx", LINKAGE, relative(f"{(number + 1) % length}.vhdx"))
    assert "the chain leads in a circle" in refused(tmp_path / "0.vhdx")
    assert "the chain leads in a circle" in refused(tmp_path / "0.vhdx", mode="r+")
    os.link(tmp_path / "0.vhdx", tmp_path / "other.vhdx")
    child(tmp_path / f"{length - 1}.vhdx" if length > 1 else tmp_path / "1.vhdx", LINKAGE, relative("other.vhdx"))
    assert "circle" in refused(tmp_path / "0.vhdx") or length == 1


@pytest.mark.parametrize("parents", [MAX_DEPTH, MAX_DEPTH + 1])
def test_depth(tmp_path: Path, parents: int) -> None:
    base(tmp_path / "0.vhdx", 5)
    for number in range(1, parents + 1):
        child(tmp_path / f"{number}.vhdx", LINKAGE, relative(f"{number - 1}.vhdx"))
    path = tmp_path / f"{parents}.vhdx"
    if parents > MAX_DEPTH:
        assert f"more than {MAX_DEPTH} parents" in refused(path)
        return
    assert reads(path, mode="r+") == pattern(5, MIB)
    assert len(describe_chain(path)) == parents + 1


def test_fault_of_a_grandparent_is_told_with_the_whole_way(tmp_path: Path) -> None:
    base(tmp_path / "a.vhdx")
    child(tmp_path / "b.vhdx", LINKAGE, relative("a.vhdx"))
    path = child(tmp_path / "c.vhdx", LINKAGE, relative("b.vhdx"))
    with (tmp_path / "a.vhdx").open("r+b") as file:
        file.seek(METADATA_AT)
        file.write(b"mistaken")
    words = ": ".join(str(tmp_path / name) for name in ("c.vhdx", "b.vhdx", "a.vhdx"))
    with pytest.raises(ImageDamaged, match="the metadata table's signature is missing") as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{words}: ")
    (tmp_path / "a.vhdx").unlink()
    assert refused(path).startswith(f"{tmp_path / 'c.vhdx'}: {tmp_path / 'b.vhdx'}: its parent cannot be opened")


def test_chain_is_locked_while_it_is_open(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx")
    path = child(tmp_path / "child.vhdx", LINKAGE, relative("base.vhdx"))
    with open_image(path, mode="r+"):
        with pytest.raises(ImageInUse, match=r"base\.vhdx: in use"):
            open_image(parent, mode="r+")
        assert reads(parent) == pattern(1, MIB)
    with open_image(parent, mode="r+"), pytest.raises(ImageInUse, match=r"child\.vhdx: .*base\.vhdx: in use") as caught:
        open_image(path)
    assert caught.value.errno == errno.EBUSY
    open_image(parent, mode="r+").close()


def test_refusals_leave_no_file_open(tmp_path: Path) -> None:
    base(tmp_path / "a.vhdx")
    child(tmp_path / "b.vhdx", ("parent_linkage", f"{{{ID}}}"), relative("a.vhdx"))
    path = child(tmp_path / "c.vhdx", LINKAGE, relative("b.vhdx"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for mode in ("r", "r+"):
        refused(path, mode=mode)
    vhdx.build(tmp_path / "b.vhdx", MIB, {0: 4}, has_parent=True)  # found when its table is read
    base(tmp_path / "base.vhdx")
    with pytest.raises(ImageDamaged, match=r"c\.vhdx: .*b\.vhdx: .*state that does not exist"):
        open_image(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_beyond_a_smaller_parent_are_zeros(tmp_path: Path) -> None:
    base(tmp_path / "base.vhdx")
    path = child(tmp_path / "child.vhdx", LINKAGE, relative("base.vhdx"), size=3 * MIB)
    with open_image(path) as disk:
        assert disk.read(0, 3 * MIB) == pattern(1, MIB) + bytes(2 * MIB)


@pytest.mark.parametrize("id_fits", [True, False])
def test_vhd_by_unique_id(tmp_path: Path, id_fits: bool) -> None:
    vhd.build(tmp_path / "base.vhd", 2 * MIB, {0: vhd.pattern(1, 2 * MIB)}, disk_id=ID)
    path = tmp_path / "child.vhd"
    parent = ID if id_fits else UUID(int=8)
    vhd.build(path, 2 * MIB, {}, disk_id=UUID(int=9), parent=(parent, "base.vhd"))
    if id_fits:
        assert reads(path) == vhd.pattern(1, 2 * MIB)[:MIB]
        assert describe(path).type == "differencing"
    else:
        message = refused(path)
        assert str(ID) in message and str(parent) in message and "hvcore vhd rebase" in message


def test_vhd_parent_by_its_name_alone(tmp_path: Path) -> None:
    """The locator leads nowhere, the name is that of a file beside the child."""
    vhd.build(tmp_path / "base.vhd", 2 * MIB, {0: vhd.pattern(1, 2 * MIB)}, disk_id=ID)
    path = tmp_path / "child.vhd"
    vhd.build(path, 2 * MIB, {}, disk_id=UUID(int=9), parent=(ID, "base.vhd"))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(".\\base.vhd".encode("utf-16-le"), ".\\gone.vhd".encode("utf-16-le")))
    assert reads(path) == vhd.pattern(1, 2 * MIB)[:MIB]


def test_vhd_time_of_the_parent_is_only_noted(tmp_path: Path) -> None:
    vhd.build(tmp_path / "base.vhd", 2 * MIB, {}, disk_id=ID)
    path = tmp_path / "child.vhd"
    vhd.build(path, 2 * MIB, {}, disk_id=UUID(int=9), parent=(ID, "base.vhd"))
    raw = bytearray(path.read_bytes())
    raw[512:1536] = vhd.header(1, parent_id=ID, timestamp=12345, name="base.vhd".encode("utf-16-be"))
    path.write_bytes(raw)
    assert describe(path).notes == ("the parent was modified at another time than recorded",)
    os.utime(tmp_path / "base.vhd", (0, 946_684_800 + 12345))
    assert describe(path).notes == ()


def test_notes_of_parents_are_the_childs(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx")
    with parent.open("r+b") as file:
        file.seek(256 << 10)
        file.write(bytes(16))
    path = child(tmp_path / "child.vhdx", LINKAGE, relative("base.vhdx"))
    disk, info = open_described(path)
    disk.close()
    assert info.notes == (f"{parent}: region table 2 is damaged",)


def test_arguments_of_a_disk_without_parent_mean_nothing(tmp_path: Path) -> None:
    assert reads(base(tmp_path / "base.vhdx"), parent="missing", parent_root=tmp_path) == pattern(1, MIB)
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "missing.vhdx")
