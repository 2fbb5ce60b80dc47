"""hvcore.vhd.create: complete files or none."""

import errno
import resource
from pathlib import Path

import pytest

from hvcore.disk.vhd.footer import parse
from hvcore.errors import ImageError
from hvcore.vhd import Image, create, info
from hvcore.vhd import open as open_vhd

SIZE = 1 << 20


@pytest.mark.parametrize("preallocate", [True, False])
@pytest.mark.parametrize("format", ["raw", "vhd"])
def test_new_image_is_zeros_and_writable(tmp_path: Path, format: str, preallocate: bool) -> None:
    path = tmp_path / "new"
    create(path, SIZE, format, "fixed", preallocate=preallocate)
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]
    with open_vhd(path, "r+", format if format == "raw" else None) as image:
        assert isinstance(image, Image)
        assert (image.size, image.sector_size, image.read_only, image.parent) == (SIZE, 512, False, None)
        assert image.read(0, SIZE) == bytes(SIZE)
        image.write(512, b"x" * 512)
        image.flush()
        buffer = bytearray(1024)
        image.readinto(0, buffer)
        assert buffer == bytes(512) + b"x" * 512
        assert sum(extent.length for extent in image.extents()) == SIZE


def test_vhd_file_is_the_size_and_a_footer(tmp_path: Path) -> None:
    create(tmp_path / "new.vhd", SIZE, "vhd", "fixed")
    raw = (tmp_path / "new.vhd").read_bytes()
    footer = parse(raw[-512:])
    assert len(raw) == SIZE + 512
    assert footer is not None and (footer.size, footer.disk_type, footer.creator) == (SIZE, 2, b"win ")
    assert footer.timestamp > 26 * 365 * 86400
    create(tmp_path / "other.vhd", SIZE, "vhd", "fixed")
    assert info(tmp_path / "other.vhd").disk_id != footer.disk_id


def test_space_is_reserved(tmp_path: Path) -> None:
    create(tmp_path / "full", SIZE, "raw", "fixed")
    create(tmp_path / "sparse", SIZE, "raw", "fixed", preallocate=False)
    assert (tmp_path / "full").stat().st_blocks * 512 >= SIZE > (tmp_path / "sparse").stat().st_blocks * 512


@pytest.mark.parametrize("target", ["file", "link", "dangling"])
def test_existing_name_is_never_touched(tmp_path: Path, target: str) -> None:
    path = tmp_path / "there"
    if target == "file":
        path.write_bytes(b"precious")
    else:
        path.symlink_to(tmp_path / target)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ImageError, match="there: exists already") as caught:
        create(path, SIZE, "vhd", "fixed")
    assert caught.value.errno == errno.EEXIST
    assert sorted(tmp_path.iterdir()) == before
    assert target != "file" or path.read_bytes() == b"precious"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="new: no such file"):
        create(tmp_path / "no" / "new", SIZE)


def test_no_space_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))
        with pytest.raises(ImageError, match="new: file too large"):
            create(tmp_path / "new", SIZE, "vhd", "fixed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "format", "type"),
    [
        (0, "vhd", "fixed"),
        (-512, "vhd", "fixed"),
        (513, "raw", "fixed"),
        ((2040 << 30) + 512, "vhd", "fixed"),
        (SIZE, "qcow2", "fixed"),
    ],
)
def test_arguments_are_refused(tmp_path: Path, size: int, format: str, type: str) -> None:
    with pytest.raises(ValueError, match=r"multiple of 512|2040 GiB|is one of"):
        create(tmp_path / "new", size, format, type)
    assert list(tmp_path.iterdir()) == []
