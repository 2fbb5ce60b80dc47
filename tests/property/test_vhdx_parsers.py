"""Every parser of VHDX structures on mutated bytes: an object, nothing, or one ImageError; never another exception."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.disk.image import open_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx import layout, log, structures
from hvcore.disk.vhdx.locator import parse_locator
from hvcore.disk.vhdx.structures import MetadataItem
from hvcore.errors import ImageError
from tests.reference import vhdx
from tests.reference.vhdx import LINKAGE, MIB, PAYLOAD_AT, RELATIVE, log_entry, sealed, write_log

NUMBERS = st.integers(0, (1 << 64) - 1) | st.sampled_from(
    [0, 1, 2, 4096, 65536, MIB, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 44, 1 << 63, (1 << 64) - MIB, (1 << 64) - 1]
)


def changes(length: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(st.integers(0, length - 1), NUMBERS), max_size=4)


def mutated(raw: bytes, patches: list[tuple[int, int]]) -> bytes:
    result = bytearray(raw)
    for offset, value in patches:
        part = struct.pack("<Q", value)[: len(raw) - offset]
        result[offset : offset + len(part)] = part
    return bytes(result)


def one_line(function: Callable[[], object]) -> object:
    try:
        return function()
    except ImageError as error:
        assert str(error) and "\n" not in str(error)
        return None


@settings(derandomize=True, deadline=None, max_examples=150)
@given(changes(88), changes(88), st.integers(0, 1 << 64))
def test_headers(first: list[tuple[int, int]], second: list[tuple[int, int]], file_size: int) -> None:
    copies = [sealed(mutated(vhdx.header(n + 1), patches)) for n, patches in enumerate((first, second))]
    for copy, raw in enumerate(copies):
        found = structures.parse_header(raw, copy)
        if found is not None:
            # What is parsed is what was there, but for reserved bytes.
            assert structures.build_header(found)[8:80] == raw[8:80]
            for fault in structures.judge_header(found, file_size):
                assert isinstance(fault, ImageError) and "\n" not in str(fault)
    one_line(lambda: structures.select_header(copies))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(changes(112), st.integers(0, 1 << 64))
def test_region_tables(patches: list[tuple[int, int]], file_size: int) -> None:
    raw = mutated(vhdx.region_table(), patches)
    raw = structures.sealed(raw)
    table = structures.parse_region_table(raw)
    if table is None:
        assert raw[:4] != b"regi"
        return
    assert len(table.regions) == min(table.count, 2047)
    faults = list(structures.judge_region_table(table, 0, file_size))
    if not faults:
        assert all(region.offset + region.length <= file_size for region in table.regions)
        ranges = [(region.name, region.offset, region.length) for region in table.regions]
        faults += structures.judge_disjoint(ranges)
    assert all("\n" not in str(fault) for fault in faults)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(changes(32 * 8), changes(40))
def test_metadata(table: list[tuple[int, int]], contents: list[tuple[int, int]]) -> None:
    raw = vhdx.metadata(vhdx.standard_items(1 << 30, 2 * MIB))
    raw = mutated(raw[:65536], table) + mutated(raw[65536:], contents)
    raw = raw.ljust(MIB, b"\0")
    found = structures.parse_metadata(raw)
    if found is None:
        assert raw[:8] != b"metadata"
        return
    faults = list(structures.judge_metadata(found, 3 * MIB, MIB))
    assert all("\n" not in str(fault) for fault in faults)
    if faults:
        return
    items = [
        MetadataItem(each.guid, each.flags, each.offset, each.length, raw[each.offset : each.offset + each.length])
        for each in found.items
    ]
    parameters = layout.parse_parameters(items)
    if not list(layout.judge_parameters(parameters, MIB, 3 * MIB)):
        assert parameters.size % parameters.sector_size == 0 < parameters.size <= 64 << 40
        assert structures.build_metadata(items)[: 32 + 32 * len(items)][32:] == raw[32 : 32 + 32 * len(items)]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(changes(196), st.integers(0, 196))
def test_locator(patches: list[tuple[int, int]], length: int) -> None:
    raw = mutated(vhdx.locator(LINKAGE, RELATIVE), patches)
    for part in (raw, raw[:length]):
        found = one_line(lambda part=part: parse_locator(part))  # type: ignore[misc]
        if found is not None:
            assert parse_locator(found.build()) == found  # type: ignore[attr-defined]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(raw=st.binary(max_size=300), body=st.binary(max_size=300))
def test_locator_of_any_bytes(raw: bytes, body: bytes) -> None:
    one_line(lambda: parse_locator(raw))
    one_line(lambda: parse_locator(vhdx.LOCATOR_TYPE.bytes_le + b"\0\0" + body))


DIRTY = structures.Header(2, vhdx.FILE_WRITE, vhdx.DATA_WRITE, vhdx.LOG, 0, 1, MIB, MIB, 1)
PAGES = [(PAYLOAD_AT, b"p" * 4096), (PAYLOAD_AT + 4096, 8192), (PAYLOAD_AT + 8192, b"q" * 4096)]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(changes(64 + 3 * 32), st.integers(0, 3 * 4096), st.booleans())
def test_log_entries(patches: list[tuple[int, int]], length: int, checksum: bool) -> None:
    raw = mutated(log_entry((7 << 32) + 9, PAGES), patches)
    if checksum:
        raw = structures.sealed(raw)
    found = log.parse_entry(raw, DIRTY)
    assert log.parse_entry(raw[:length], DIRTY) in (None, found)
    if found is not None and not found.fault:
        for offset, content in log.entry_pieces(raw, found):
            size = content if isinstance(content, int) else len(content)
            assert offset >= 192 << 10 and size > 0 and offset % 4096 == size % 4096 == 0
            assert offset + size <= log.MAX_FILE
            assert offset >= 2 * MIB or offset + size <= MIB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parsers") / "d.vhdx"
    vhdx.build(path, 2 * MIB, {0: vhdx.pattern(0, MIB), 1: vhdx.pattern(1, MIB)})
    return path


ENTRY = st.tuples(st.integers(0, 255), st.integers(1, 6), st.integers(0, 255), changes(96), st.booleans())


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(ENTRY, max_size=8))
def test_whole_logs(image: Path, entries: list[tuple[int, int, int, list[tuple[int, int]], bool]]) -> None:
    """Entries anywhere, over each other too: a disk, or one error; and the file is not touched."""
    log_entries = [
        (4096 * at, structures.sealed(mutated(log_entry(number, PAGES[:2] if two else [], tail=4096 * tail), patches)))
        for at, number, tail, patches, two in entries
    ]
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(MIB))
    write_log(image, log_entries)
    before = image.read_bytes()
    disk = one_line(lambda: open_image(image))
    if disk is not None:
        with disk:  # type: ignore[attr-defined]
            disk.read(0, MIB)  # type: ignore[attr-defined]
    assert image.read_bytes() == before
    # The rule of 9.3, word by word and without memory of what was seen.
    with ImageFile(os.open(image, os.O_RDONLY)) as file:
        try:
            found = log.find_sequence(file, DIRTY)
        except ImageError:
            return
        assert [(entry.position, entry.sequence) for entry in found] == plain_search(file)


def plain_search(file: ImageFile) -> list[tuple[int, int]]:
    def entry(at: int) -> log.LogEntry | None:
        return log.parse_entry(log.read_ring(file, DIRTY, at, MIB), DIRTY)

    best: list[tuple[int, int]] = []
    t = 0
    while True:
        run: list[tuple[int, int]] = []
        p, total, tail = t, 0, -1
        while (found := entry(p)) and (not run or found.sequence == run[-1][1] + 1) and total + found.length <= MIB:
            run.append((p, found.sequence))
            total += found.length
            tail = found.tail
            p = (p + found.length) % MIB
        candidate = tail in [at for at, _ in run]
        if candidate and (not best or run[-1][1] > best[-1][1]):
            best = run
        following = p if candidate else (t + 4096) % MIB
        if following <= t:
            return best
        t = following
