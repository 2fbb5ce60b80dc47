"""The floor program: what it reads, and that no server outlives its client, whatever ends it."""

import array
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvcore
from hvcore.errors import HostError, ImageError

program = pytest.importorskip("bench_floor", reason="built only with HVCORE_EXTRA=bench")
Floor, local_preadv, MAX_DEPTH = program.Floor, program.local_preadv, program.MAX_DEPTH

BLOCKS = 64
ENDLESS = bytes(8 * 20_000_000)  # offsets of a run that only its end ends


def block(number: int, size: int = 4096) -> bytes:
    return number.to_bytes(8, "little") * (size // 8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"".join(block(number + 1) for number in range(BLOCKS)))
    return path


def offsets(*numbers: int, size: int = 4096) -> "array.array[int]":
    return array.array("Q", [number * size for number in numbers])


def endless() -> memoryview:
    return memoryview(ENDLESS).cast("Q")


@pytest.fixture
def descriptors() -> Iterator[None]:
    """A test that leaves a descriptor open fails."""
    before = sorted(Path("/proc/self/fd").iterdir())
    yield
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def ends(pidfd: int) -> bool:
    """Waits for the process's end; the limit only turns a hang into a failure."""
    try:
        return bool(select.select([pidfd], [], [], 60)[0])
    finally:
        os.close(pidfd)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("depth", [1, 2, 7, 32, MAX_DEPTH])
def test_reads_the_blocks(image: Path, depth: int) -> None:
    numbers = [(7 * i) % BLOCKS for i in range(3 * MAX_DEPTH + 5)]
    with Floor(image, depth=depth) as floor:
        for _ in range(2):
            seconds, histogram = floor.run(offsets(*numbers))
            assert histogram.count == len(numbers)
            assert 0 < histogram.min / 1e9 <= histogram.max / 1e9 <= seconds
        for i in range(2 * len(numbers) - depth, 2 * len(numbers)):
            assert floor.block(i % depth) == block(numbers[i % len(numbers)] + 1)


@pytest.mark.parametrize("depth", [1, 3])
def test_writes_the_blocks(image: Path, depth: int) -> None:
    before = image.read_bytes()
    with Floor(image, depth=depth, write=True) as floor:
        floor.run(offsets(0, 5, BLOCKS - 1))
        written = floor.block(0)
    after = image.read_bytes()
    for number in range(BLOCKS):
        place = slice(number * 4096, (number + 1) * 4096)
        assert after[place] == (written if number in (0, 5, BLOCKS - 1) else before[place])


def test_reads_into_a_given_buffer(image: Path) -> None:
    buffer = bytearray(2 * 4096)
    local_preadv(image, offsets(7, 8, 9), depth=2, buffer=buffer)
    assert bytes(buffer) == block(10) + block(9)
    with pytest.raises(ValueError, match="do not hold 3 blocks"):
        local_preadv(image, offsets(7), depth=3, buffer=buffer)


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_block_sizes(image: Path, size: int) -> None:
    data = image.read_bytes()
    with Floor(str(image), block_size=size, depth=3) as floor:
        floor.run(offsets(0, 2, 1, size=size))
        assert [floor.block(slot) for slot in range(3)] == [data[i * size : (i + 1) * size] for i in (0, 2, 1)]


@pytest.mark.parametrize("same", [False, True])
def test_placement(image: Path, same: bool) -> None:
    usable = os.sched_getaffinity(0)
    client, server = min(usable), min(usable) if same else max(usable)
    with Floor(image, depth=2, cpus=(client, server)) as floor:
        assert os.sched_getaffinity(floor.server_pid or 0) == {server}
        assert floor.run(offsets(*range(BLOCKS)))[1].count == BLOCKS
    assert os.sched_getaffinity(0) == usable


@pytest.mark.usefixtures("descriptors")
def test_placement_refused(image: Path) -> None:
    with pytest.raises(ValueError, match="this process may use"):
        Floor(image, cpus=(min(os.sched_getaffinity(0)), 1 << 20))


def test_more_than_one_burst(image: Path) -> None:
    # Longer than the 50 ms after which both loops look for signals.
    many = memoryview(bytes(8 * 150_000)).cast("Q")
    with Floor(image, depth=MAX_DEPTH) as floor:
        assert floor.run(many)[1].count == len(many)
    assert local_preadv(image, many)[1].count == len(many)


def test_empty_run(image: Path) -> None:
    with Floor(image) as floor:
        seconds, histogram = floor.run(offsets())
        assert (seconds, histogram.count) == (0.0, 0)
        assert local_preadv(image, offsets())[1].count == 0


@pytest.mark.usefixtures("descriptors")
def test_local_preadv(image: Path) -> None:
    seconds, histogram = local_preadv(image, offsets(*range(BLOCKS)), depth=32)
    assert histogram.count == BLOCKS
    assert histogram.sum / 1e9 == pytest.approx(seconds)


@pytest.mark.parametrize("shape", [(4096, 0), (4096, MAX_DEPTH + 1), (0, 1), (1000, 1), (1 << 25, 1)])
@pytest.mark.usefixtures("descriptors")
def test_bad_shape(image: Path, shape: tuple[int, int]) -> None:
    for call in (lambda: Floor(image, *shape), lambda: local_preadv(image, offsets(0), *shape)):
        with pytest.raises(ValueError, match=r"queue depth|block size"):
            call()


@pytest.mark.usefixtures("descriptors")
def test_bad_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Floor(tmp_path / "absent")
    (tmp_path / "short").write_bytes(bytes(4095))
    with pytest.raises(ValueError, match="4095 bytes"):
        Floor(tmp_path / "short")


@pytest.mark.parametrize(
    ("given", "fault"),
    [(array.array("Q", [0, 4096 * (BLOCKS - 1) + 1]), "beyond the file"), (array.array("Q", [2**64 - 1]), "beyond"),
     (array.array("d", [0.0]), "unsigned 64-bit"), (array.array("I", [0, 0]), "unsigned 64-bit"),
     (array.array("q", [0]), "unsigned 64-bit"), (bytes(8), "unsigned 64-bit")],
)  # fmt: skip
def test_bad_offsets(image: Path, given: "array.array[int]", fault: str) -> None:
    with Floor(image) as floor:
        with pytest.raises(ValueError, match=fault):
            floor.run(given)
        assert floor.run(offsets(1))[1].count == 1
    with pytest.raises(ValueError, match=fault):
        local_preadv(image, given)


def test_file_that_shrank(image: Path) -> None:
    with Floor(image, depth=4) as floor:
        os.truncate(image, 4096 * 10)
        with pytest.raises(ImageError, match=f"ends in the block at {4096 * 10}"):
            floor.run(offsets(0, 9, 10, 63, 0, 1))
        assert floor.run(offsets(3))[1].count == 1
        assert floor.block(6 % 4) == block(4)


def test_closed(image: Path) -> None:
    floor = Floor(image)
    pidfd = os.pidfd_open(floor.server_pid or 0)
    floor.close()
    floor.close()
    assert ends(pidfd)
    with pytest.raises(ValueError, match="closed"):
        floor.run(offsets(0))
    with pytest.raises(ValueError, match="closed"):
        floor.block(0)


def under_way(floor: Floor, act: int, victim: int) -> threading.Thread:
    """A thread that sends a signal once the server has begun to read."""

    def wait() -> None:
        empty = bytes(floor.block_size)
        while floor.block(0) == empty:
            pass
        os.kill(victim, act)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("depth", [1, 32])
def test_server_killed(image: Path, depth: int) -> None:
    floor = Floor(image, depth=depth)
    thread = under_way(floor, signal.SIGKILL, floor.server_pid or 0)
    with pytest.raises(HostError, match="ended with code -9"):
        floor.run(endless())
    thread.join()
    with pytest.raises(ValueError, match="closed"):
        floor.run(offsets(0))


@pytest.mark.usefixtures("descriptors")
def test_server_killed_between_runs(image: Path) -> None:
    floor = Floor(image)
    pidfd = os.pidfd_open(floor.server_pid or 0)
    os.kill(floor.server_pid or 0, signal.SIGKILL)
    assert ends(pidfd)
    with pytest.raises(HostError, match="ended with code -9"):
        floor.run(offsets(0))


@pytest.mark.usefixtures("descriptors")
def test_interrupt_ends_the_server(image: Path) -> None:
    floor = Floor(image, depth=2)
    pidfd = os.pidfd_open(floor.server_pid or 0)
    thread = under_way(floor, signal.SIGINT, os.getpid())
    with pytest.raises(KeyboardInterrupt):
        floor.run(endless())
    thread.join()
    assert ends(pidfd)


def test_close_while_running(image: Path) -> None:
    floor = Floor(image)
    refused: list[str] = []

    def wait() -> None:
        empty = bytes(4096)
        while floor.block(0) == empty:
            pass
        for call in (floor.close, lambda: floor.run(offsets(0))):
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))
        os.kill(floor.server_pid or 0, signal.SIGKILL)

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises(HostError):
        floor.run(endless())
    thread.join()
    assert refused == ["the floor is running in another thread"] * 2


CLIENT = """
import sys, threading
from bench_floor import Floor
floor = Floor(sys.argv[1])
if sys.argv[2] == "running":
    offsets = memoryview(bytes(8 * 20_000_000)).cast("Q")
    threading.Thread(target=floor.run, args=(offsets,), daemon=True).start()
    while floor.block(0) == bytes(4096):
        pass
print(floor.server_pid, flush=True)
sys.stdin.read()
"""


def client(image: Path, state: str) -> "subprocess.Popen[bytes]":
    root = os.pathsep.join(str(path) for path in (Path(program.__file__).parent, Path(hvcore.__file__).parent.parent))
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(image), state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )


@pytest.mark.parametrize("state", ["idle", "running"])
def test_client_killed(image: Path, state: str) -> None:
    with client(image, state) as process:
        assert process.stdout is not None
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    assert ends(pidfd)


@pytest.mark.parametrize("state", ["idle", "running"])
def test_client_ends_without_close(image: Path, state: str) -> None:
    with client(image, state) as process:
        assert process.stdin is not None and process.stdout is not None
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        process.stdin.close()
        assert process.wait() == 0
    assert ends(pidfd)
