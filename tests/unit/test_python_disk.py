"""Disks that are Python objects: what they are asked, what becomes of what they answer, and how they end."""

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvcore.disk import vector
from hvcore.disk.classes import open_class
from hvcore.disk.python import PythonDisk
from hvcore.errors import DiskError, ImageError
from tests.reference.disks import Awkward, Filling, Memory, ReadOnly, Unclosable
from tests.reference.vms import PATIENCE

SIZE = 1 << 20
RANGE, READ_ONLY, READ_ERROR, WRITE_ERROR, NO_SPACE, WOULD_BLOCK, UNSUPPORTED = -1, -2, -3, -4, -5, -6, -7


@pytest.mark.parametrize("kind", [Memory, Filling])
@pytest.mark.parametrize("concurrent", [False, True])
def test_round_trip(kind: type[Memory], concurrent: bool) -> None:
    with PythonDisk(kind(SIZE), SIZE, concurrent=concurrent) as disk:
        assert (disk.size, disk.sector_size, disk.read_only) == (SIZE, 512, False)
        data = bytes(range(256)) * 8
        assert vector.writev(disk, 512, [data[:100], b"", data[100:]]) == 0
        parts = [bytearray(700), bytearray(1348)]
        assert vector.readv(disk, 512, parts) == 0
        assert b"".join(parts) == data
        disk.flush()
        disk.trim(1024, 512)
        assert disk.read(0, 2048) == bytes(512) + data[:512] + bytes(512) + data[1024:1536]
        assert disk.failures == {}


def test_a_request_that_may_not_wait_never_reaches_the_object() -> None:
    class Untouchable(Memory):
        def read(self, offset: int, length: int) -> bytearray:
            raise AssertionError

        write = read  # type: ignore[assignment]

    with PythonDisk(Untouchable(SIZE), SIZE) as disk:
        assert vector.readv(disk, 0, [bytearray(512)], nowait=True) == WOULD_BLOCK
        assert vector.writev(disk, 0, [bytes(512)], nowait=True) == WOULD_BLOCK
        for offset in (SIZE, SIZE - 512, (1 << 64) - 512):
            assert vector.readv(disk, offset, [bytearray(1024)]) == RANGE
            assert vector.writev(disk, offset, [bytes(1024)]) == RANGE
            assert vector.trim(disk, offset, 1024) == RANGE
        assert vector.readv(disk, 0, []) == vector.trim(disk, 512, 0) == 0
        assert disk.failures == {}


@pytest.mark.parametrize(
    ("sector", "says"),
    [
        (0, r"Awkward\.read\(0, 512\): OSError: \[Errno 5\] the platter is dented \(.*disks\.py:\d+\)"),
        (1, r"Awkward\.read\(512, 512\): ValueError: read\(\) returned 511 bytes, not 512"),
        (2, r"ValueError: read\(\) returned 513 bytes, not 512"),
        (3, r"TypeError: read\(\) returned str, not bytes"),
        (4, r"TypeError: read\(\) returned NoneType, not bytes"),
        (5, r"ZeroDivisionError: counted wrong \(.*disks\.py:\d+\)"),
        (6, r"SystemExit: 3"),
    ],
)
def test_a_read_that_goes_wrong_is_a_read_error_told_once(sector: int, says: str) -> None:
    told: list[str] = []
    with PythonDisk(Awkward(SIZE), SIZE, report=told.append) as disk:
        target = bytearray(b"x" * 512)
        for _ in range(3):
            assert vector.readv(disk, sector * 512, [target]) == READ_ERROR
        assert target == b"x" * 512
        assert len(told) == 1 and list(disk.failures.values()) == [3]
        assert re.search(says, told[0]), told[0]
        assert disk.read(512 * 50, 512) == bytes(512)


@pytest.mark.parametrize(
    ("sector", "status"), [(0, NO_SPACE), (1, NO_SPACE), (2, READ_ONLY), (3, WRITE_ERROR), (4, WRITE_ERROR), (5, 0)]
)
def test_writes_that_go_wrong(sector: int, status: int) -> None:
    with PythonDisk(Awkward(SIZE), SIZE) as disk:
        assert vector.writev(disk, sector * 512, [bytes(512)]) == status
        assert vector.flush(disk) == WRITE_ERROR


def test_each_kind_of_failure_is_told_once_and_kinds_are_bounded() -> None:
    class Inventive(Memory):
        turn = 0

        def flush(self) -> None:
            self.turn += 1
            raise type(f"Failure{self.turn % 100}", (Exception,), {})

    told: list[str] = []
    with PythonDisk(Inventive(SIZE), SIZE, report=told.append) as disk:
        for _ in range(300):
            assert vector.flush(disk) == WRITE_ERROR
        assert len(told) == len(disk.failures) == 65 and sum(disk.failures.values()) == 300


def test_a_report_that_fails_harms_nobody() -> None:
    with PythonDisk(Awkward(SIZE), SIZE, report=lambda text: 1 / 0) as disk:
        assert [vector.readv(disk, 0, [bytearray(512)]) for _ in range(2)] == [READ_ERROR] * 2


def test_calls_come_one_at_a_time_unless_the_object_says_otherwise() -> None:
    class Meeting(Memory):
        def __init__(self, size: int, guests: int) -> None:
            super().__init__(size)
            self.inside = self.most = 0
            self.lock = threading.Lock()
            self.door = threading.Barrier(guests)

        def read(self, offset: int, length: int) -> bytearray:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.door.wait(PATIENCE)
            with self.lock:
                self.inside -= 1
            return super().read(offset, length)

    for concurrent, guests in ((False, 1), (True, 4)):
        meeting = Meeting(SIZE, guests)
        with PythonDisk(meeting, SIZE, concurrent=concurrent) as disk, ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda n: len(disk.read(n * 512, 512)), range(16))) == [512] * 16
        assert meeting.most == guests


def test_a_class_that_asks_its_own_disk_is_refused() -> None:
    class Selfish(Memory):
        disk: Any = None

        def read(self, offset: int, length: int) -> bytearray:
            return bytearray(self.disk.read(offset, length))

    told: list[str] = []
    selfish = Selfish(SIZE)
    with PythonDisk(selfish, SIZE, report=told.append) as disk:
        selfish.disk = disk
        assert vector.readv(disk, 0, [bytearray(512)]) == READ_ERROR
        selfish.disk = None
    assert "RuntimeError: called from inside the disk's own class" in told[0]
    assert len(told) == 2 and "DiskError" in told[1]


def test_close_waits_for_calls_and_closes_the_object_once() -> None:
    entered, leave = threading.Event(), threading.Event()
    closed = []

    class Slow(Memory):
        def read(self, offset: int, length: int) -> bytearray:
            entered.set()
            assert leave.wait(PATIENCE)
            assert not closed
            return super().read(offset, length)

        def close(self) -> None:
            closed.append(True)

    disk = PythonDisk(Slow(SIZE), SIZE)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(disk.read, 0, 512)
        assert entered.wait(PATIENCE)
        closing = pool.submit(disk.close)
        leave.set()
        assert running.result(PATIENCE) == bytes(512)
        closing.result(PATIENCE)
    disk.close()
    assert closed == [True]
    assert vector.readv(disk, 0, [bytearray(512)]) == -8


def test_a_failing_close_is_a_disk_error() -> None:
    disk = PythonDisk(Unclosable(SIZE), SIZE)
    with pytest.raises(DiskError, match=r"Unclosable\.close\(\): OSError: \[Errno 16\] held open"):
        disk.close()
    disk.close()


def test_read_only_needs_only_read() -> None:
    with PythonDisk(ReadOnly(), SIZE, sector_size=4096, read_only=True) as disk:
        assert disk.read(8192, 4096) == b"\2\0\0\0" * 1024
        assert vector.writev(disk, 0, [bytes(4096)]) == vector.flush(disk) == READ_ONLY
        assert vector.trim(disk, 0, 4096) == READ_ONLY
    with pytest.raises(TypeError, match=r"ReadOnly has no method write\(\)"):
        PythonDisk(ReadOnly(), SIZE)
    with pytest.raises(TypeError, match=r"object has no method read\(\)"):
        PythonDisk(object(), SIZE, read_only=True)


def test_no_trim_without_a_method() -> None:
    class Plain(Memory):
        trim = None  # type: ignore[assignment]

    with PythonDisk(Plain(SIZE), SIZE) as disk:
        assert vector.trim(disk, 0, 512) == UNSUPPORTED


@pytest.mark.parametrize(
    ("size", "options"), [(0, {}), (511, {}), (512, {"sector_size": 4096}), (1 << 63, {}), (512, {"sector_size": 520})]
)
def test_sizes_that_cannot_be(size: int, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="size"):
        PythonDisk(Memory(512), size, **options)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("tests.reference.disks:Nowhere", {}, r"Nowhere: AttributeError: module .* has no attribute 'Nowhere'"),
        ("tests.reference.nowhere:Memory", {}, r"nowhere:Memory: ModuleNotFoundError: No module named"),
        ("tests.reference.disks:Memory", {}, r"Memory: TypeError: .*missing 1 required .* 'size'"),
        ("tests.reference.disks:Memory", {"size": 100}, r"Memory: ValueError: the size is a positive multiple"),
        ("tests.reference.disks:Unborn", {}, r"Unborn: RuntimeError: not today \(.*disks\.py:\d+\)"),
        ("tests.reference.disks:Sizeless", {}, r"Sizeless: AttributeError: .* no attribute 'size'"),
        ("tests.reference.disks", {}, r"does not name a class"),
        ("tests..disks:Memory", {}, r"does not name a class"),
        ("os:system('x')", {}, r"does not name a class"),
    ],
)
def test_classes_that_cannot_be_opened(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        open_class(name, options)
    assert "\n" not in str(caught.value)


def test_a_class_says_what_its_disk_is() -> None:
    disk, info = open_class("tests.reference.disks:ReadOnly", {})
    with disk:
        assert (info.format, info.size, info.sector_size, disk.read_only) == ("python", SIZE, 4096, True)
    disk, info = open_class("tests.reference.disks:Memory", {"size": SIZE, "fill": 7}, read_only=True, sector_size=4096)
    with disk:
        assert disk.read(0, 4096) == b"\7" * 4096 and (disk.read_only, info.sector_size) == (True, 4096)


SHUTDOWN = """
import threading
from hvcore.disk.python import PythonDisk

class Disk:
    def read(self, offset, length):
        started.set()
        return bytes(length)
    write = flush = read

def ask():
    while True:
        try:
            disk.read(0, 512)
        except Exception:
            return

started = threading.Event()
disk = PythonDisk(Disk(), 1 << 20, concurrent=True)
for _ in range(4):
    threading.Thread(target=ask, daemon=True).start()
started.wait()
print("ends")
"""


def test_the_interpreter_ends_while_requests_come() -> None:
    done = subprocess.run([sys.executable, "-c", SHUTDOWN], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
