"""Cut the power anywhere: every image opens again, is sound, and has all that was flushed (disk-formats.md 11)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reference.crash import LIGHT, THOROUGH, Effort, Scenario, Tally, copy_failed, explore, fast_folder, record
from tests.reference.scenarios import ALL

Report = Callable[[str, object], None]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with fast_folder() as folder:
        try:
            yield folder
        finally:
            if any(folder.iterdir()):
                copy_failed(folder, tmp_path / "last")


def run(scenario: Scenario, folder: Path, report: Report, effort: Effort) -> None:
    tally = Tally()
    explore(scenario, record(scenario, folder), folder, tally, effort)
    assert tally.states > tally.cuts
    report("crash_points", (scenario.name, tally.states, tally.later))


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_every_cut(scenario: Scenario, folder: Path, record_property: Report) -> None:
    run(scenario, folder, record_property, LIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_every_cut_and_many_ways_to_lose(scenario: Scenario, folder: Path, record_property: Report) -> None:
    run(scenario, folder, record_property, THOROUGH)
