"""The calls of a disk, on every image format and every path, beside a model that is a bytearray."""

import asyncio
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest

import hvcore
from tests.reference.places import FORMATS, PLACES, SIZE, Place, attached
from tests.reference.vms import MIB, content


@pytest.fixture(scope="module", params=FORMATS)
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    with attached(tmp_path_factory.mktemp("images"), request.param) as made:
        yield made


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    return places[request.param]


def test_attributes(place: Place) -> None:
    disk = place.disk
    emulated = place.image.name != "synthetic"
    assert (disk.size, disk.sector_size, disk.read_only) == (SIZE, 512, not place.writable)
    assert (disk.path, disk.ide_mode) == (("emulated", place.image.name) if emulated else ("synthetic", None))


def test_read(place: Place) -> None:
    assert place.disk.read(0, SIZE) == place.model  # more than one request may move
    assert place.disk.read(SIZE - 512, 512) == place.model[-512:]
    random = Random(1)
    for _ in range(12):
        offset = random.randrange(SIZE // 512) * 512
        length = min(random.choice([512, 1024, 4096, 65536 + 512, 300 * 1024]), SIZE - offset)
        assert place.disk.read(offset, length) == place.model[offset : offset + length]
    assert place.disk.read(SIZE, 0) == b""


def test_readinto_any_writable_buffer(place: Place) -> None:
    disk, model = place.disk, place.model
    target = bytearray(b"x" * 3000)
    disk.readinto(512, memoryview(target)[7 : 7 + 1024])  # nothing beside it is touched
    assert target == b"x" * 7 + model[512:1536] + b"x" * (3000 - 1031)
    words = np.zeros(512, dtype=np.uint64)
    disk.readinto(MIB, words)
    assert words.tobytes() == model[MIB : MIB + 4096]
    own = place.guest.alloc(70 * 1024)
    disk.readinto(1024, own)
    assert memoryview(own) == model[1024 : 1024 + 70 * 1024]
    part = memoryview(own)[512:1536]
    disk.readinto(2048, part)
    assert bytes(part) == model[2048:3072]
    disk.readinto(0, bytearray())
    with pytest.raises((BufferError, TypeError)):
        disk.readinto(0, bytes(512))
    with pytest.raises(TypeError):
        disk.readinto(0, 512)


def test_odd_address_in_guest_memory(place: Place) -> None:
    """Bus-master DMA reaches even addresses only (ide.md 5.2): the bytes come all the same."""
    own = memoryview(place.guest.alloc(3 * 4096))
    own[:] = b"x" * len(own)
    place.disk.readinto(1536, own[4095 : 4095 + 4096])
    assert own == b"x" * 4095 + place.model[1536 : 1536 + 4096] + b"x" * 4097


def test_write(place: Place) -> None:
    if not place.writable:
        return
    disk = place.disk
    own = place.guest.alloc(8192)
    memoryview(own)[:] = content(8192, 7)
    for offset, data in (
        (0, content(512, 2)),
        (SIZE - 4096, bytearray(content(4096, 3))),
        (1024, memoryview(content(300 * 1024, 4))),
        (MIB, np.frombuffer(content(4096, 5), dtype=np.uint32)),
        (MIB + 8192, own),
        (MIB + 65536, memoryview(own)[1:4097]),
        (512, b""),
    ):
        disk.write(offset, data)
        new = bytes(memoryview(data).cast("B"))
        place.wrote(offset, new)
        assert disk.read(offset, len(new)) == new
    disk.flush()
    assert disk.read(0, SIZE) == place.model
    assert place.image.read_bytes()[:SIZE] == place.model


def test_flush(place: Place) -> None:
    place.disk.flush()
    assert place.disk.read(0, 512) == place.model[:512]


def test_trim(place: Place) -> None:
    disk = place.disk
    if place.trims:
        disk.trim(8192, 16384)
        place.wrote(8192, bytes(16384))
    else:
        with pytest.raises(hvcore.DiskError, match=r"not supported|write protected"):
            disk.trim(8192, 16384)
    assert disk.read(0, SIZE) == place.model
    disk.trim(0, 0)


@pytest.mark.parametrize("block", [512, 4096, 12800, 300 * 1024])
def test_read_batch(place: Place, block: int) -> None:
    random = Random(block)
    count = 24 if block < MIB // 4 else 5
    offsets = [random.randrange((SIZE - block) // 512 + 1) * 512 for _ in range(count)]
    expected = b"".join(place.model[offset : offset + block] for offset in offsets)
    out = np.zeros((count, block), dtype=np.uint8)
    place.disk.read_batch(np.array(offsets, dtype=np.uint64), out)
    assert out.tobytes() == expected
    flat = bytearray(count * block)
    place.disk.read_batch(offsets, flat, queue_depth=1)
    assert flat == expected
    out[:] = 0
    place.disk.read_batch(np.array(offsets, dtype=np.int32), out, queue_depth=256)
    assert out.tobytes() == expected
    spread = np.array([value for offset in offsets for value in (offset, 7)], dtype=np.uint64)[::2]
    out[:] = 0
    place.disk.read_batch(spread, out)
    assert out.tobytes() == expected
    place.disk.read_batch([], b"")
    place.disk.read_batch(np.zeros(0, dtype=np.uint64), np.zeros((0, block), dtype=np.uint8))


def test_write_batch(place: Place) -> None:
    if not place.writable:
        return
    disk, random = place.disk, Random(9)
    offsets = random.sample(range(0, SIZE - 4096, 4096), 64)
    data = np.frombuffer(content(64 * 4096, 10), dtype=np.uint8).reshape(64, 4096)
    disk.write_batch(np.array(offsets, dtype=np.uint64), data)
    for offset, block in zip(offsets, data, strict=True):
        place.wrote(offset, block.tobytes())
    assert disk.read(0, SIZE) == place.model
    own = np.frombuffer(place.guest.alloc(8 * 512), dtype=np.uint8).reshape(8, 512)
    own[:] = np.arange(8, dtype=np.uint8)[:, None]
    disk.write_batch([512 * n for n in range(8)], own, queue_depth=3)
    place.wrote(0, own.tobytes())
    disk.flush()
    assert disk.read(0, SIZE) == place.model
    assert place.image.read_bytes()[:SIZE] == place.model


def test_guest_memory_is_not_copied(place: Place) -> None:
    disk = place.disk
    own = np.frombuffer(place.guest.alloc(16 * 4096), dtype=np.uint8).reshape(16, 4096)
    before = disk.channel.counters()["bytes_copied"]
    disk.readinto(4096, own[0])
    disk.readinto(0, own)
    disk.read_batch([4096 * n for n in range(16)], own)
    if place.writable:
        disk.write(4096, own[1])
        disk.write_batch([4096 * n for n in range(16)], own)
        disk.flush()
    assert disk.channel.counters()["bytes_copied"] == before
    assert disk.read(0, SIZE) == place.model


def test_asyncio_twins(place: Place) -> None:
    disk, model = place.disk, place.model

    async def work() -> None:
        out, target = np.zeros((4, 512), dtype=np.uint8), bytearray(1024)
        first, *rest = await asyncio.gather(
            disk.aread(0, 4096),
            disk.areadinto(512, target),
            disk.aread_batch([0, 512, 1024, 4096], out, queue_depth=2),
            *(disk.aread(4096 * n, 4096) for n in range(30)),
        )
        assert (first, target) == (model[:4096], model[512:1536])
        assert out.tobytes() == model[:1536] + model[4096:4608]
        assert b"".join(rest[2:]) == model[: 30 * 4096]
        with pytest.raises(ValueError):
            await disk.aread(1, 512)
        if not place.writable:
            with pytest.raises(hvcore.DiskError):
                await disk.awrite(0, bytes(512))
            return
        await disk.awrite(0, bytes(512))
        await disk.awrite_batch([512, 2048], np.ones((2, 512), dtype=np.uint8))
        await disk.aflush()
        place.wrote(0, bytes(512) + b"\1" * 512)
        place.wrote(2048, b"\1" * 512)
        if place.trims:
            await disk.atrim(4096, 4096)
            place.wrote(4096, bytes(4096))
        else:
            with pytest.raises(hvcore.DiskError):
                await disk.atrim(4096, 4096)
        assert await disk.aread(0, 8192) == model[:8192]

    asyncio.run(work())
