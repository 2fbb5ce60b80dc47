"""open_image: recognition, refusals and their words."""

import errno
import os
import socket
import stat
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from hvcore.disk.image import open_image
from hvcore.disk.vhd.footer import FIXED, build, new_footer
from hvcore.errors import Error, ImageError
from hvcore.vhd import info
from hvcore.vhd import open as open_vhd
from tests.reference import vhdx
from tests.reference.vhdx import MIB

ID = uuid.UUID("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
SIZE = 64 << 10


def footer(size: int = SIZE, **changes: object) -> bytes:
    """A fixed VHD's footer with fields changed: name -> (offset, format, value); the checksum fits."""
    raw = bytearray(build(new_footer(size, FIXED, ID, 0)))
    for offset, layout, value in changes.values():
        struct.pack_into(layout, raw, offset, value)
    raw[64:68] = bytes(4)
    raw[64:68] = struct.pack(">I", ~sum(raw) & 0xFFFFFFFF)
    return bytes(raw)


def refused(path: Path, words: str, code: int | None = None, **options: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        open_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert isinstance(caught.value, OSError) and isinstance(caught.value, Error)
    assert code is None or caught.value.errno == code


def test_raw_only_by_name(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    path.write_bytes(b"r" * SIZE)
    refused(path, 'format is not recognised.*format="raw"')
    with open_image(path, format="raw") as disk:
        assert disk.read(0, SIZE) == b"r" * SIZE


def test_raw_sector_size(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    path.write_bytes(bytes(8192 + 512))
    with open_image(path, format="raw") as disk:
        assert (disk.size, disk.sector_size) == (8704, 512)
    with pytest.raises(ImageError, match="8704 bytes, is not a multiple of the sector size 4096"):
        open_image(path, format="raw", sector_size=4096)
    os.truncate(path, 8192)
    with open_image(path, format="raw", sector_size=4096) as disk:
        assert (disk.sector_size, disk.physical_sector_size) == (4096, 4096)
        with pytest.raises(ValueError, match="sector size 4096"):
            disk.read(512, 4096)


def test_raw_size_is_never_rounded(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    path.write_bytes(bytes(1000))
    refused(path, "its size, 1000 bytes, is not a multiple of the sector size 512", format="raw")


def test_fixed_vhd_by_content(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    path.write_bytes(b"v" * SIZE + footer())
    with open_vhd(path, "r+") as image:
        assert (image.size, image.format, image.info.type, image.block_size) == (SIZE, "vhd", "fixed", None)
        image.write(SIZE - 512, b"w" * 512)
        image.flush()
        with pytest.raises(ValueError, match="beyond the disk"):
            image.write(SIZE, b"w" * 512)
    assert path.read_bytes() == b"v" * (SIZE - 512) + b"w" * 512 + footer()
    assert info(path).disk_id == ID


def test_guest_data_do_not_decide_a_vhd(tmp_path: Path) -> None:
    """Sector 0 of a fixed VHD is the guest's: a dynamic disk's head there means nothing (disk-formats.md 15.5)."""
    path = tmp_path / "d.vhd"
    path.write_bytes(footer(t=(60, ">I", 3)) + bytes(SIZE - 512) + footer())
    assert info(path).type == "fixed"


def test_both_formats_at_once_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d"
    vhdx.build(path, MIB, {0: vhdx.pattern(0, MIB)})
    size = path.stat().st_size - 512
    with path.open("r+b") as file:
        file.seek(size)
        file.write(footer(size))
    refused(path, "looks like a VHDX and like a fixed VHD: name the format")
    assert info(path, "vhdx").size == MIB
    assert info(path, "vhd").size == size


def test_vhdx_that_ends_in_a_broken_footer(tmp_path: Path) -> None:
    path = tmp_path / "d"
    vhdx.build(path, MIB, {0: vhdx.pattern(0, MIB)})
    with path.open("r+b") as file:
        file.seek(-512, os.SEEK_END)
        file.write(b"conectix")
    assert info(path).format == "vhdx"


def test_footer_of_511_bytes(tmp_path: Path) -> None:
    path = tmp_path / "old.vhd"
    path.write_bytes(b"v" * SIZE + footer()[:511])
    with open_image(path) as disk:
        assert disk.read(0, SIZE) == b"v" * SIZE


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (footer()[:300] + b"\1" + footer()[301:], "footer is damaged: its checksum is wrong"),
        (footer(t=(60, ">I", 3)), "footer places the dynamic header at 18446744073709551615, where it cannot be"),
        (footer(t=(60, ">I", 4), d=(16, ">Q", 512)), "the dynamic header is missing"),
        (footer(t=(60, ">I", 5)), "VHD type 5 is not supported"),
        (footer(t=(60, ">I", 0)), "VHD type 0 is not supported"),
        (footer(v=(12, ">I", 0x00020000)), "version 0x00020000 is not supported"),
        (footer(s=(48, ">Q", SIZE + 512)), "says 66048 bytes, the file holds 65536"),
        (footer(s=(48, ">Q", SIZE - 512)), "says 65024 bytes, the file holds 65536"),
        (footer(s=(48, ">Q", (1 << 64) - 512)), "says .* bytes, the file holds 65536"),
    ],
)
def test_damaged_footer(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "bad.vhd"
    path.write_bytes(bytes(SIZE) + raw)
    refused(path, words)
    refused(path, words, format="vhd")


def test_size_of_half_a_sector(tmp_path: Path) -> None:
    path = tmp_path / "bad.vhd"
    path.write_bytes(bytes(1000) + footer(1000))
    refused(path, "VHD size 1000 is not a multiple of 512")


def test_footer_alone(tmp_path: Path) -> None:
    path = tmp_path / "bad.vhd"
    path.write_bytes(footer(0))
    refused(path, "VHD size 0 is not")


def test_head_of_a_dynamic_vhd_whose_tail_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "bad.vhd"
    path.write_bytes(footer(t=(60, ">I", 3), d=(16, ">Q", 512)) + bytes(4096))
    refused(path, "the dynamic header is missing")
    path.write_bytes(footer(t=(60, ">I", 4), d=(16, ">Q", 512)) + bytes(4096))
    refused(path, "a differencing VHD whose footer at the end is missing; .*hvcore vhd repair --trust-head")
    # A fixed disk with a damaged footer: what its guest wrote into sector 0 decides nothing.
    path.write_bytes(footer(t=(60, ">I", 3), d=(16, ">Q", 512)) + bytes(4096) + footer()[:511] + b"\1")
    refused(path, "the VHD footer is damaged: its checksum is wrong")


@pytest.mark.parametrize("length", [1, 8, 511, 512, 513, SIZE, SIZE + 510])
def test_truncated_vhd(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.vhd"
    path.write_bytes((bytes(SIZE) + footer())[:length])
    refused(path, "not a VHD|holds", format="vhd")


def test_wrong_format_named(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(bytes(MIB))
    refused(path, "not a VHDX", format="vhdx")
    refused(path, "not a VHD: there is no footer", format="vhd")


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "no", "no such file", errno.ENOENT)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "e").touch()
    for format in ("raw", "vhd", "vhdx"):
        refused(tmp_path / "e", "the file is empty", format=format)


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "a directory")


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer
    refused(tmp_path / "fifo", "neither a regular file nor a block device", format="raw")
    refused(Path("/dev/null"), "neither a regular file nor a block device", format="raw")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "s"))
        refused(tmp_path / "s", "neither a regular file nor a block device")


def test_endless_links(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to(tmp_path / "l")
    refused(tmp_path / "l", "too many levels", errno.ELOOP)


AS_NOBODY = """
import os, sys
from hvcore.disk.image import open_image
from hvcore.errors import ImageError
if os.geteuid() == 0:
    os.setuid(65534)
try:
    open_image(sys.argv[1], mode=sys.argv[2], format="raw")
except ImageError as error:
    print(error)
"""


@pytest.mark.parametrize(("mode", "bits"), [("r", 0), ("r+", 0o444)])
def test_permission(tmp_path: Path, mode: str, bits: int) -> None:
    path = tmp_path / "d.raw"
    path.write_bytes(bytes(512))
    path.chmod(bits)
    for folder in [tmp_path, tmp_path.parent, tmp_path.parent.parent]:
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, path, mode], capture_output=True, text=True)
    assert done.stdout == f"{path}: permission denied\n", done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "w"},
        {"format": "qcow2"},
        {"sector_size": 4096},
        {"format": "vhd", "sector_size": 512},
        {"format": "raw", "sector_size": 1024},
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"mode|format|sector_size"):
        open_image(tmp_path / "any", **options)


def test_nothing_stays_open_after_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"x" * 1024)
    before = [entry.name for entry in Path("/proc/self/fd").iterdir()]
    for format in (None, "vhd", "vhdx"):
        refused(path, "not", format=format)
    assert [entry.name for entry in Path("/proc/self/fd").iterdir()] == before


def test_block_device(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 16384)
    try:
        loop = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("cannot make a loop device (losetup, package mount)")
    device = loop.stdout.strip()
    try:
        with open_image(device, mode="r+", format="raw") as disk:
            assert disk.size == 4 * MIB
            assert disk.read(0, 4096) == bytes(range(256)) * 16
            disk.write(4096, b"d" * 512)
            disk.flush()
            assert disk.read(4096, 512) == b"d" * 512
            disk.trim(4096, 4096)
            assert disk.read(4096, 4096) == bytes(4096)
            assert len(list(disk.extents())) == 1
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
