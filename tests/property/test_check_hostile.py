"""Check and repair against images that an enemy or a failing disk wrote: any bytes in any metadata."""

import itertools
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from hypothesis import event, given, settings
from hypothesis import strategies as st

import hvcore.vhd
from hvcore.disk.crc import crc32c
from hvcore.errors import DiskError, ImageError
from hvcore.vhd.check import CheckResult, check
from hvcore.vhd.repair import repair
from tests.reference import damage, vhd
from tests.reference.damage import BAT_AT, CHUNK, LOG_AT, METADATA_AT, MIB, PAYLOAD_AT
from tests.reference.vhdx import HEADERS, REGION_TABLES

# Where each format keeps what it says of itself: (offset, length).
VHDX_AREAS = [
    (0, 16),
    *((at, 88) for at in HEADERS),
    *((at, 88) for at in REGION_TABLES),
    (LOG_AT, 160),
    (LOG_AT + 4096, 64),
    (BAT_AT, 48),
    (BAT_AT + 8 * CHUNK, 8),
    (METADATA_AT, 240),
    (METADATA_AT + (64 << 10), 256),
    (PAYLOAD_AT, 1032),
]
VHD_AREAS = [(0, 96), (512, 64), (1024, 256), (1536, 32), (2048, 32), (-512, 96)]
VALUES = [0, 1, 2, 3, 4, 6, 7, 255, 511, 512, 4096, MIB - 1, MIB, 2 * MIB, 4 * MIB, 5 * MIB, 6 * MIB, PAYLOAD_AT | 6,
          PAYLOAD_AT | 2, 5 * MIB | 3, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 62, (1 << 63) + MIB,
          (1 << 64) - MIB, (1 << 64) - 1]  # fmt: skip
PAGE = damage.bat_page(PAYLOAD_AT | 6, PAYLOAD_AT + MIB | 6, 2)
KINDS = ["dynamic", "child", "dirty", "vhd", "child vhd", "fixed vhd"]
COUNTER = itertools.count()

# (area, offset in it, width in bytes, value, big-endian)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.integers(0, 1100),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from(VALUES) | st.integers(0, (1 << 64) - 1),
    ),
    min_size=1,
    max_size=4,
)
LENGTHS = st.none() | st.sampled_from([1, 511, 512, MIB, 3 * MIB, 5 * MIB, 6 * MIB - 512, 16 * MIB, 1 << 40])


@cache
def base(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        if kind in ("dynamic", "dirty"):
            damage.dynamic_vhdx(path)
        elif kind == "child":
            damage.child_vhdx(path)
        elif kind == "vhd":
            damage.dynamic_vhd(path)
        elif kind == "child vhd":
            damage.child_vhd(path)
        else:
            damage.fixed_vhd(path)
        raw = bytearray(path.read_bytes())
    if kind == "dirty":
        damage.dirty((BAT_AT, PAGE), (PAYLOAD_AT + 4096, 8192))(raw)
    return bytes(raw)


def seal(raw: bytearray, at: int, length: int) -> None:
    """A checksum as VHDX has it, in a structure that may be one no more."""
    if 0 < length <= MIB and at + length <= len(raw):
        raw[at + 4 : at + 8] = bytes(4)
        raw[at + 4 : at + 8] = crc32c(bytes(raw[at : at + length])).to_bytes(4, "little")


def seal_all(raw: bytearray, kind: str) -> None:
    """Makes all checksums right, so that what is behind them is looked at."""
    if "vhd" in kind:
        for at, length, field in ((0, 512, 64), (512, 1024, 36), (len(raw) - 512, 512, 64)):
            if kind == "fixed vhd" and at < len(raw) - 512:
                continue
            raw[at : at + length] = vhd.sealed(bytes(raw[at : at + length]), field)
        return
    for at in HEADERS:
        seal(raw, at, 4096)
    for at in REGION_TABLES:
        seal(raw, at, 64 << 10)
    seal(raw, LOG_AT, struct.unpack_from("<I", raw, LOG_AT + 8)[0])


@contextmanager
def hostile(kind: str, changes: list[tuple[int, int, int, int]], sealed: bool, length: int | None) -> Iterator[Path]:
    raw = bytearray(base(kind))
    areas = VHD_AREAS if "vhd" in kind else VHDX_AREAS
    for area, offset, width, value in changes:
        start, size = areas[area % len(areas)]
        at = (start + len(raw) if start < 0 else start) + offset % size
        raw[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "big" if "vhd" in kind else "little")
    if sealed:
        seal_all(raw, kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        path.write_bytes(raw)
        if length is not None:
            os.truncate(path, length)
        yield path


def judged(path: Path, kind: str) -> CheckResult | None:
    try:
        result = check(path, "vhd" if "vhd" in kind else "vhdx", chain=False)
    except (ImageError, DiskError):
        event("could not be looked at")
        return None
    assert {each.severity for each in result.findings} <= {"damage", "warning", "note"}
    assert len(result.findings) < 1000 and all(each.structure and each.message for each in result.findings)
    assert result.allocated_blocks >= 0 and 0 <= result.unreferenced_bytes <= max(result.file_size, 1 << 41)
    event("clean" if result.clean else "damaged")
    return result


def content(path: Path, kind: str) -> bytes | None:
    """The disk as it reads; None: it does not."""
    try:
        with hvcore.vhd.open(path, format="vhd" if "vhd" in kind else "vhdx") as image:
            return image.read(0, min(image.size, 8 * MIB))
    except (ImageError, DiskError):
        return None


@given(st.sampled_from(KINDS), CHANGES, st.booleans(), LENGTHS)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_check_ends_with_findings_or_one_error(
    kind: str, changes: list[tuple[int, int, int, int]], sealed: bool, length: int | None
) -> None:
    with hostile(kind, changes, sealed, length) as path:
        size = path.stat().st_size
        result = judged(path, kind)
        assert path.stat().st_size == size and (result is None or result.file_size == size)
        # What is clean can be opened and read; a child's parent is not there to be opened.
        if result is not None and result.clean and "child" not in kind:
            assert content(path, kind) is not None


@given(st.sampled_from(KINDS), CHANGES, st.booleans(), LENGTHS)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_repair_takes_nothing_away(
    kind: str, changes: list[tuple[int, int, int, int]], sealed: bool, length: int | None
) -> None:
    """What could be read reads the same; what is left is listed; once is enough."""
    with hostile(kind, changes, sealed, length) as path:
        before, found = content(path, kind), judged(path, kind)
        try:
            result = repair(path, "vhd" if "vhd" in kind else "vhdx")
        except (ImageError, DiskError):
            assert content(path, kind) == before or before is None
            return
        if before is not None:
            assert content(path, kind) == before
        event("repaired" if result.actions else "left alone")
        after = judged(path, kind)
        assert after is not None and found is not None
        assert tuple(each for each in after.findings if each.severity != "note") == result.remaining
        # What check() promises is done, and damage is never more than it was.
        promised = [each for each in found.findings if each.repair and "trust_head" not in each.repair]
        assert bool(promised) <= bool(result.actions)
        assert not any(each.repair and "trust_head" not in each.repair for each in result.remaining)
        if found.clean:
            assert after.clean
