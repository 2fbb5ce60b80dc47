"""FileDisk and the medium below it: ranges, errors, holes, the journal."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile, Probe
from hvcore.disk.vector import flush, readv, trim, writev
from hvcore.errors import DiskError
from tests.reference import journal

OK, RANGE, READ_ONLY, READ_ERROR, WRITE_ERROR, NO_SPACE, WOULD_BLOCK, UNSUPPORTED, CLOSED = range(0, -9, -1)
SIZE = 64 << 10


def content() -> bytes:
    return bytes(n * 7 % 251 for n in range(SIZE))


def make(
    tmp_path: Path, *, write: bool = True, base: int = 0, probe: Probe | None = None, **options: object
) -> FileDisk:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"B" * base + content() + b"E" * 512)
    fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
    return FileDisk(ImageFile(fd, probe=probe), SIZE, base=base, read_only=not write, **options)


def test_reads_what_the_file_holds(tmp_path: Path) -> None:
    with make(tmp_path, base=1024) as disk:
        assert disk.read(0, SIZE) == content()
        assert disk.size == SIZE and disk.sector_size == disk.physical_sector_size == 512


def test_writes_stay_inside_the_disk(tmp_path: Path) -> None:
    with make(tmp_path, base=1024) as disk:
        disk.write(0, b"x" * 512)
        disk.write(SIZE - 512, b"y" * 512)
        disk.flush()
    after = (tmp_path / "disk.raw").read_bytes()
    assert after == b"B" * 1024 + b"x" * 512 + content()[512:-512] + b"y" * 512 + b"E" * 512


def test_pieces_of_any_length(tmp_path: Path) -> None:
    lengths = [1, 0, 511, 4096, 3, 1021]
    with make(tmp_path) as disk:
        pieces = [bytearray(n) for n in lengths]
        assert readv(disk, 77, pieces) == OK
        assert b"".join(pieces) == content()[77 : 77 + sum(lengths)]
        assert writev(disk, 1000, pieces) == OK
        assert disk.read(0, SIZE)[1000 : 1000 + sum(lengths)] == content()[77 : 77 + sum(lengths)]


@pytest.mark.parametrize("offset", [SIZE - 1, SIZE, SIZE + 1, 1 << 63, (1 << 64) - 1])
def test_range_is_checked_by_subtraction(tmp_path: Path, offset: int) -> None:
    with make(tmp_path, can_trim=True) as disk:
        assert readv(disk, offset, [bytearray(2)]) == RANGE
        assert writev(disk, offset, [b"ab"]) == RANGE
        assert trim(disk, offset, 2) == RANGE
        assert trim(disk, 2, (1 << 64) - 1) == RANGE
    assert (tmp_path / "disk.raw").read_bytes() == content() + b"E" * 512


def test_too_many_pieces(tmp_path: Path) -> None:
    with make(tmp_path) as disk:
        assert readv(disk, 0, [bytearray(1)] * 1024) == OK
        assert readv(disk, 0, [bytearray(1)] * 1025) == RANGE


def test_empty_transfer_at_the_end(tmp_path: Path) -> None:
    with make(tmp_path) as disk:
        assert readv(disk, SIZE, []) == OK
        assert writev(disk, SIZE, [b""]) == OK


def test_read_only_disk_refuses_changes(tmp_path: Path) -> None:
    with make(tmp_path, write=False) as disk:
        assert disk.read_only
        assert [writev(disk, 0, [b"x"]), flush(disk), trim(disk, 0, 512)] == [READ_ONLY] * 3
        with pytest.raises(DiskError, match="read-only") as caught:
            disk.write(0, bytes(512))
        assert caught.value.errno == errno.EROFS


def test_file_cut_short_after_opening(tmp_path: Path) -> None:
    with make(tmp_path) as disk:
        os.truncate(tmp_path / "disk.raw", 4096)
        assert readv(disk, 0, [bytearray(4096)]) == OK
        assert readv(disk, 2048, [bytearray(1024), bytearray(4096)]) == READ_ERROR
        with pytest.raises(DiskError, match="could not be read"):
            disk.read(4096, 512)


def test_nowait_on_cached_data(tmp_path: Path) -> None:
    """Written just now, so in the page cache; a file system that cannot tell says so instead."""
    with make(tmp_path) as disk:
        pieces = [bytearray(512), bytearray(1024)]
        status = readv(disk, 512, pieces, nowait=True)
        assert status in (OK, WOULD_BLOCK)
        assert status == WOULD_BLOCK or b"".join(pieces) == content()[512:2048]
        assert writev(disk, 0, [b"z" * 512], nowait=True) in (OK, WOULD_BLOCK)


def test_nowait_where_it_is_not_supported() -> None:
    """/proc files know no RWF_NOWAIT: the answer is to come again from a thread that may block."""
    with FileDisk(ImageFile(os.open("/proc/version", os.O_RDONLY)), 512) as disk:
        for _ in range(2):
            assert readv(disk, 0, [bytearray(1)], nowait=True) == WOULD_BLOCK
        assert readv(disk, 0, [bytearray(1)]) == OK


def test_trim_leaves_zeros(tmp_path: Path) -> None:
    with make(tmp_path, can_trim=True) as disk:
        disk.trim(4096, 8192)
        assert disk.read(0, SIZE) == content()[:4096] + bytes(8192) + content()[12288:]
        disk.trim(0, 0)
    assert (tmp_path / "disk.raw").stat().st_size == SIZE + 512


def test_trim_unless_allowed(tmp_path: Path) -> None:
    with make(tmp_path) as disk:
        assert trim(disk, 0, 4096) == UNSUPPORTED


def test_extents_show_holes(tmp_path: Path) -> None:
    with make(tmp_path, base=4096, can_trim=True) as disk:
        assert list(disk.extents()) == [(0, SIZE, "data", 4096)]
        disk.trim(8192, 16384)
        assert list(disk.extents()) == [
            (0, 8192, "data", 4096),
            (8192, 16384, "zero", None),
            (24576, SIZE - 24576, "data", 4096 + 24576),
        ]
        disk.trim(24576, SIZE - 24576)
        assert sum(length for _, length, _, _ in disk.extents()) == SIZE


def test_failed_flush_is_for_ever(tmp_path: Path) -> None:
    """A pipe cannot be synced; then a good file takes its place, and still nothing is promised (rule 12)."""
    good = os.open(tmp_path / "good", os.O_RDWR | os.O_CREAT)
    os.truncate(good, SIZE)
    reader, fd = os.pipe()
    with FileDisk(ImageFile(fd), SIZE, read_only=False, can_trim=True) as disk:
        assert flush(disk) == WRITE_ERROR
        os.dup2(good, fd)
        assert flush(disk) == WRITE_ERROR
        assert writev(disk, 0, [b"x"]) == WRITE_ERROR
        assert trim(disk, 0, 512) == WRITE_ERROR
        assert readv(disk, 0, [bytearray(1)]) == OK
    os.close(good)
    os.close(reader)


def test_write_error_is_not_sticky(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "disk", os.O_RDONLY | os.O_CREAT)
    with FileDisk(ImageFile(fd), SIZE, read_only=False) as disk:
        assert writev(disk, 0, [b"x"]) == WRITE_ERROR
        assert flush(disk) == OK


def test_file_size_limit_is_no_space(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDWR)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    with FileDisk(ImageFile(fd), SIZE, read_only=False) as disk:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
            statuses = [writev(disk, at, [b"x" * 2048, b"y" * 2048]) for at in (0, 4096, 6144, 8192)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert statuses == [OK, OK, NO_SPACE, NO_SPACE]
        assert disk.read(0, 6144) == (b"x" * 2048 + b"y" * 2048 + b"x" * 2048)


FULL = """
import os, sys
from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile
from hvcore.errors import DiskError
fd = os.open(sys.argv[1] + "/disk.raw", os.O_RDWR | os.O_CREAT)
os.truncate(fd, 4 << 20)
with FileDisk(ImageFile(fd), 4 << 20, read_only=False) as disk:
    try:
        for at in range(0, 4 << 20, 65536):
            disk.write(at, b"x" * 65536)
    except DiskError as error:
        print(error.errno, error, at <= 1 << 20)
    assert disk.read(0, 65536) == b"x" * 65536
"""


def test_full_file_system(tmp_path: Path) -> None:
    """A tmpfs of 1 MiB in a mount namespace of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1M none '{tmp_path}'"
    if subprocess.run([*command, mount], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs in a namespace (unshare, package util-linux)")
    script = f'{mount} && exec "$0" -c "$1" \'{tmp_path}\''
    done = subprocess.run([*command, script, sys.executable, FULL], capture_output=True, text=True)
    assert done.stdout == f"{errno.ENOSPC} no space left for the image True\n", done.stderr


def test_closed_disk_refuses(tmp_path: Path) -> None:
    disk = make(tmp_path)
    disk.close()
    disk.close()
    assert readv(disk, 0, [bytearray(1)]) == CLOSED
    with pytest.raises(ValueError, match="closed"):
        disk.read(0, 512)
    with pytest.raises(ValueError, match="closed"):
        disk.extents()


def test_close_ends_the_descriptor(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    FileDisk(ImageFile(fd), SIZE).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("size", "options"),
    [(0, {}), (511, {}), (513, {}), (4096 + 512, {"sector_size": 4096}), (512, {"sector_size": 1024}), (1 << 63, {})],
)
def test_sizes_that_make_no_sense(size: int, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"size|beyond"):
        FileDisk(ImageFile(os.memfd_create("image")), size, **options)


def test_journal_records_what_reached_the_file(tmp_path: Path) -> None:
    log = os.memfd_create("journal")
    probe = Probe(log)
    with make(tmp_path, base=512, can_trim=True, probe=probe) as disk:
        assert writev(disk, 1024, [b"ab", b"", b"c" * 510]) == OK
        disk.flush()
        disk.trim(0, 512)
        probe.journal = -1
        disk.write(0, bytes(512))
    records = journal.parse(os.pread(log, 1 << 20, 0))
    os.close(log)
    assert records == [
        (journal.WRITE, 0, 1536, 512, b"ab" + b"c" * 510),
        (journal.FLUSH, 0, 0, 0, b""),
        (journal.FLUSHED, 0, 0, 0, b""),
        (journal.PUNCH, 0, 512, 512, bytes(512)),
    ]


def test_journal_that_cannot_be_written_fails_the_request(tmp_path: Path) -> None:
    log = os.open("/dev/full", os.O_WRONLY)
    with make(tmp_path, probe=Probe(log)) as disk:
        assert writev(disk, 0, [b"x"]) == WRITE_ERROR
    os.close(log)
