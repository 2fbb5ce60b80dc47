"""Threads that write and flush one disk at once: a flush may be another thread's, but only one begun late enough."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hvcore.disk.image import open_image
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.vhd import create
from tests.reference import journal

THREADS, ROUNDS, SPAN = 4, 60, 64 << 10


def test_every_flush_covers_its_own_thread(tmp_path: Path) -> None:
    create(tmp_path / "d", THREADS * SPAN, "raw")
    log = os.memfd_create("journal")
    with probing(Probe(log)) as probe, open_image(tmp_path / "d", mode="r+", format="raw") as disk:

        def work(thread: int) -> list[tuple[int, int]]:
            """What was promised: (offset, length of the journal when the flush returned) per round."""
            promised = []
            for number in range(ROUNDS):
                offset = thread * SPAN + number * 512
                disk.write(offset, bytes([thread + 1, number]) * 256)
                disk.flush()
                promised.append((offset, os.fstat(log).st_size))
                assert disk.read(offset, 512) == bytes([thread + 1, number]) * 256
            return promised

        with ThreadPoolExecutor(THREADS) as pool:
            promises = [promise for part in pool.map(work, range(THREADS)) for promise in part]
        probe.journal = -1
    recorded = os.pread(log, 1 << 24, 0)
    os.close(log)
    records = journal.parse(recorded)
    ends = []  # where each record ends in the journal
    total = 0
    for record in records:
        total += journal.RECORD.size + (record.length if record.kind == journal.WRITE else 0)
        ends.append(total)
    written = {record.offset: index for index, record in enumerate(records) if record.kind == journal.WRITE}
    flushes = [
        (index, index + next(n for n, later in enumerate(records[index:]) if later.kind == journal.FLUSHED))
        for index, record in enumerate(records)
        if record.kind == journal.FLUSH
    ]
    assert len(promises) == THREADS * ROUNDS >= len(flushes)
    for offset, seen in promises:
        assert any(begun > written[offset] and ends[done] <= seen for begun, done in flushes)
