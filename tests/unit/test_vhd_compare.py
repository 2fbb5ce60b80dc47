"""hvcore.vhd.compare: the first byte in which two disks differ, whatever their formats."""

from pathlib import Path

import pytest

from hvcore.errors import ImageError
from hvcore.vhd import Difference, compare, convert, create
from hvcore.vhd import open as open_vhd
from tests.reference.hostile import Seed, seeds, written
from tests.reference.vhdx import pattern

MIB = 1 << 20
SIZE = 9 * MIB + 512
SEEDS = {f"{seed.format} {seed.name}": seed for seed in seeds() if len(seed.files) > 1}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The same disk, raw and as a VHDX."""
    (tmp_path / "a").write_bytes(bytes(MIB) + pattern(1, 3 * MIB) + bytes(SIZE - 4 * MIB))
    convert(tmp_path / "a", tmp_path / "b.vhdx", source_format="raw", block_size=MIB)
    return tmp_path / "a", tmp_path / "b.vhdx"


def test_equal_in_other_formats(pair: tuple[Path, Path]) -> None:
    seen: list[float] = []
    found = compare(*pair, first_format="raw", progress=lambda text, part: seen.append(part))
    assert found == Difference(True, None, (SIZE, SIZE))
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert compare(*reversed(pair), second_format="raw").equal


@pytest.mark.parametrize("at", [0, 1, 511, MIB - 1, MIB, 2 * MIB, 4 * MIB - 1, 4 * MIB, 8 * MIB + 5, SIZE - 1])
def test_first_difference(pair: tuple[Path, Path], at: int) -> None:
    """In data and in zeros that only one of the two stores; what differs later does not matter."""
    with pair[0].open("r+b") as file:
        for place in {at, (at + SIZE) // 2}:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    assert compare(*pair, first_format="raw") == Difference(False, at, (SIZE, SIZE))
    assert compare(*reversed(pair), second_format="raw").offset == at


@pytest.mark.parametrize("more", [512, 4 * MIB])
def test_longer_by_zeros(pair: tuple[Path, Path], more: int) -> None:
    with pair[0].open("r+b") as file:
        file.truncate(SIZE + more)
    assert compare(*pair, first_format="raw") == Difference(False, None, (SIZE + more, SIZE))
    with pair[0].open("r+b") as file:
        file.seek(SIZE + more - 1)
        file.write(b"x")
    assert compare(*pair, first_format="raw") == Difference(False, SIZE + more - 1, (SIZE + more, SIZE))
    assert compare(*reversed(pair), second_format="raw").sizes == (SIZE, SIZE + more)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_through_the_parents(tmp_path: Path, seed: Seed) -> None:
    path = written(tmp_path, seed, [])
    with open_vhd(path) as image:
        whole = image.read(0, image.size)
    (tmp_path / "flat").write_bytes(whole)
    assert compare(path, tmp_path / "flat", second_format="raw") == Difference(True, None, (len(whole), len(whole)))
    for at in (0, len(whole) // 2, len(whole) - 1):
        (tmp_path / "flat").write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
        assert compare(path, tmp_path / "flat", second_format="raw").offset == at


def test_sectors_of_different_sizes(tmp_path: Path) -> None:
    create(tmp_path / "a.vhdx", 4 * MIB, sector_size=4096, block_size=MIB)
    create(tmp_path / "b.vhd", 4 * MIB + 512, "vhd")
    assert compare(tmp_path / "a.vhdx", tmp_path / "b.vhd").offset is None
    with open_vhd(tmp_path / "b.vhd", "r+") as image:
        image.write(3 * MIB + 512, b"d" * 512)
    assert compare(tmp_path / "a.vhdx", tmp_path / "b.vhd").offset == 3 * MIB + 512
    assert compare(tmp_path / "b.vhd", tmp_path / "a.vhdx").offset == 3 * MIB + 512


def test_with_itself(pair: tuple[Path, Path]) -> None:
    assert compare(pair[1], pair[1]).equal


def test_interrupted(pair: tuple[Path, Path]) -> None:
    def stop(text: str, part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(*pair, first_format="raw", progress=stop)
    with open_vhd(pair[1], "r+"):  # nobody holds it any more
        pass


def test_one_is_missing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="gone: no such file"):
        compare(pair[1], tmp_path / "gone")
