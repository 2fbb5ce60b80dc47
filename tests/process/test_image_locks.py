"""One writer or any number of readers: between hvcore's own opens, processes, and QEMU's."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hvcore.disk.image import open_image
from hvcore.errors import ImageError
from hvcore.vhd import create
from tests.reference import vhdx

MIB = 1 << 20
SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "d.vhd", SIZE, "vhd", "fixed")
    return tmp_path / "d.vhd"


def refused(path: Path, mode: str, **options: str) -> None:
    with pytest.raises(ImageError, match="in use by") as caught:
        open_image(path, mode=mode, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.errno == errno.EBUSY


def test_readers_share(path: Path) -> None:
    with open_image(path), open_image(path):
        refused(path, "r+")
    open_image(path, mode="r+").close()


def test_writer_is_alone(path: Path) -> None:
    with open_image(path, mode="r+"):
        refused(path, "r")
        refused(path, "r+")
    open_image(path).close()


def test_refused_open_leaves_no_lock(path: Path) -> None:
    with open_image(path):
        refused(path, "r+")
        open_image(path).close()
    with pytest.raises(ImageError, match="not a VHDX"):
        open_image(path, mode="r+", format="vhdx")
    open_image(path, mode="r+").close()


HOLD = """
import sys
from hvcore.disk.image import open_image
disk = open_image(sys.argv[1], mode=sys.argv[2])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("theirs", "ours"), [("r", "r+"), ("r+", "r"), ("r+", "r+")])
def test_lock_of_another_process_ends_with_it(path: Path, theirs: str, ours: str) -> None:
    command = [sys.executable, "-c", HOLD, path, theirs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        refused(path, ours)
        process.kill()
        process.wait()
        open_image(path, mode=ours).close()


def need_qemu() -> None:
    if not shutil.which("qemu-io"):
        pytest.skip("needs qemu-io (package qemu-utils)")


@contextmanager
def qemu_holds(path: Path, format: str, *options: str) -> Iterator[None]:
    """A qemu-io that has the image open; its answer to a command says so."""
    command = ["qemu-io", "-f", format, *options, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        assert process.stdout.readline() == "qemu-io> 1 MiB\n"
        yield
        process.communicate("quit\n")
        assert process.returncode == 0


def qemu_opens(path: Path, format: str, *options: str) -> bool:
    command = ["qemu-io", "-f", format, *options, "-c", "length", path]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 or "lock" in done.stderr, done.stderr
    return done.returncode == 0


def test_qemu_writes(path: Path) -> None:
    need_qemu()
    with qemu_holds(path, "vpc"):
        refused(path, "r")
        refused(path, "r+")


def test_qemu_reads(path: Path) -> None:
    need_qemu()
    with qemu_holds(path, "vpc", "-r"):
        refused(path, "r+")
        open_image(path).close()


def test_qemu_is_kept_out_by_a_writer(path: Path) -> None:
    need_qemu()
    with open_image(path, mode="r+"):
        assert not qemu_opens(path, "vpc")
        assert not qemu_opens(path, "vpc", "-r")
    assert qemu_opens(path, "vpc")


def test_qemu_may_read_beside_a_reader(path: Path) -> None:
    need_qemu()
    with open_image(path):
        assert not qemu_opens(path, "vpc")
        assert qemu_opens(path, "vpc", "-r")


def test_qemu_and_raw_images(tmp_path: Path) -> None:
    need_qemu()
    path = tmp_path / "d.raw"
    create(path, SIZE, "raw")
    with qemu_holds(path, "raw"):
        refused(path, "r", format="raw")
        refused(path, "r+", format="raw")
    with open_image(path, format="raw"):
        assert not qemu_opens(path, "raw")
        assert qemu_opens(path, "raw", "-r")
    with open_image(path, mode="r+", format="raw"):
        assert not qemu_opens(path, "raw")


def test_qemu_and_vhdx(tmp_path: Path) -> None:
    need_qemu()
    path = tmp_path / "d.vhdx"
    vhdx.build(path, MIB, {0: vhdx.pattern(0, MIB)})
    with qemu_holds(path, "vhdx"):
        refused(path, "r")
    with open_image(path):
        assert not qemu_opens(path, "vhdx")
        assert qemu_opens(path, "vhdx", "-r")
