"""Break the medium at every call: errors come out as errors, and all that was flushed is there afterwards.

A failed write may have happened or not, a failed flush promises nothing (disk-formats.md 11, rules 12 and 14).
"""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reference.crash import Fault, Scenario, calls, copy_failed, disturb, fast_folder, taken
from tests.reference.scenarios import ALL

FAULTS = {
    "EIO once": Fault(errno.EIO, False),
    "ENOSPC once": Fault(errno.ENOSPC, False),
    "EIO from then on": Fault(errno.EIO, True),
    "half a write": Fault(0, False),
}
LIGHT = 12
SCENARIOS = [
    pytest.param(each, id=each.name, marks=[pytest.mark.skip(reason=f"needs {each.lacks}")] if each.lacks else [])
    for each in ALL
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with fast_folder() as folder:
        try:
            yield folder
        except BaseException:
            copy_failed(folder, tmp_path / "failed")
            raise


def run(
    scenario: Scenario, folder: Path, fault: Fault, most: int | None, report: Callable[[str, object], None]
) -> None:
    content = scenario.build(folder)
    start = taken(folder)
    last = calls(scenario, folder)
    # Every call, or so many of them: the first ones open the image, then comes what its guest does.
    step = 1 if most is None else max(1, last // most)
    runs = 0
    for number, call in enumerate(range(1, last + step, step)):
        for close in (False, True) if most is None else (bool(number % 2),):
            happened = disturb(scenario, folder, start, content, call, fault, close)
            if close:
                assert happened == (call <= last)  # the runs end where they went past the last call
            runs += 1
    report("faults", (scenario.name, runs))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fault_loses_nothing_flushed(
    scenario: Scenario, fault: str, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    run(scenario, folder, FAULTS[fault], LIGHT, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fault_at_any_call_loses_nothing_flushed(
    scenario: Scenario, fault: str, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    run(scenario, folder, FAULTS[fault], None, record_property)
