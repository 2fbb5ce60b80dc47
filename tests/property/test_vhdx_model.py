"""A VHDX against a bytearray: any order of writes, trims, flushes, reopenings and drops of the disk without close."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.ram import RamDisk
from hvcore.disk.vector import readv
from tests.reference import vhdx_disk
from tests.reference.vhdx import MIB, Partial, build, pattern
from tests.reference.vhdx_disk import PARTIAL, ZERO, open_disk

BLOCKS = 5
UNITS = 64  # of a block: places and lengths are multiples of them, mostly
UNIT = MIB // UNITS
PARENT = b"".join(pattern(50 + n, MIB) for n in range(4))
SOURCE = b"".join(pattern(n, MIB) for n in range(BLOCKS))

# Whole blocks and small parts are both frequent.
START = st.one_of(
    st.integers(0, BLOCKS - 1).map(lambda n: n * MIB),
    st.integers(0, BLOCKS * UNITS - 1).map(lambda n: n * UNIT),
    st.integers(0, BLOCKS * MIB // 4096 - 1).map(lambda n: n * 4096),
)
LENGTH = st.one_of(
    st.integers(1, 2).map(lambda n: n * MIB),
    st.integers(1, 2 * UNITS).map(lambda n: n * UNIT),
    st.integers(1, 4).map(lambda n: n * 4096),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "trim", "flush", "reopen", "relocate"]), START, LENGTH),
    min_size=1,
    max_size=25,
)
BLOCK = st.sampled_from(["absent", "full", "partial", "zero"])


def below(kind: str, folder: Path, sector_size: int) -> Backend | None:
    if kind == "dynamic":
        return None
    if kind == "ram":
        disk = RamDisk(len(PARENT), sector_size=sector_size)
        disk.write(0, PARENT)
        return disk
    path = folder / "parent.raw"
    path.write_bytes(PARENT)
    return FileDisk(ImageFile(os.open(path, os.O_RDONLY)), len(PARENT), sector_size=sector_size)


@pytest.mark.parametrize(("kind", "sector_size"), [("dynamic", 512), ("dynamic", 4096), ("ram", 512), ("file", 4096)])
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.lists(BLOCK, min_size=BLOCKS, max_size=BLOCKS),
    short=st.booleans(),
    steps=STEPS,
    pieces=st.lists(st.integers(0, MIB), max_size=8),
)
def test_any_session(
    kind: str,
    sector_size: int,
    start: list[str],
    short: bool,
    steps: list[tuple[str, int, int]],
    pieces: list[int],
    tmp_path: Path,
) -> None:
    child = kind != "dynamic"
    path = tmp_path / "d.vhdx"
    size = BLOCKS * MIB - (MIB - sector_size if short else 0)
    content: dict[int, bytes | int | Partial] = {}
    for block, what in enumerate(start):
        if what == "full" or (what == "partial" and not child):
            content[block] = pattern(70 + block, MIB)
        elif what == "partial":
            content[block] = Partial(pattern(70 + block, MIB), frozenset(range(block, 100, 2 + block)))
        elif what == "zero":
            content[block] = ZERO
    build(path, size, content, sector_size=sector_size, has_parent=child)
    model = bytearray(vhdx_disk.content(path.read_bytes(), PARENT if child else b""))
    disk = open_disk(path, write=True, parent=below(kind, tmp_path, sector_size))
    for verb, offset, length in steps:
        if offset >= size:
            continue
        length = min(length, size - offset)
        if verb == "write":
            data = SOURCE[-length:]
            disk.write(offset, data)
            model[offset : offset + length] = data
        elif verb == "trim":
            disk.trim(offset, length)
            model[offset : offset + length] = bytes(length)
        elif verb == "flush":
            disk.flush()
        elif verb == "relocate":
            disk.relocate(offset // MIB)
        else:
            disk.close()
            assert vhdx_disk.content(path.read_bytes(), PARENT if child else b"") == model
            vhdx_disk.check(path.read_bytes())
            disk = open_disk(path, write=True, parent=below(kind, tmp_path, sector_size))
        assert disk.read(offset, length) == model[offset : offset + length]
    buffers = [bytearray(n) for n in pieces]
    inside = sum(pieces) <= size
    assert readv(disk, 0, buffers) == (0 if inside else -1)
    assert not inside or b"".join(buffers) == model[: sum(pieces)]
    compare_extents(disk, path, model, child)
    disk.close()
    image = path.read_bytes()
    table = vhdx_disk.check(image)
    assert vhdx_disk.content(image, PARENT if child else b"") == model
    # The file is as long as its last block: no space is lost for ever, and none used twice (check).
    places = [entry & ~0xFFFFF for entry in table.entries if entry & 7 >= 6]
    ends = [place + MIB for place in places] + [start + length for start, length in table.used]
    assert len(image) == max(ends) or not any(verb in ("write", "trim", "relocate") for verb, *_ in steps)
    assert child or not any(entry & 7 == PARTIAL for entry in table.entries)


def compare_extents(disk: vhdx_disk.VhdxDisk, path: Path, model: bytearray, child: bool) -> None:
    image = path.read_bytes()
    covered = 0
    before = None
    for offset, length, state, place in disk.extents():
        assert offset == covered
        covered += length
        stored = {"zero": bytes(length), "parent": PARENT[offset : offset + length].ljust(length, b"\0")}.get(state)
        if place is not None:
            stored = image[place : place + length]
        assert stored == model[offset : offset + length]
        assert (state == "data") == (place is not None)
        assert child or state != "parent"
        assert (state, place) != before
        before = (state, place + length if place is not None else None)
    assert covered == len(model)
