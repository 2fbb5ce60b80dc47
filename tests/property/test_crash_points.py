"""Cut the power anywhere: every image opens again, is sound, and has all that was flushed (disk-formats.md 11)."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.reference import journal
from tests.reference.crash import (
    LIGHT,
    QUICK,
    THOROUGH,
    Effort,
    Scenario,
    Tally,
    copy_failed,
    explore,
    fast_folder,
    lay_out,
    look,
    operation,
    record,
    wander,
)
from tests.reference.scenarios import ALL, TOOLS, VHD, VHDX, Tool

Report = Callable[[str, object], None]


def cases(scenarios: tuple[Scenario, ...]) -> list[object]:
    return [
        pytest.param(each, id=each.name, marks=[pytest.mark.skip(reason=f"needs {each.lacks}")] if each.lacks else [])
        for each in scenarios
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Its files as the last state left them are in tmp_path/last afterwards."""
    with fast_folder() as folder:
        try:
            yield folder
        finally:
            copy_failed(folder, tmp_path / "last")


def run(scenario: Scenario, folder: Path, report: Report, effort: Effort) -> None:
    tally = Tally()
    explore(scenario, record(scenario, folder), folder, tally, effort)
    report("crash_points", (scenario.name, tally.states, tally.later))


@pytest.mark.parametrize("scenario", cases(ALL))
def test_every_cut(scenario: Scenario, folder: Path, record_property: Report) -> None:
    run(scenario, folder, record_property, QUICK)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_cut_inside_a_tool(tool: Tool, folder: Path, record_property: Report) -> None:
    """The content is the one before or the one after, and once the tool has returned, the one after."""
    if tool.scenario.lacks:
        pytest.skip(f"needs {tool.scenario.lacks}")
    tally = Tally()
    recording = operation(tool.scenario, folder, tool.function, lambda before: before + bytes(tool.more))
    assert recording.records
    explore(tool.scenario, recording, folder, tally, QUICK)
    record_property("crash_points", (tool.name, tally.states, tally.later))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", cases(ALL))
def test_every_cut_and_many_ways_to_lose(scenario: Scenario, folder: Path, record_property: Report) -> None:
    run(scenario, folder, record_property, THOROUGH)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", cases(ALL))
def test_every_cut_of_requests_by_chance(scenario: Scenario, folder: Path, record_property: Report) -> None:
    sectors = len(scenario.build(folder)) // 512
    tally = Tally()
    for seed in range(8):
        lay_out(folder, {})
        steps = wander(scenario, sectors, Random(seed), 25)
        chance = replace(scenario, name=f"{scenario.name}, requests by chance {seed}", steps=steps)
        explore(chance, record(chance, folder), folder, tally, replace(LIGHT, depth=0))
    report = (f"{scenario.name}, requests by chance", tally.states, tally.later)
    record_property("crash_points", report)


def tool(*words: str | Path) -> bytes:
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr.decode()} {done.stdout[-300:]!r}"
    return done.stdout


@pytest.mark.parametrize("scenario", cases((*VHDX, *VHD)))
def test_other_programs_read_the_same(scenario: Scenario, folder: Path) -> None:
    """A sample of the recovered images in 7-Zip; QEMU replays the logs of dynamic VHDX files by itself."""
    if not (shutil.which("7zz") and shutil.which("qemu-img")):
        pytest.skip("needs 7zz (package 7zip) and qemu-img (package qemu-utils)")
    recording = record(scenario, folder)
    kind = scenario.disk.rpartition(".")[2]
    path = folder / scenario.disk
    states = list(
        journal.cuts(recording.start, recording.names, recording.records, first=recording.first, random=0, seed=1)
    )
    for _, _, files in states[:: len(states) // 8 + 1]:
        lay_out(folder, files)
        replayed = b""
        if kind == "vhdx" and len(files) == 1 and scenario.grain == 1:
            copy = folder / "copy"
            shutil.copyfile(path, copy)
            tool("qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", copy)
            tool("qemu-img", "convert", "-f", "vhdx", "-O", "raw", copy, folder / "raw")
            replayed = (folder / "raw").read_bytes()
        found = look(scenario, folder, "r+")
        assert not replayed or replayed == found
        tool("7zz", "t", f"-t{kind}", path)
        assert tool("7zz", "e", "-so", f"-t{kind}", path) == found
