"""Random requests on every backend leave what a bytearray says."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvcore.disk.image import open_image
from hvcore.disk.ram import RamDisk
from hvcore.disk.vector import flush, readv, trim, writev
from hvcore.vhd import create
from tests.reference import vhdx
from tests.reference.vhdx import MIB

SIZE = 24 << 10
OK, RANGE, READ_ONLY, WOULD_BLOCK, UNSUPPORTED = 0, -1, -2, -6, -7
OFFSETS = st.integers(0, SIZE + 600) | st.sampled_from([0, SIZE, SIZE - 512, (1 << 64) - 512])
LENGTHS = st.lists(st.integers(0, 3000) | st.sampled_from([512, 4096]), max_size=6)
STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "write", "flush", "trim", "nowait"]), OFFSETS, LENGTHS, st.integers(1, 255)),
    max_size=24,
)


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Any]:
    if kind == "ram":
        with RamDisk(SIZE) as disk:
            yield disk
        return
    path = folder / kind
    path.unlink(missing_ok=True)
    create(path, SIZE, kind, "fixed")
    with open_image(path, mode="r+", format=kind) as disk:
        yield disk
    with open_image(path, format=kind) as disk:
        assert disk.size == SIZE


@pytest.mark.parametrize("kind", ["raw", "vhd", "ram"])
@settings(
    derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_disk_is_a_bytearray(kind: str, steps: list[tuple[str, int, list[int], int]], tmp_path: Path) -> None:
    model = bytearray(SIZE)
    with opened(kind, tmp_path) as disk:
        for verb, offset, lengths, value in steps:
            total = sum(lengths)
            inside = offset <= SIZE and SIZE - offset >= total
            if verb == "write":
                pieces = [bytes([(value + n) % 256]) * length for n, length in enumerate(lengths)]
                assert writev(disk, offset, pieces) == (OK if inside else RANGE)
                if inside:
                    model[offset : offset + total] = b"".join(pieces)
            elif verb == "flush":
                assert flush(disk) == OK
            elif verb == "trim":
                expected = UNSUPPORTED if kind == "vhd" else OK if inside else RANGE
                assert trim(disk, offset, total) == expected
                if expected == OK:
                    model[offset : offset + total] = bytes(total)
            else:
                buffers = [bytearray(b"?" * length) for length in lengths]
                status = readv(disk, offset, buffers, nowait=verb == "nowait")
                assert status == (OK if inside else RANGE) or (verb == "nowait" and status == WOULD_BLOCK and inside)
                if status == OK:
                    assert b"".join(buffers) == model[offset : offset + total]
                if not inside:
                    assert b"".join(buffers) == b"?" * total
        assert disk.read(0, SIZE) == model
    if kind != "ram":
        assert (tmp_path / kind).read_bytes()[:SIZE] == model


PRESENT = st.lists(st.sampled_from(["hole", "zero", "data"]), min_size=1, max_size=5)


@pytest.mark.parametrize("sector_size", [512, 4096])
@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=PRESENT,
    order=st.randoms(use_true_random=False),
    short=st.integers(0, 200),
    reads=st.lists(st.tuples(st.integers(0, 5 * MIB), st.lists(st.integers(0, MIB), max_size=5)), max_size=6),
)
def test_vhdx_is_a_bytearray(
    sector_size: int, blocks: list[str], order: Any, short: int, reads: list[tuple[int, list[int]]], tmp_path: Path
) -> None:
    size = len(blocks) * MIB - short * sector_size
    content: dict[int, bytes | int] = {
        n: 2 if what == "zero" else DATA[n] for n, what in enumerate(blocks) if what != "hole"
    }
    keys = list(content)
    order.shuffle(keys)
    path = tmp_path / "d.vhdx"
    vhdx.build(path, size, {key: content[key] for key in keys}, sector_size=sector_size)
    model = b"".join(DATA[n] if what == "data" else bytes(MIB) for n, what in enumerate(blocks))[:size]
    with open_image(path) as disk:
        assert disk.read(0, size) == model
        for offset, lengths in reads:
            buffers = [bytearray(length) for length in lengths]
            inside = offset + sum(lengths) <= size
            assert readv(disk, offset, buffers) == (OK if inside else RANGE)
            assert not inside or b"".join(buffers) == model[offset : offset + sum(lengths)]
        covered = 0
        for offset, length, _, place in disk.extents():
            assert offset == covered
            covered += length
            stored = bytes(length)
            if place is not None:
                fd = os.open(path, os.O_RDONLY)
                stored = os.pread(fd, length, place)
                os.close(fd)
            assert stored == model[offset : offset + length]
        assert covered == size


DATA = {n: vhdx.pattern(n, MIB) for n in range(5)}
