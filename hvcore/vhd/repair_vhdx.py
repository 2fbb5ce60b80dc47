"""Repairing a VHDX: what the format itself keeps twice or in its log (disk-formats.md 3, 4, 9, 10, 11).

An interruption at any moment leaves a file that reads as before, or as after, and that can be repaired again.
"""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.log import build_entry, plan_pieces, replay_into, update_header
from hvcore.disk.vhdx.structures import (
    HEADER_BYTES,
    HEADERS,
    MIB,
    NO_GUID,
    PAGE,
    REGION_TABLE_BYTES,
    REGION_TABLES,
    SIGNATURE,
    Header,
)
from hvcore.progress import Progress
from hvcore.vhd.backup import Ranges
from hvcore.vhd.check_vhdx import CLEAR, ENTRIES, HEADER, IDENTIFIER, REPLAY, TABLE, VhdxSurvey

if TYPE_CHECKING:
    from hvcore.vhd.check_bat import Table

# As many as a log of 1 MiB holds in one entry, with the room that rule 20 wants.
PAGES_AT_ONCE = 252


def vhdx_ranges(view: ImageFile, survey: VhdxSurvey) -> Ranges:
    """(offset, length) of everything in the file that the repair may write."""
    if not survey.steps or survey.header is None:
        return []
    ranges = [(offset, HEADER_BYTES) for offset in HEADERS]
    if IDENTIFIER in survey.steps:
        ranges.append((0, len(SIGNATURE)))
    if REPLAY in survey.steps and survey.plan is not None:
        for offset, content in plan_pieces(view, survey.plan):
            ranges.append((offset, content if isinstance(content, int) else len(content)))
    for copy, step in enumerate(TABLE):
        if step in survey.steps:
            ranges.append((REGION_TABLES[copy], REGION_TABLE_BYTES))
    if ENTRIES in survey.steps:
        ranges.append((survey.header.log_offset, min(survey.header.log_length, MIB)))
        ranges += [(page, PAGE) for page in survey.pages]
    return ranges


def repair_vhdx(file: ImageFile, survey: VhdxSurvey, progress: Progress) -> Iterator[str]:
    """Does the steps, durably each; yields what was done."""
    header = survey.header
    if header is None or not survey.steps:
        return
    if REPLAY in survey.steps and survey.plan is not None:
        progress("replaying the log", 0.0)
        header = replay_into(file, header, survey.plan)  # writes both headers, too
        yield f"replayed the log: {len(survey.plan.entries)} entries"
    else:
        # A new FileWriteGuid before anything else is written (O1). Twice, so that both copies are whole and say the
        # same; the first goes over the copy that is damaged or older, so that the current one stays until then.
        # DataWriteGuid stays in every repair: what the disk reads as does not change, and children must still match.
        log_guid = NO_GUID if CLEAR in survey.steps else None
        header = update_header(file, header, file_write_guid=uuid.uuid4(), log_guid=log_guid)
        header = update_header(file, header)
        if CLEAR in survey.steps:
            yield "declared the log empty"
    if HEADER in survey.steps:
        yield "wrote both headers again"
    if IDENTIFIER in survey.steps:
        file.write(0, SIGNATURE)
        file.flush()
        yield "wrote the file identifier again"
    for copy, step in enumerate(TABLE):
        if step in survey.steps:
            # Directly, not through the log (disk-formats.md 4 would have that of a writer that changes a table): the
            # log is empty, so no replay can come over it, and this copy is no good now. A cut leaves it as bad as it
            # was, and the other copy, which is not touched, is what every reader takes then. A log entry would only
            # put more writes, and more that can fail, between a bad copy and a good one.
            file.write(REGION_TABLES[copy], file.read(REGION_TABLES[1 - copy], REGION_TABLE_BYTES))
            file.flush()
            yield f"wrote {step} again from the other one"
    if ENTRIES in survey.steps and survey.table is not None:
        count = drop_offsets(file, header, survey.table, survey.pages, progress)
        yield f"set the offsets of {count} zero blocks to 0"


def drop_offsets(file: ImageFile, header: Header, table: "Table", pages: list[int], progress: Progress) -> int:
    """Zero blocks lose their offset, page by page, each page whole or not at all."""
    import numpy as np

    from hvcore.vhd.check_bat import PLACE_SHIFT, RESERVED, STATE, ZERO

    dropped = 0
    for begin in range(0, len(pages), PAGES_AT_ONCE):
        progress("writing the block allocation table", begin / len(pages))
        changed = []
        for place in pages[begin : begin + PAGES_AT_ONCE]:
            entries = np.frombuffer(file.read(place, PAGE), "<u8")
            indices = np.arange(len(entries)) + (place - table.offset) // 8
            chunks = indices // (table.ratio + 1)
            payload = (indices % (table.ratio + 1) != table.ratio) & (indices - chunks < table.blocks)
            payload &= indices < table.entries
            chosen = (
                payload & (entries & np.uint64(STATE | RESERVED) == ZERO) & (entries >> np.uint64(PLACE_SHIFT) != 0)
            )
            dropped += int(np.count_nonzero(chosen))
            changed.append((place, np.where(chosen, np.uint64(ZERO), entries).astype("<u8").tobytes()))
        header = log_pages(file, header, changed)
    return dropped


def log_pages(file: ImageFile, header: Header, pages: list[tuple[int, bytes]]) -> Header:
    """Writes metadata pages through a log that is empty before and after; returns the current header."""
    guid = uuid.uuid4()
    size = file.size()
    entry = build_entry(
        pages,
        sequence=1,
        tail=0,
        log_guid=guid,
        flushed_file_offset=size // MIB * MIB,
        last_file_offset=size // MIB * MIB,
    )
    file.write(header.log_offset, entry)
    # Durable before a header names it (rule 1), and so before any of its pages is in place (rule 4).
    file.flush()
    header = update_header(file, header, log_guid=guid)
    header = update_header(file, header)
    for offset, page in pages:
        file.write(offset, page)
    # Before the log is declared empty (rule 10).
    file.flush()
    header = update_header(file, header, log_guid=NO_GUID)
    return update_header(file, header)
