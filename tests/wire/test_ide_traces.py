"""The register traces of ide.md section 9, on the controller and on its twin."""

from typing import Any

import pytest

from hvcore.ide import Controller
from tests.reference import ide as reference
from tests.reference.ide_disk import PatternDisk
from tests.reference.ide_traces import MEMORY, TRACES, Player, options


def test_all_traces_are_there() -> None:
    assert {heading[:3] for heading in TRACES} == {f"T{n:02}" for n in range(1, 34)}


@pytest.mark.parametrize("model", [Controller, reference.Controller], ids=["controller", "twin"])
@pytest.mark.parametrize("heading", TRACES)
def test_trace(heading: str, model: Any) -> None:
    chosen = options(heading)
    disk, memory = PatternDisk(int(chosen["disk"], 16)), bytearray(MEMORY)
    ide = model([disk], memory, trim="trim" in chosen, short_table_interrupt="short_table" not in chosen)
    Player(heading, ide, disk, memory).play()
