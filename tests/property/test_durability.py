"""Cut the power anywhere: every write that completed before a flush began, and was not overwritten since, is there.

The disk's journal says what reached the file and when; the reference builds the files that a cut may leave, with any
part of the unflushed sectors, and they are opened again as images.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvcore.disk.image import open_image
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.vhd import create
from tests.reference import journal

SECTORS = 32
SIZE = SECTORS * 512
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "flush", "trim"]), st.integers(0, SECTORS - 1), st.integers(1, 6)),
    min_size=1,
    max_size=30,
)


def perform(path: Path, format: str, steps: list[tuple[str, int, int]]) -> tuple[bytes, list[list[set[bytes]]]]:
    """Does the steps. Returns the journal, and per record count what each sector may hold after a cut there."""
    log = os.memfd_create("journal")
    allowed: list[set[bytes]] = [{bytes(512)} for _ in range(SECTORS)]
    last = [bytes(512)] * SECTORS
    history = [[set(values) for values in allowed]]
    with probing(Probe(log)), open_image(path, mode="r+", format=format) as disk:
        for number, (verb, sector, count) in enumerate(steps, 1):
            count = min(count, SECTORS - sector)
            if verb == "flush":
                disk.flush()
                history.append(history[-1])  # a cut after its beginning
                allowed = [{value} for value in last]
            elif verb == "write" or format == "vhd":
                data = [bytes([number, n]) * 256 for n in range(count)]
                disk.write(sector * 512, b"".join(data))
                for n in range(count):
                    allowed[sector + n].add(data[n])
                    last[sector + n] = data[n]
            else:
                disk.trim(sector * 512, count * 512)
                for n in range(count):
                    allowed[sector + n].add(bytes(512))
                    last[sector + n] = bytes(512)
            history.append([set(values) for values in allowed])
    size = os.fstat(log).st_size
    recorded = os.pread(log, size, 0)
    os.close(log)
    return recorded, history


@pytest.mark.parametrize("format", ["raw", "vhd"])
@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, survives=st.lists(st.booleans(), min_size=1, max_size=16))
def test_flushed_writes_survive_a_cut_anywhere(
    format: str, steps: list[tuple[str, int, int]], survives: list[bool], tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    path.unlink(missing_ok=True)
    create(path, SIZE, format, "fixed")
    start = path.read_bytes()
    recorded, history = perform(path, format, steps)
    records = journal.parse(recorded)
    assert len(history) == len(records) + 1
    assert journal.cut(start, records, [True]) == path.read_bytes()  # the journal missed nothing
    after = tmp_path / "after"
    for end in range(len(records) + 1):
        for pattern in (survives, [False]):
            after.write_bytes(journal.cut(start, records[:end], pattern))
            with open_image(after, format=format) as disk:
                for sector in range(SECTORS):
                    assert disk.read(sector * 512, 512) in history[end][sector]


def test_a_lost_flush_is_caught(tmp_path: Path) -> None:
    """The check can fail: without its flush records the same journal loses a promised write."""
    path = tmp_path / "disk"
    create(path, SIZE, "raw")
    start = path.read_bytes()
    recorded, history = perform(path, "raw", [("write", 3, 1), ("flush", 0, 1)])
    records = journal.parse(recorded)
    kept = journal.cut(start, records, [False])
    lost = journal.cut(start, [record for record in records if record.kind == journal.WRITE], [False])
    assert bytes(kept[1536:2048]) in history[-1][3]
    assert bytes(lost[1536:2048]) not in history[-1][3]


def test_a_write_during_a_flush_is_not_covered() -> None:
    write = journal.Record(journal.WRITE, 0, 0, 512, b"x" * 512)
    flush, flushed = (journal.Record(kind, 0, 0, 0, b"") for kind in (journal.FLUSH, journal.FLUSHED))
    assert journal.cut(bytes(512), [flush, write, flushed], [False]) == bytes(512)
    assert journal.cut(bytes(512), [write, flush, flushed], [False]) == b"x" * 512
    assert journal.cut(bytes(512), [write, flush], [False]) == bytes(512)
