"""What a disk refuses, what its device refuses, and several threads on it."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

import hvcore
from tests.reference.places import FORMATS, PLACES, SIZE, Place, attached
from tests.reference.vms import MIB, content, raw


@pytest.fixture(scope="module", params=FORMATS)
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    with attached(tmp_path_factory.mktemp("images"), request.param) as made:
        yield made


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    return places[request.param]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, 512), (0, 511), (256, 256), (-512, 512), (SIZE, 512), (SIZE - 512, 1024), (1 << 62, 512), (1 << 64, 512)],
)
def test_misplaced_requests(place: Place, offset: int, length: int) -> None:
    disk = place.disk
    requests = disk.channel.counters()["requests"]
    for call in (
        lambda: disk.read(offset, length),
        lambda: disk.readinto(offset, bytearray(length)),
        lambda: disk.write(offset, bytes(length)),
        lambda: disk.trim(offset, length),
        lambda: disk.read_batch([0, offset], bytearray(2 * length)),
        lambda: disk.write_batch([offset, 0], bytes(2 * length)),
    ):
        with pytest.raises(ValueError, match=r"multiple|within|negative|integers"):
            call()
    assert disk.channel.counters()["requests"] == requests  # nothing was sent


def test_negative_length(place: Place) -> None:
    for call in (place.disk.read, place.disk.trim):
        with pytest.raises(ValueError, match="within"):
            call(512, -512)


def test_misshapen_batches(places: dict[str, Place]) -> None:
    disk = places["synthetic"].disk
    block = np.zeros((2, 512), dtype=np.uint8)
    for offsets, data, options in (
        ([0, 512, 1024], bytearray(1024), {}),  # no equal blocks
        ([0], bytearray(0), {}),
        ([], bytearray(512), {}),
        ([[0, 512]], block, {}),
        ([0.0, 512.0], block, {}),
        (["0", "512"], block, {}),
        (0, block[0], {}),
        ([0, 512], np.zeros((2, 1024), dtype=np.uint8)[:, ::2], {}),
        ([0, 512], block, {"queue_depth": 0}),
        ([0, 512], block, {"queue_depth": -1}),
        ([0, 512], block, {"queue_depth": 257}),
        ([0, 512], block, {"timeout": -1}),
        ([0, 512], block, {"timeout": float("nan")}),
    ):
        for call in (disk.read_batch, disk.write_batch):
            with pytest.raises(ValueError):
                call(offsets, data, **options)
    with pytest.raises((BufferError, TypeError)):
        disk.read_batch([0], bytes(512))
    for timeout in (-0.001, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            disk.read(0, 512, timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            disk.flush(timeout=timeout)
    for size in (0, -1):
        with pytest.raises(ValueError):
            places["synthetic"].guest.alloc(size)


def test_read_only_disk(place: Place) -> None:
    if place.writable:
        return
    before = place.image.read_bytes()
    disk = place.disk
    for call in (
        lambda: disk.write(0, bytes(512)),
        lambda: disk.write(512, place.guest.alloc(4096)),
        lambda: disk.write_batch([0], bytes(512)),
        lambda: disk.trim(0, 512),
    ):
        with pytest.raises(hvcore.DiskError, match="write protected") as caught:
            call()
        error = caught.value
        # storvsp.md 10: DATA PROTECT with check condition and autosense.
        assert (error.sense_key, error.asc, error.ascq, error.scsi_status, error.srb_status) == (7, 0x27, 0, 2, 4)
        assert isinstance(error, OSError) and error.errno == errno.EROFS
    assert place.image.read_bytes() == before


def test_device_errors_of_single_reads_and_of_a_batch(place: Place) -> None:
    """The file loses its end under the host: reads of what is not there fail, each by itself."""
    if place.format == "vhdx":
        return  # its blocks lie in the file in another order
    disk, kept = place.disk, MIB
    data = place.image.read_bytes()
    os.truncate(place.image, kept)
    try:
        with pytest.raises(hvcore.DiskError, match="unrecovered read error") as caught:
            disk.read(kept, 4096)
        error = caught.value
        assert (error.sense_key, error.asc, error.ascq, error.scsi_status, error.srb_status) == (3, 0x11, 0, 2, 4)
        assert (error.index, error.statuses, error.errno) == (None, None, errno.EIO)
        target = bytearray(b"x" * 4096)
        with pytest.raises(hvcore.DiskError):
            disk.readinto(kept, target)
        assert target == b"x" * 4096  # written on success only
        offsets = [0, 4096, kept, 8192, kept + 4096, 12288]
        out = np.full((6, 4096), 0x78, dtype=np.uint8)
        for depth in (1, 6):
            with pytest.raises(hvcore.DiskError, match="request 2 of 6") as caught:
                disk.read_batch(offsets, out, queue_depth=depth)
            error = caught.value
            assert (error.index, error.statuses) == (2, [1, 1, 4, 1, 4, 1])
            assert (error.sense_key, error.asc, error.srb_status) == (3, 0x11, 4)
            for n, offset in enumerate(offsets):
                expected = place.model[offset : offset + 4096] if offset < kept else b"x" * 4096
                assert out[n].tobytes() == expected
    finally:
        place.image.write_bytes(data)
    assert disk.read(0, SIZE) == place.model


def test_no_space_for_a_write(place: Place) -> None:
    """The host may write no further than 1 MiB into any file."""
    if not place.writable:
        return
    disk, pid = place.disk, place.vm.host.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
    try:
        with pytest.raises(hvcore.DiskError, match="no space left") as caught:
            disk.write(MIB, bytes(4096))
        assert caught.value.errno == errno.ENOSPC
        assert (caught.value.sense_key, caught.value.asc, caught.value.ascq) == (7, 0x27, 7)
        block = content(4096, 21)
        with pytest.raises(hvcore.DiskError) as caught:
            disk.write_batch([4096, MIB + 4096, 8192], block * 3)
        assert (caught.value.index, caught.value.statuses) == (1, [1, 4, 1])
        place.wrote(4096, block * 2)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert disk.read(0, SIZE) == place.model
    disk.write(MIB, block)
    place.wrote(MIB, block)
    assert disk.read(0, SIZE) == place.model


def test_threads_on_all_disks(places: dict[str, Place]) -> None:
    """Each thread owns every fourth 64 KiB of each disk and checks what it reads; all disks at once."""
    failed: list[BaseException] = []
    chunk = 65536

    def work(place: Place, turn: int) -> None:
        random, disk, model = Random(turn), place.disk, place.model
        try:
            for _ in range(12):
                base = (random.randrange(SIZE // chunk // 4) * 4 + turn) * chunk
                offset = base + random.randrange(64) * 512
                length = random.choice([512, 4096, 16384])
                if place.writable and random.random() < 0.5:
                    data = random.randbytes(length)
                    disk.write(offset, data)
                    model[offset : offset + length] = data
                where = [base + random.randrange(112) * 512 for _ in range(5)]
                out = bytearray(5 * 4096)
                disk.read_batch(where, out, queue_depth=random.choice([1, 5]))
                assert out == b"".join(model[at : at + 4096] for at in where)
                assert disk.read(offset, length) == model[offset : offset + length]
            disk.flush()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(place, turn)) for place in places.values() for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for place in places.values():
        assert place.disk.read(0, SIZE) == place.model


def test_too_little_memory_says_how_much_is_needed(tmp_path: Path) -> None:
    disks = [raw(tmp_path / "a", bytes(8 * MIB)), raw(tmp_path / "b", path="emulated")]
    with hvcore.Host() as host, host.create_vm("small", "2M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            disk = guest.disks[0]
            offsets = [65536 * n for n in range(64)]  # 4 MiB, of which the channel has one page already
            for call in (disk.read_batch, disk.write_batch):
                with pytest.raises(MemoryError, match=r"needs 4092 KiB of guest memory .* more than 2 MiB"):
                    call(offsets, bytearray(64 * 65536), queue_depth=64)
            with pytest.raises(MemoryError, match="needs 16 MiB of guest memory"):
                guest.alloc(16 * MIB)
            disk.read_batch(offsets, bytearray(64 * 65536), queue_depth=4)  # as the message proposes
            buffers = []
            with pytest.raises(MemoryError):
                while True:
                    buffers.append(guest.alloc(65536))
            count = len(buffers)
            buffers.clear()  # given back with the last reference
            assert count > 0
            buffers = [guest.alloc(65536) for _ in range(count)]
            disk.readinto(0, buffers[-1])
    with hvcore.Host() as host:
        for memory in ("1M", "1G"):
            host.create_vm(memory, memory, disks).delete()
        for memory in ("512K", 4097, "64Q"):
            with pytest.raises((ValueError, hvcore.Error), match=r"not a"):
                host.create_vm("odd", memory, disks)


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    data = content(MIB)
    with hvcore.Host() as host:
        with pytest.raises(ValueError, match="an IDE disk has sectors of 512 bytes"):
            raw(tmp_path / "disk", data, path="emulated", sector_size=4096)
        vm = host.create_vm("large-sectors", "16M", [raw(tmp_path / "disk", data, sector_size=4096)])
        vm.start()
        with vm.attach() as guest:
            disk = guest.disks[0]
            assert (disk.size, disk.sector_size) == (MIB, 4096)
            assert disk.read(4096, 8192) == data[4096:12288]
            for offset, length in ((512, 4096), (0, 512), (4096, 4096 + 512)):
                for call in (disk.read, disk.trim, lambda at, count: disk.write(at, bytes(count))):
                    with pytest.raises(ValueError, match="multiples of 4096"):
                        call(offset, length)
            with pytest.raises(ValueError, match="multiples of 4096"):
                disk.read_batch([0, 512], bytearray(8192))
            disk.write(MIB - 4096, b"s" * 4096)
            disk.trim(0, 8192)
            disk.flush()
            assert disk.read(0, MIB) == bytes(8192) + data[8192 : MIB - 4096] + b"s" * 4096
            # LBA 256 of 4096 bytes each is beyond the end (storvsp.md 10: 5/21).
            _, scsi, sense, _ = disk.channel.execute(bytes([0x28, 0, 0, 0, 1, 0, 0, 0, 1, 0]), allocation=4096)
            assert (scsi, sense[2] & 0xF, sense[12]) == (2, 5, 0x21)
        vm.delete()
