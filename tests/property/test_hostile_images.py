"""Damaged and hostile images: one ImageError or a disk that reads, never a crash, a hang or foreign data."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvcore.disk.crc import crc32c
from hvcore.disk.image import open_image
from hvcore.errors import DiskError, ImageError, ParentError
from hvcore.vhd import create
from hvcore.vhd import open as open_vhd
from tests.reference import vhdx
from tests.reference.exercise import exercise
from tests.reference.hostile import Change, File, Seed, seeds, vhdx_file, written
from tests.reference.vhdx import BAT_AT, HEADERS, METADATA_AT, MIB, PAYLOAD_AT, REGION_TABLES

BLOCKS = 2
CONTENT = b"".join(vhdx.pattern(n, MIB) for n in range(BLOCKS)) + bytes(MIB)
SEALED = [(at, 96, 4096) for at in HEADERS] + [(at, 96, 65536) for at in REGION_TABLES]
OPEN = [(METADATA_AT, 200), (METADATA_AT + 65536, 40), (BAT_AT, 32)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "d.vhdx"
    vhdx.build(path, 3 * MIB, {n: vhdx.pattern(n, MIB) for n in range(BLOCKS)})
    return path


@contextmanager
def patched(path: Path, *patches: tuple[int, bytes]) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR)
    before = [(at, os.pread(fd, len(data), at)) for at, data in patches]
    try:
        for at, data in patches:
            os.pwrite(fd, data, at)
        yield
    finally:
        for at, data in reversed(before):
            os.pwrite(fd, data, at)
        os.close(fd)


def outcome(path: Path) -> bytes | None:
    """What the disk reads as, its first bytes if it is large; None: refused with one line that names the file."""
    try:
        with open_image(path, format="vhdx") as disk:
            assert disk.size > 0 and disk.size % disk.sector_size == 0
            disk.read(disk.size - disk.sector_size, disk.sector_size)
            return disk.read(0, min(disk.size, 3 * MIB))
    except ImageError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return None


def byte_at(path: Path, at: int) -> int:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(1)[0]


@pytest.mark.parametrize(("at", "length", "_whole"), SEALED)
def test_flipped_byte_under_a_checksum(image: Path, at: int, length: int, _whole: int) -> None:
    """The other copy is used: nothing changes."""
    for offset in range(at, at + length, 3):
        with patched(image, (offset, bytes([byte_at(image, offset) ^ 0x11]))):
            assert outcome(image) == CONTENT


def test_flipped_byte_in_the_identifier(image: Path) -> None:
    for offset in range(8):
        with patched(image, (offset, bytes([byte_at(image, offset) ^ 0x20]))):
            assert outcome(image) is None


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_flipped_byte_without_a_checksum(image: Path, flip: int) -> None:
    refused = 0
    for start, length in OPEN:
        for offset in range(start, start + length):
            with patched(image, (offset, bytes([byte_at(image, offset) ^ flip]))):
                refused += outcome(image) is None
    assert refused > 100


def resealed(path: Path, at: int, whole: int, patches: list[tuple[int, bytes]]) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        raw = bytearray(file.read(whole))
    for offset, data in patches:
        raw[offset : offset + len(data)] = data
    raw[4:8] = bytes(4)
    raw[4:8] = struct.pack("<I", crc32c(raw))
    return bytes(raw)


@pytest.mark.parametrize("tables", [HEADERS, REGION_TABLES])
def test_flipped_byte_with_a_right_checksum(image: Path, tables: tuple[int, int]) -> None:
    """An enemy computes checksums too; with both copies changed alike there is no way around the field."""
    whole = 4096 if tables is HEADERS else 65536
    refused = 0
    for offset in range(8, 84):
        value = bytes([byte_at(image, tables[0] + offset) ^ 0x81])
        block = resealed(image, tables[0], whole, [(offset, value)])
        with patched(image, *[(at, block) for at in tables]):
            found = outcome(image)
            assert found in (None, CONTENT)
            refused += found is None
    # A LogGuid whose log is empty is no reason to refuse reading.
    assert refused > (12 if tables is HEADERS else 20)


NUMBERS = st.integers(0, (1 << 64) - 1) | st.sampled_from(
    [0, 1, MIB, 2 * MIB, 3 * MIB, 4 * MIB, 1 << 31, 1 << 32, 1 << 44, 1 << 63, (1 << 64) - MIB, (1 << 64) - 1]
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    header=st.lists(st.tuples(st.integers(64, 76), NUMBERS), max_size=2),
    regions=st.lists(st.tuples(st.sampled_from([8, 12, 32, 40, 44, 64, 72, 76]), NUMBERS), max_size=3),
    table=st.lists(st.tuples(st.integers(0, 47).map(lambda n: n * 4), NUMBERS), max_size=3),
    items=st.lists(st.tuples(st.integers(0, 36), NUMBERS), max_size=3),
    bat=st.lists(st.tuples(st.integers(0, 3), NUMBERS), max_size=3),
)
def test_hostile_numbers(
    image: Path,
    header: list[tuple[int, int]],
    regions: list[tuple[int, int]],
    table: list[tuple[int, int]],
    items: list[tuple[int, int]],
    bat: list[tuple[int, int]],
) -> None:
    def packed(changes: list[tuple[int, int]]) -> list[tuple[int, bytes]]:
        return [(offset, struct.pack("<Q", value)) for offset, value in changes]

    patches = [(at, resealed(image, at, 4096, packed(header))) for at in HEADERS]
    patches += [(at, resealed(image, at, 65536, packed(regions))) for at in REGION_TABLES]
    patches += [(METADATA_AT + offset, data) for offset, data in packed(table)]
    patches += [(METADATA_AT + 65536 + offset, data) for offset, data in packed(items)]
    patches += [(BAT_AT + 8 * entry, struct.pack("<Q", value)) for entry, value in bat]
    with patched(image, *patches):
        outcome(image)
    assert outcome(image) == CONTENT


def test_vhdx_truncated_anywhere(image: Path, tmp_path: Path) -> None:
    raw = image.read_bytes()
    edges = [
        0,
        8,
        *HEADERS,
        *REGION_TABLES,
        MIB,
        BAT_AT,
        METADATA_AT,
        METADATA_AT + 65536,
        PAYLOAD_AT,
        PAYLOAD_AT + MIB,
    ]
    edges += [at + 4096 for at in HEADERS] + [at + 65536 for at in REGION_TABLES] + [METADATA_AT + 65576, len(raw)]
    path = tmp_path / "cut.vhdx"
    for size in sorted({edge + n for edge in edges for n in (-1, 0, 1) if 0 <= edge + n < len(raw)}):
        path.write_bytes(raw[:size])
        assert outcome(path) is None


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_flipped_byte_in_a_footer(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "d.vhd"
    create(path, 4096, "vhd", "fixed")
    raw = path.read_bytes()
    for at in range(4096, 4096 + 512):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
        with pytest.raises(ImageError):
            open_image(path, format="vhd")


def test_vhd_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    create(path, 4096, "vhd", "fixed")
    raw = path.read_bytes()
    # The last byte is unused: without it the footer is one of 511 bytes, and the same disk.
    for size in [*range(0, 4096, 64), *range(4090, len(raw) - 1)]:
        path.write_bytes(raw[:size])
        with pytest.raises(ImageError):
            open_image(path, format="vhd")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    head=st.binary(max_size=600), tail=st.binary(max_size=600), hint=st.sampled_from([b"", b"vhdxfile", b"conectix"])
)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, head: bytes, tail: bytes, hint: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(hint + head + hint + tail)
    for format in (None, "vhd", "vhdx"):
        with pytest.raises(ImageError):
            open_image(path, format=format)


# Every structure of every kind of image, changed field by field ------------------------------------------------------

SEEDS = {f"{seed.format} {seed.name}": seed for seed in seeds()}
RANDOM = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, (1 << 64) - 1), st.integers(0, 15)), max_size=5
)

SAME_FOLDER = [HealthCheck.function_scoped_fixture]  # every image replaces the one before


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is a file system for that: these tests flush thousands of times."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_unchanged_image_opens(folder: Path, seed: Seed) -> None:
    assert exercise(written(folder, seed, []), seed.format)
    assert exercise(written(folder, seed, []), None)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=SAME_FOLDER)
@given(changes=RANDOM, recognise=st.booleans())
def test_changed_image(folder: Path, seed: Seed, changes: list[Change], recognise: bool) -> None:
    exercise(written(folder, seed, changes), None if recognise else seed.format)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_every_field_at_its_edges(folder: Path, seed: Seed) -> None:
    """One field at a time, all copies alike, to nothing, to all ones and by one."""
    for which, (number, structure) in enumerate(seed.targets):
        for where in range(min(len(structure.fields), 40) if structure is not None and number == 0 else 0):
            for value in (0, 1 << 3, (1 << 64) - 1, 3 + 8 * 5):
                path = written(folder, seed, [(which, where, value, 0)])
                open_only(path, seed.format)


def open_only(path: Path, format: str) -> None:
    with suppress(ImageError, DiskError), open_vhd(path, "r", format) as image:
        image.read(0, image.sector_size)


@pytest.mark.parametrize("links", [("a", "a"), ("a", "b", "a"), ("a", "b", "c", "b")])
def test_chain_in_a_circle(folder: Path, links: tuple[str, ...]) -> None:
    for name, parent in pairwise(links):
        file = vhdx_file(f"{name}.vhdx", MIB, [0], flags=2, parent=f".\\{parent}.vhdx")
        written(folder, Seed(name, "vhdx", (file,)), [])
    with pytest.raises(ParentError) as caught:
        open_vhd(folder / "a.vhdx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("links", [255, 256, 300])
def test_chain_of_any_depth(folder: Path, links: int) -> None:
    """256 images are a chain; more are refused before they are all open."""
    for n in range(links):
        parent = None if n == links - 1 else f"{n + 1}.vhdx"
        file = vhdx_file(f"{n}.vhdx", MIB, [0], flags=2 if parent else 0, parent=parent)
        written(folder, Seed("link", "vhdx", (file,)), [])
    if links <= 256:
        with open_vhd(folder / "0.vhdx") as image:
            assert image.read(0, MIB) == bytes(MIB)
    else:
        with pytest.raises(ParentError):
            open_vhd(folder / "0.vhdx")


def test_missing_parent(folder: Path) -> None:
    file = vhdx_file("c.vhdx", MIB, [0], flags=2, parent="gone.vhdx")
    with pytest.raises(ParentError, match=r"gone\.vhdx"):
        open_vhd(written(folder, Seed("orphan", "vhdx", (file,)), []))


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "\\",
        "..\\" * 40 + "etc\\passwd",
        "\0",
        "a\0b",
        "\ud800",
        "/dev/zero",
        "con",
        "x" * 5000,
        "c.vhdx\\",
    ],
)
def test_hostile_parent_path(folder: Path, path: str) -> None:
    """A locator may say anything; nothing is opened that is no image, and the answer is one line."""
    raw = vhdx_file("c.vhdx", MIB, [0], flags=2, parent="X" * len(path))
    text = path.encode("utf-16-le", "surrogatepass")
    pieces = {
        at: data.replace(("X" * len(path)).encode("utf-16-le"), text) if path else data
        for at, data in raw.pieces.items()
    }
    file = File(raw.name, raw.size, pieces, raw.structures)
    with pytest.raises(ImageError) as caught:
        open_vhd(written(folder, Seed("liar", "vhdx", (file,)), []))
    assert "\n" not in str(caught.value)


def test_parent_that_is_a_pipe(folder: Path) -> None:
    """Opening one would wait for a writer."""
    os.mkfifo(folder / "p.vhdx")
    file = vhdx_file("c.vhdx", MIB, [0], flags=2, parent="p.vhdx")
    with pytest.raises(ImageError, match="neither a regular file"):
        open_vhd(written(folder, Seed("child", "vhdx", (file,)), []))
