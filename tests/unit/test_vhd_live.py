"""Checkpoints: what the image of before keeps, where the disk goes on, and what a failure leaves."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hvcore import vhd
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.errors import DiskError, ImageError, ParentError
from hvcore.vhd import live

MIB = 1 << 20
SIZE = 6 * MIB
KINDS = [("vhdx", "dynamic"), ("vhdx", "fixed"), ("vhd", "dynamic")]


def sector(number: int, turn: int = 0) -> bytes:
    return (number << 8 | turn).to_bytes(8, "little") * 64


@pytest.mark.parametrize(("format", "type"), KINDS)
def test_before_is_kept_and_after_goes_on(tmp_path: Path, format: str, type: str) -> None:
    names = [tmp_path / f"{n}.{format}" for n in range(3)]
    vhd.create(names[0], SIZE, format, type)
    with vhd.open(names[0], "r+") as image:
        for turn in range(3):
            for number in range(turn, 4000, 97):
                image.write(number * 512, sector(number, turn))
            if turn < 2:
                image.checkpoint(names[turn + 1])
                assert (image.parent, image.info.path) == (str(names[turn]), str(names[turn + 1]))
        assert image.read(97 * 512, 512) == sector(97)
        assert image.read(98 * 512, 512) == sector(98, 1)
    assert [each.path for each in vhd.chain(names[2])] == [str(name) for name in reversed(names)]
    for turn, name in enumerate(names):
        assert vhd.check(name).clean
        with vhd.open(name) as image:
            for number in range(300):
                written = [each for each in range(turn + 1) if number >= each and (number - each) % 97 == 0]
                assert image.read(number * 512, 512) == (sector(number, written[-1]) if written else bytes(512))


def test_the_one_below_is_clean_and_only_read(tmp_path: Path) -> None:
    path, child = tmp_path / "a.vhdx", tmp_path / "b.vhdx"
    vhd.create(path, SIZE)
    with vhd.open(path, "r+") as image:
        image.write(0, b"a" * 512)
        image.checkpoint(child)
        held = path.read_bytes()
        with vhd.open(path) as below:  # readers are let in, as a reader is all that holds it
            assert below.read(0, 512) == b"a" * 512 and below.info.notes == ()
        with pytest.raises(ImageError, match=r"a\.vhdx: in use by another program"):
            vhd.open(path, "r+")
        image.write(0, b"b" * 512)
        image.flush()
        assert path.read_bytes() == held
    vhd.open(path, "r+").close()


@pytest.mark.parametrize("format", ["raw", "vhd"])
def test_what_has_no_checkpoints(tmp_path: Path, format: str) -> None:
    path = tmp_path / "disk"
    vhd.create(path, SIZE, format, "fixed")
    with vhd.open(path, "r+", format) as image, pytest.raises(ImageError, match="no raw image"):
        image.checkpoint(tmp_path / "child")
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk"]


def test_read_only_image_has_no_checkpoints(tmp_path: Path) -> None:
    vhd.create(tmp_path / "a.vhdx", SIZE)
    with vhd.open(tmp_path / "a.vhdx") as image, pytest.raises(ImageError, match="open for writing"):
        image.checkpoint(tmp_path / "b.vhdx")


def test_an_existing_name_is_not_touched_and_the_disk_goes_on(tmp_path: Path) -> None:
    path, other = tmp_path / "a.vhdx", tmp_path / "b.vhdx"
    vhd.create(path, SIZE)
    other.write_bytes(b"precious")
    with vhd.open(path, "r+") as image:
        image.write(0, b"a" * 512)
        with pytest.raises(ImageError, match=r"b\.vhdx: exists already"):
            image.checkpoint(other)
        image.write(512, b"b" * 512)
        image.flush()
        assert image.info.path == str(path)
    assert other.read_bytes() == b"precious"
    with vhd.open(path) as image:
        assert image.read(0, 1024) == b"a" * 512 + b"b" * 512


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_a_fault_at_any_call_loses_nothing(tmp_path: Path, format: str) -> None:
    """Each call that touches a file fails in turn, until a checkpoint meets no fault."""
    for at in range(1, 200):
        folder = tmp_path / str(at)
        folder.mkdir()
        path, child = folder / f"a.{format}", folder / f"b.{format}"
        vhd.create(path, SIZE, format)
        failed = False
        with probing(Probe()) as probe:
            image = vhd.open(path, "r+")
            image.write(0, b"a" * 512)
            image.flush()
            probe.fail(at, errno.EIO)
            try:
                image.checkpoint(child)
                image.write(512, b"b" * 512)
                image.flush()
            except (DiskError, ImageError):
                failed = True
            calls = probe.calls
            probe.fail(0, 0)
            try:
                image.close()
            except DiskError:
                assert failed
        last = child if child.exists() else path
        with vhd.open(last) as image:
            assert image.read(0, 512) == b"a" * 512
            assert image.read(512, 512) == b"b" * 512 or failed
        assert vhd.check(last).clean
        assert sorted(entry.name for entry in folder.iterdir()) == sorted({path.name, last.name})
        if not failed:
            break
    assert not failed and calls < 200


def test_depth_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvcore.vhd.live.MAX_DEPTH", 2)
    vhd.create(tmp_path / "0.vhdx", SIZE)
    with vhd.open(tmp_path / "0.vhdx", "r+") as image:
        image.checkpoint(tmp_path / "1.vhdx")
        image.checkpoint(tmp_path / "2.vhdx")
        with pytest.raises(ParentError):
            image.checkpoint(tmp_path / "3.vhdx")
        image.write(0, b"x" * 512)
    assert not (tmp_path / "3.vhdx").exists()


def test_requests_of_other_threads_wait_and_none_fails(tmp_path: Path) -> None:
    path = tmp_path / "0.vhdx"
    vhd.create(path, SIZE, block_size=MIB)
    over = threading.Event()
    with vhd.open(path, "r+") as image, ThreadPoolExecutor(3) as pool:

        def work(thread: int) -> int:
            turn = 0
            while not over.is_set() or not turn:
                number = turn % 1000 * 3 + thread
                image.write(number * 512, sector(number, turn % 256))
                assert image.read(number * 512, 512) == sector(number, turn % 256)
                turn += 1
            return turn

        workers = [pool.submit(work, thread) for thread in range(3)]
        try:
            for n in range(1, 9):
                image.checkpoint(tmp_path / f"{n}.vhdx")
        finally:
            over.set()
        turns = [worker.result() for worker in workers]
        for thread, count in enumerate(turns):
            for turn in range(max(0, count - 1000), count):
                number = turn % 1000 * 3 + thread
                assert image.read(number * 512, 512) == sector(number, turn % 256)
    assert len(vhd.chain(tmp_path / "8.vhdx")) == 9
    assert all(vhd.check(tmp_path / f"{n}.vhdx").clean for n in range(9))
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize(("format", "type"), [*KINDS, ("raw", "fixed")])
def test_a_disk_in_use_grows(tmp_path: Path, format: str, type: str) -> None:
    path = tmp_path / "disk"
    vhd.create(path, SIZE, format, type)
    disk, info = live.open_live(path, mode="r+", format=format)
    with disk:
        disk.write(SIZE - 512, sector(1))
        info = live.resize(disk, info, 3 * SIZE)
        assert (disk.size, info.size, disk.read(SIZE - 512, 1024)) == (3 * SIZE, 3 * SIZE, sector(1) + bytes(512))
        disk.write(3 * SIZE - 512, sector(2))
        disk.flush()
        with pytest.raises(ValueError, match="beyond"):
            disk.read(3 * SIZE, 512)
    assert format == "raw" or vhd.check(path).clean
    with vhd.open(path, format=format) as image:
        assert (image.size, image.read(SIZE - 512, 512)) == (3 * SIZE, sector(1))
        assert image.read(3 * SIZE - 512, 512) == sector(2)


def test_a_child_in_use_grows_and_shrinks(tmp_path: Path) -> None:
    vhd.create(tmp_path / "base.vhdx", SIZE)
    vhd.create_child(tmp_path / "base.vhdx", tmp_path / "child.vhdx")
    disk, info = live.open_live(tmp_path / "child.vhdx", mode="r+")
    with disk:
        info = live.resize(disk, info, 2 * SIZE)
        disk.write(2 * SIZE - 512, sector(1))
        with pytest.raises(ImageError, match="data behind the new end"):
            live.resize(disk, info, SIZE)
        assert (disk.size, disk.read(2 * SIZE - 512, 512)) == (2 * SIZE, sector(1))  # it goes on as it was
        disk.write(2 * SIZE - 512, bytes(512))
        info = live.resize(disk, info, SIZE)
        assert (disk.size, info.parent) == (SIZE, str(tmp_path / "base.vhdx"))
        disk.write(0, sector(3))
    assert vhd.check(tmp_path / "child.vhdx").clean


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhd.create(path, SIZE)
    disk, info = live.open_live(path, mode="r+")
    with disk:
        for size in (0, SIZE + 1, 65 << 40):
            with pytest.raises(ValueError, match=r"size|at most"):
                live.resize(disk, info, size)
        assert disk.size == SIZE
    disk, info = live.open_live(path)
    with disk, pytest.raises(ImageError, match="keeps its size"):
        live.resize(disk, info, 2 * SIZE)


def test_requests_go_on_while_a_disk_grows(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhd.create(path, SIZE)
    disk, info = live.open_live(path, mode="r+")
    stop = threading.Event()

    def work(place: int) -> int:
        turn = 0
        while not stop.is_set():
            turn += 1
            disk.write(place * 512, sector(place, turn % 256))
            assert disk.read(place * 512, 512) == sector(place, turn % 256)
        return turn

    with disk, ThreadPoolExecutor(3) as threads:
        running = [threads.submit(work, place) for place in (0, 3000, 9000)]
        for step in range(2, 12):
            info = live.resize(disk, info, step * SIZE)
        stop.set()
        assert all(each.result() for each in running)
        assert disk.size == 11 * SIZE
    assert vhd.check(path).clean
