"""Random requests on dynamic and differencing VHDs leave what a bytearray says, session after session; and any bytes in
their structures make one ImageError or a disk that reads, never a crash, a hang or foreign data."""

import os
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvcore.disk.image import open_image
from hvcore.disk.vector import flush, readv, trim, writev
from hvcore.errors import DiskError, ImageError
from tests.reference import vhd
from tests.reference.vhd import TABLE_AT
from tests.reference.vhd_disk import created, layout_of, opened, raw_disk

BLOCK = 8 << 10
SIZE = 5 * BLOCK + 1536
PARENT = vhd.pattern(7, 4 * BLOCK + 512)
OK, RANGE, WOULD_BLOCK = 0, -1, -6
OFFSETS = st.integers(0, SIZE // 512 + 1).map(lambda n: n * 512) | st.sampled_from([(1 << 64) - 512, SIZE, 100])
LENGTHS = st.lists(st.integers(0, 3000) | st.sampled_from([512, 4096, BLOCK]), max_size=5)
VERBS = ["read", "read", "write", "write", "write", "flush", "trim", "nowait", "reopen", "drop"]
STEPS = st.lists(st.tuples(st.sampled_from(VERBS), OFFSETS, LENGTHS, st.integers(1, 255)), max_size=25)
CHECKED = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("origin", ["new", "packed"])
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
@CHECKED
@given(steps=STEPS)
def test_disk_is_a_bytearray(
    kind: str, origin: str, steps: list[tuple[str, int, list[int], int]], tmp_path: Path
) -> None:
    path, base = tmp_path / "d.vhd", tmp_path / "base"
    base.write_bytes(PARENT)
    child = kind == "differencing"
    if origin == "new":
        created(path, SIZE, block_size=BLOCK, child=child)
    else:
        content = {
            2: (vhd.pattern(2, BLOCK), {0, 5, 6, 15}) if child else vhd.pattern(2, BLOCK),
            0: vhd.pattern(0, BLOCK),
        }
        vhd.build(path, SIZE, dict(content), block_size=BLOCK, parent=(vhd.ID, "base") if child else None)
    model = bytearray(vhd.read(path, PARENT if child else None))

    def reopened(write: bool = True):  # type: ignore[no-untyped-def]
        return opened(path, write=write, parent=raw_disk(base) if child else None)

    disk = reopened()
    for verb, offset, lengths, value in steps:
        total = sum(lengths)
        if verb not in ("read", "nowait"):  # writes are in whole sectors
            lengths = [*lengths, -total % 512]
            total += -total % 512
        inside = offset <= SIZE and SIZE - offset >= total
        if verb == "write":
            pieces = [bytes([(value + n) % 256]) * length for n, length in enumerate(lengths)]
            good = inside and (offset % 512 == 0 or total == 0)
            assert writev(disk, offset, pieces) == (OK if good else RANGE)
            if good:
                model[offset : offset + total] = b"".join(pieces)
        elif verb == "trim":
            good = inside and offset % 512 == 0
            assert trim(disk, offset, total) == (OK if good else RANGE)
            if good:
                model[offset : offset + total] = bytes(total)
        elif verb == "flush":
            assert flush(disk) == OK
        elif verb in ("reopen", "drop"):
            if verb == "drop":
                disk.flush()
                del disk
            else:
                disk.close()
            assert vhd.read(path, PARENT if child else None) == model
            disk = reopened()
        else:
            buffers = [bytearray(b"?" * length) for length in lengths]
            status = readv(disk, offset, buffers, nowait=verb == "nowait")
            assert status == (OK if inside else RANGE) or (verb == "nowait" and status == WOULD_BLOCK and inside)
            if status == OK:
                assert b"".join(buffers) == model[offset : offset + total]
            if not inside:
                assert b"".join(buffers) == b"?" * total
    assert disk.read(0, SIZE) == model
    disk.close()
    raw = path.read_bytes()
    assert vhd.read(path, PARENT if child else None) == model
    assert layout_of(path).footer_state == "tail" and raw[-512:] == raw[:512]
    with reopened(write=False) as disk:
        covered = 0
        states = []
        for offset, length, state, place in disk.extents():
            assert offset == covered
            covered += length
            stored = raw[place : place + length] if place is not None else bytes(length)
            if state == "parent":
                stored = PARENT[offset : offset + length].ljust(length, b"\0")
            assert stored == model[offset : offset + length]
            states.append((state, place))
        assert covered == SIZE
        assert {state for state, _ in states} <= {"data", "parent" if child else "zero"}
        joined = [pair for pair in pairwise(states) if pair[0][0] == pair[1][0] != "data"]
        assert not joined


def outcome(path: Path, child: bool) -> None:
    """Refused in one line, or a disk of which every request has a status; nothing else."""
    try:
        with opened(path, write=True, trust_head=True) as disk:
            assert 0 < disk.size <= 2040 << 30
            buffer = bytearray(min(disk.size, 4 * BLOCK))
            assert readv(disk, 0, [buffer]) in ((OK, -3, -9) if child else (OK, -9))
            assert readv(disk, disk.size - 512, [bytearray(512)]) in (OK, -3, -9)
            assert writev(disk, disk.size - 512, [bytes(512)]) in (OK, -5, -9)
            assert flush(disk) == OK
    except (ImageError, DiskError) as error:
        assert "\n" not in str(error)


def sound(path: Path, child: bool) -> bytes:
    blocks = {1: (vhd.pattern(1, BLOCK), {3}) if child else vhd.pattern(1, BLOCK), 3: vhd.pattern(3, BLOCK)}
    vhd.build(path, SIZE, dict(blocks), block_size=BLOCK, parent=(vhd.ID, "base.vhd") if child else None)
    return path.read_bytes()


def resealed(raw: bytearray) -> bytes:
    raw[:512] = vhd.sealed(bytes(raw[:512]), 64)
    raw[512:1536] = vhd.sealed(bytes(raw[512:1536]), 36)
    return bytes(raw[:-512] + raw[:512])


NUMBERS = st.sampled_from([0, 1, 2, 3, 511, 512, 1536, BLOCK, 1 << 20, 1 << 31, (1 << 32) - 1]) | st.integers(
    0, (1 << 32) - 1
)


@pytest.mark.parametrize("child", [False, True])
@CHECKED
@given(
    footer=st.lists(st.tuples(st.sampled_from([8, 16, 20, 40, 48, 52, 56]), NUMBERS), max_size=2),
    header=st.lists(st.tuples(st.integers(2, 15) | st.integers(144, 155), NUMBERS), max_size=3),
    table=st.lists(st.tuples(st.integers(0, 7), NUMBERS | st.integers(0, 60)), max_size=3),
)
def test_hostile_numbers(
    child: bool,
    footer: list[tuple[int, int]],
    header: list[tuple[int, int]],
    table: list[tuple[int, int]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.vhd"
    raw = bytearray(sound(path, child))
    for at, value in footer:
        struct.pack_into(">I", raw, at, value)
    for word, value in header:
        struct.pack_into(">I", raw, 512 + 4 * word, value)
    for entry, value in table:
        struct.pack_into(">I", raw, TABLE_AT + 4 * entry, value)
    path.write_bytes(resealed(raw))
    outcome(path, child)


@pytest.mark.parametrize("child", [False, True])
@CHECKED
@given(entries=st.lists(st.integers(0, 80), min_size=6, max_size=6))
def test_blocks_anywhere(child: bool, entries: list[int], tmp_path: Path) -> None:
    """A table is taken exactly when every block lies inside the file, off the structures, and off all others."""
    path = tmp_path / "d.vhd"
    raw = bytearray(sound(path, child).ljust(80 * 512, b"\0") + sound(path, child)[-512:])
    struct.pack_into(">6I", raw, TABLE_AT, *[entry or vhd.NONE for entry in entries])
    path.write_bytes(raw)
    slot = BLOCK // 512 + 1
    first = (TABLE_AT + 512) // 512 + child
    used = sorted(entry for entry in entries if entry)
    good = all(first <= entry <= 80 - slot for entry in used)
    good = good and all(right - left >= slot for left, right in pairwise(used))
    try:
        opened(path).close()
        assert good
    except ImageError:
        assert not good


@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_flipped_byte(child: bool, flip: int, tmp_path: Path) -> None:
    """Under a checksum: the other copy, or a refusal. In the table: a status for every request."""
    path = tmp_path / "d.vhd"
    raw = sound(path, child)
    for at in [
        *range(0, 96),
        *range(96, TABLE_AT, 17),
        *range(TABLE_AT, TABLE_AT + 24),
        *range(len(raw) - 512, len(raw), 7),
    ]:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
        outcome(path, child)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    raw = sound(path, False)
    for size in [*range(0, 3072, 128), *range(len(raw) - 2100, len(raw), 100)]:
        path.write_bytes(raw[:size])
        outcome(path, False)
        if size < 512 + 1024:
            with pytest.raises(ImageError):
                open_image(path, format="vhd")


def test_sparse_file_of_great_size(tmp_path: Path) -> None:
    """A file that is nearly nothing but claims 2040 GiB in blocks of 4 KiB: opening takes no memory to speak of."""
    path = tmp_path / "d.vhd"
    size = 2040 << 30
    entries = size // 4096
    with path.open("wb") as file:
        file.write(vhd.footer(size) + vhd.header(entries, 4096))
        file.truncate(TABLE_AT + 4 * entries)  # all entries 0: over the header
        file.seek(0, os.SEEK_END)
        file.write(vhd.footer(size))
    with opened(path, write=True) as disk:
        assert readv(disk, size // 2, [bytearray(512)]) == -9
        assert writev(disk, size // 2, [bytes(512)]) == -9
