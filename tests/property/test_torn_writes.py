"""Writes torn by a rule at every sector, and the power cut behind them: what a VHDX holds then, and after a crash."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvcore.disk.filter import FilterDisk
from hvcore.disk.image import open_image
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.errors import DiskError
from hvcore.vhd import check
from tests.reference.crash import (
    SECTOR,
    Disk,
    Effort,
    Oracle,
    Recording,
    Scenario,
    Tally,
    explore,
    fast_folder,
    fresh,
    journal_file,
    parsed,
    perform,
    taken,
)
from tests.reference.scenarios import BLOCK, build_vhdx
from tests.reference.vhdx import MIB

SIZE = 4 * MIB
FIRST, SECTORS = 2 * BLOCK - 9, 17  # the end of a block that is there, and the beginning of one that is not


def build(folder: Path) -> bytes:
    return build_vhdx(folder / "disk.vhdx", SIZE, (1,))


def filtered(rules: list[dict[str, Any]]) -> Callable[[Path, str], Disk]:
    def opened(path: Path, mode: str) -> Disk:
        return FilterDisk(open_image(path, mode=mode), rules)

    return opened


@pytest.mark.parametrize("then", ["error", "success", "cut"])
def test_the_first_sectors_are_new_and_the_others_old(then: str) -> None:
    new = fresh(7, FIRST, SECTORS)
    with fast_folder() as folder:
        for keep in range(SECTORS + 1):
            content = bytearray(build(folder))
            content[FIRST * SECTOR : (FIRST + keep) * SECTOR] = new[: keep * SECTOR]
            rules = [{"tear": keep * SECTOR, "then": then}]
            with FilterDisk(open_image(folder / "disk.vhdx", mode="r+"), rules) as disk:
                if then == "success":
                    disk.write(FIRST * SECTOR, new)
                else:
                    with pytest.raises(DiskError, match="could not be written"):
                        disk.write(FIRST * SECTOR, new)
                if then == "cut":
                    with pytest.raises(DiskError):
                        disk.write(0, bytes(SECTOR))
            with open_image(folder / "disk.vhdx") as closed:
                assert closed.read(0, SIZE) == content, keep
            assert check(folder / "disk.vhdx").clean


def crash(keep: int, effort: Effort) -> Tally:
    """Every cut of the image's own medium, before and after the tear, leaves an image that opens, and all flushed."""
    rules = [{"offset": FIRST * SECTOR, "length": SECTORS * SECTOR, "tear": keep * SECTOR, "then": "cut"}]
    steps = (
        ("write", 0, 8),
        ("write", BLOCK, 4),
        ("flush", 0, 0),
        ("write", FIRST, SECTORS),
        ("write", 3 * BLOCK, 8),
        ("flush", 0, 0),
    )
    scenario = Scenario("torn write", "disk.vhdx", build, steps, block=BLOCK, open=filtered(rules))
    with fast_folder() as folder:
        content = build(folder)
        start = taken(folder)
        with journal_file() as log, probing(Probe(log)) as probe:
            changes, disk, _ = perform(scenario, folder, lambda: log_bytes(log), tolerate=True)
            assert [change.failed for change in changes] == [False, False, False, True, True, True]
            assert disk is not None
            disk.close()
            records, positions, names = parsed(log, probe.names)
        recording = Recording(start, names, records, positions, lambda: Oracle(content, changes))
        tally = Tally()
        explore(
            replace(scenario, open=lambda path, mode: open_image(path, mode=mode)), recording, folder, tally, effort
        )
        return tally


def log_bytes(fd: int) -> int:
    return Path(f"/proc/self/fd/{fd}").stat().st_size


@pytest.mark.parametrize("keep", [5, 12])
def test_a_crash_after_a_torn_write_loses_nothing_flushed(keep: int) -> None:
    assert crash(keep, Effort(random=1, depth=0)).states > 20


@pytest.mark.slow
@pytest.mark.parametrize("keep", range(SECTORS + 1))
def test_a_crash_after_a_write_torn_anywhere_loses_nothing_flushed(keep: int) -> None:
    assert crash(keep, Effort(random=4, each=True, life=30)).states > 40
