"""A VHDX as a disk: fixed, dynamic and differencing, read and written (disk-formats.md 6, 7, 10, 11, 13)."""

import os
import stat
from uuid import UUID

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from hvcore.disk.medium cimport (ImageFile, medium_read, medium_read_bytes, medium_resize, medium_write,
                                 medium_write_bytes)
from hvcore.disk.ops cimport (DISK_CORRUPT, DISK_NO_SPACE, DISK_NOWAIT, DISK_OK, DISK_RANGE, DISK_READ_ONLY,
                              DISK_UNSUPPORTED, DISK_WOULD_BLOCK, DISK_WRITE_ERROR, Backend, DiskOps, disk_error,
                              iovec_span)
from hvcore.disk.pieces cimport ZEROS_BYTES, all_zeros, parent_read, span_read, span_write, zero_pieces, zero_range
from hvcore.disk.span cimport SPAN_PIECES, Span, span_begin, span_zero
from hvcore.disk.vhdx.log_writer cimport (LOG_PAGE, LOG_PAGES_MAX, header_update, log_append, log_apply, log_close,
                                          log_fits, log_free, log_open, log_sync, random_guid)
from hvcore.disk.vhdx.space cimport (SPACE_LIMIT, Freed, epoch_enter, epoch_leave, space_claim, space_destroy,
                                     space_drain, space_durable, space_find, space_free, space_freeze, space_node,
                                     space_release, space_reserve, space_settle, space_top)
from hvcore.disk.vhdx.table cimport (BLOCK_FULL, BLOCK_NOT_PRESENT, BLOCK_PARTIAL, BLOCK_UNDEFINED, BLOCK_UNMAPPED,
                                     BLOCK_ZERO, CHUNK_SECTOR_SHIFT, ENTRY_PLACE, PAGE_BYTES, PAGE_ENTRIES,
                                     PAGE_SECTORS, TABLE_BEYOND, TABLE_BITMAP, TABLE_BITMAP_STATE, TABLE_EXCESS,
                                     TABLE_GOOD, TABLE_HEADER, TABLE_NO_BITMAP, TABLE_OVERLAP, TABLE_PARTIAL,
                                     TABLE_RESERVED, TABLE_STATE, TABLE_TWICE, Bitmap, Frozen, bitmap_entry, bits_load,
                                     bits_run, bits_set, block_entry, frozen_free, table_destroy, table_freeze,
                                     table_get, table_look, table_own, table_reserve, table_scan, table_set)
from hvcore.linux.atomics cimport load_acquire32, load_acquire64, load_relaxed32, store_release32, store_release64
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport (monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait,
                                   monitor_wake)

from hvcore.errors import ImageDamaged, ImageError


cdef enum:
    MIB = 1 << 20
    EXTEND_MIB = 32              # at least, at a time: fewer changes of the file's size
    OPEN_PAGES = 64              # a table of no more pages is judged at once, when the disk is opened
    BATCH = 512                  # blocks that a trim takes before it lets others have the lock
    DIRTY_MOST = 4096            # pages that a trim leaves to the next flush

cdef uint64_t BUSY_BITMAP = <uint64_t> 1 << 63
# Every update of the header takes a number; beyond this one they might run out within a session.
cdef uint64_t SEQUENCE_MOST = ~<uint64_t> 0 - (<uint64_t> 1 << 40)

cdef dict FAULTS = {
    TABLE_RESERVED: "entry {0} has reserved bits set",
    TABLE_STATE: "entry {0} has a state that does not exist",
    TABLE_PARTIAL: "entry {0} is partially present, which only a differencing disk may have",
    TABLE_BITMAP: "entry {0} names a sector bitmap, which only a differencing disk has",
    TABLE_BITMAP_STATE: "entry {0} gives a sector bitmap a state that does not exist",
    TABLE_NO_BITMAP: "entry {0} needs a sector bitmap that is not there",
    TABLE_EXCESS: "entry {0} names a block beyond the end of the disk",
    TABLE_HEADER: "entry {0} places a block inside the header area",
    TABLE_BEYOND: "entry {0} places a block beyond the end of the file",
    TABLE_OVERLAP: "a block at MiB {0} of the file overlaps the log or a region",
    TABLE_TWICE: "two blocks overlap at MiB {0} of the file",
}

cdef enum RunKind:
    RUN_ZERO
    RUN_DATA
    RUN_PARENT

# A piece of the disk that is all in one place.
ctypedef struct Run:
    int kind
    uint64_t place               # in the file, of data
    uint64_t length


# Looking up.

cdef int entry_of(VhdxState *state, uint64_t index, uint32_t flags, uint64_t *entry) noexcept nogil:
    cdef int status
    if table_look(&state.table, index, entry):
        return DISK_OK
    if flags & DISK_NOWAIT:
        return DISK_WOULD_BLOCK
    monitor_lock(&state.meta)
    status = table_get(&state.table, index, entry)
    monitor_unlock(&state.meta)
    return status


cdef uint64_t after_zeros(VhdxState *state, uint64_t index, uint64_t block) noexcept nogil:
    """The first block whose entry is not on the same page as this one's, if that page is known to be all zeros."""
    cdef uint64_t end
    if load_acquire64(<const uint64_t *> (state.table.pages + index // PAGE_ENTRIES)) != <uint64_t> state.table.zeros:
        return block + 1
    end = (index // PAGE_ENTRIES + 1) * PAGE_ENTRIES
    return end - end // ((<uint64_t> 1 << state.table.ratio_shift) + 1)


cdef int piece_at(VhdxState *state, uint64_t offset, uint64_t most, uint32_t flags, Run *run) noexcept nogil:
    """What lies at `offset`, and how much of it the block's entry or the sectors' bits say at once."""
    cdef uint64_t block = offset >> state.block_shift, within = offset & (state.block_size - 1)
    cdef uint64_t index = block_entry(&state.table, block), entry = 0, sector, count, sectors
    cdef bint present = False
    cdef int status = entry_of(state, index, flags, &entry)
    if status != DISK_OK:
        return status
    run.length = state.block_size - within
    if entry & 7 == BLOCK_NOT_PRESENT:
        run.length = (after_zeros(state, index, block) << state.block_shift) - offset
    if run.length > most:
        run.length = most
    run.place = 0
    if entry & 7 == BLOCK_FULL:
        run.kind = RUN_DATA
        run.place = (entry & ENTRY_PLACE) + within
    elif entry & 7 == BLOCK_PARTIAL:
        sector = offset >> state.sector_shift
        count = ((offset + run.length - 1) >> state.sector_shift) - sector + 1
        sectors = bits_run(&state.table, sector, count, &present)
        if sectors == 0:
            if flags & DISK_NOWAIT:
                return DISK_WOULD_BLOCK
            monitor_lock(&state.meta)
            status = bits_load(&state.table, sector, count)
            monitor_unlock(&state.meta)
            if status != DISK_OK:
                return status
            sectors = bits_run(&state.table, sector, count, &present)
        if run.length > ((sector + sectors) << state.sector_shift) - offset:
            run.length = ((sector + sectors) << state.sector_shift) - offset
        run.kind = RUN_DATA if present else RUN_PARENT
        if present:
            run.place = (entry & ENTRY_PLACE) + within
    elif entry & 7 == BLOCK_NOT_PRESENT and state.differencing:
        run.kind = RUN_PARENT
    else:
        run.kind = RUN_ZERO                        # 1, 2 and 3 are never the parent's (7)
    return DISK_OK


cdef int find_run(VhdxState *state, uint64_t offset, uint64_t most, uint32_t flags, Run *run) noexcept nogil:
    """The longest run from `offset` on."""
    cdef Run more
    cdef int status = piece_at(state, offset, most, flags, run)
    if status != DISK_OK:
        return status
    while run.length < most:
        # A fault of what follows is met when its turn comes.
        if piece_at(state, offset + run.length, most - run.length, flags, &more) != DISK_OK or more.kind != run.kind:
            break
        if run.kind == RUN_DATA and more.place != run.place + run.length:
            break
        run.length += more.length
    return DISK_OK


# Reading.

cdef int read_range(VhdxState *state, uint64_t offset, const iovec *iov, int count, uint64_t total,
                    uint32_t flags) noexcept nogil:
    cdef Run run
    cdef Span span
    cdef int status = find_run(state, offset, total, flags, &run)
    if status != DISK_OK:
        return status
    if run.kind == RUN_DATA and run.length == total:
        return medium_read(state.medium, run.place, iov, count, total, flags)
    span_begin(&span, iov)
    while True:
        if run.kind == RUN_DATA:
            status = span_read(state.medium, run.place, &span, run.length, flags)
        elif run.kind == RUN_PARENT:
            status = parent_read(state.parent, offset, &span, run.length, flags)
        else:
            span_zero(&span, run.length)
        offset += run.length
        total -= run.length
        if status != DISK_OK or total == 0:
            return status
        status = find_run(state, offset, total, flags, &run)
        if status != DISK_OK:
            return status


cdef int vhdx_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef VhdxState *state = <VhdxState *> pointer
    cdef int64_t total = iovec_span(state.size, offset, iov, count)
    cdef uint32_t side
    cdef int status
    if total <= 0:
        return <int> total
    if state.read_only:                            # nothing is ever freed
        return read_range(state, offset, iov, count, total, flags)
    side = epoch_enter(&state.space.epoch)         # rule 13
    status = read_range(state, offset, iov, count, total, flags)
    epoch_leave(&state.space.epoch, side)
    return status


# Space and the busy list; all of these with `meta` held.

cdef int take_space(VhdxState *state, uint64_t from_, uint64_t width, uint64_t *start, bint *clean) noexcept nogil:
    """Claims `width` MiB (at `from_` or behind), extending the file for them. clean: they read as zeros."""
    cdef uint64_t end, size, step = state.block_size // MIB
    cdef int status
    space_drain(&state.space)
    start[0] = space_find(&state.space, from_, width)
    end = start[0] + width
    if start[0] >= SPACE_LIMIT or space_reserve(&state.space, start[0], width):
        return DISK_NO_SPACE
    if end * MIB > state.file_size:
        # Surplus is cut off at close (13). A file system without room fails here, before any change (rule 14).
        size = state.file_size // MIB + (step if step > EXTEND_MIB else EXTEND_MIB)
        if size > state.most:
            size = state.most
        if size < end:
            size = end
        status = medium_resize(state.medium, size * MIB)
        if status != DISK_OK:
            return status
        store_release64(&state.file_size, size * MIB)
    # Only what lies behind all that was ever in use, by us or whoever had the file before, is zeros for sure (rule 15).
    clean[0] = start[0] >= state.clean_from
    if end > state.clean_from:
        state.clean_from = end
    space_claim(&state.space, start[0], width)
    return DISK_OK


cdef bint is_busy(const VhdxState *state, uint64_t what) noexcept nogil:
    cdef const Busy *busy = state.busy
    while busy != NULL:
        if busy.what == what:
            return True
        busy = busy.next
    return False


cdef void busy_begin(VhdxState *state, Busy *busy, uint64_t what) noexcept nogil:
    busy.what = what
    busy.next = state.busy
    state.busy = busy


cdef void busy_end(VhdxState *state, Busy *busy) noexcept nogil:
    cdef Busy **at = &state.busy
    while at[0] != busy:
        at = &at[0].next
    at[0] = busy.next
    monitor_wake(&state.meta)


cdef int settled(VhdxState *state, uint64_t block, uint64_t *entry) noexcept nogil:
    """The entry of a block once nobody allocates it any more (rule 13)."""
    while is_busy(state, block):
        monitor_wait(&state.meta, -1)
    return table_get(&state.table, block_entry(&state.table, block), entry)


# Writing.

cdef uint64_t block_sectors(const VhdxState *state, uint64_t block) noexcept nogil:
    """Sectors of a block that belong to the disk."""
    cdef uint64_t left = state.size - (block << state.block_shift)
    return (left if left < state.block_size else state.block_size) >> state.sector_shift


cdef uint64_t bit_pages(const VhdxState *state) noexcept nogil:
    """Pages of a sector bitmap that a block's bits may lie on."""
    return (state.block_size >> state.sector_shift) // PAGE_SECTORS + 1


cdef int need_bitmap(VhdxState *state, uint64_t chunk, bint *there) noexcept nogil:
    """Gives a chunk its sector bitmap. there: nothing was to be done; else `meta` was let go for a while."""
    cdef uint64_t index = bitmap_entry(&state.table, chunk), entry = 0, start = 0
    cdef bint clean = False
    cdef Busy busy
    cdef int status = table_get(&state.table, index, &entry)
    if status != DISK_OK:
        return status
    there[0] = entry & 7 == BLOCK_FULL
    if there[0]:
        return DISK_OK
    if is_busy(state, BUSY_BITMAP | chunk):
        monitor_wait(&state.meta, -1)
        return DISK_OK
    status = table_own(&state.table, index)
    if status == DISK_OK:
        status = take_space(state, 0, 1, &start, &clean)
    if status != DISK_OK:
        return status
    busy_begin(state, &busy, BUSY_BITMAP | chunk)
    monitor_unlock(&state.meta)
    # Zeros in the file before anything refers to it; the first flush of O6 makes them durable before the entry (7).
    if not clean:
        status = zero_range(state.medium, start * MIB, MIB)
    monitor_lock(&state.meta)
    busy_end(state, &busy)
    if status == DISK_OK:
        status = table_reserve(&state.table, 1)
    if status == DISK_OK:
        table_set(&state.table, index, start * MIB | BLOCK_FULL)
    else:
        space_release(&state.space, start, 1)
    return status


cdef int allocate_block(VhdxState *state, uint64_t at, uint64_t length, int target, uint64_t old,
                        Span *span) noexcept nogil:
    """O4: gives a block without a place one, writes the span into it and zeros around; `meta` is let go meanwhile."""
    cdef uint64_t block = at >> state.block_shift, within = at & (state.block_size - 1)
    cdef uint64_t index = block_entry(&state.table, block), start = 0, place, width = state.block_size // MIB
    cdef uint64_t first = block << (state.block_shift - state.sector_shift)
    cdef uint64_t sectors = state.block_size >> state.sector_shift
    cdef bint clean = False
    cdef Freed *anchor = NULL
    cdef Busy busy
    # All that could fail for want of memory comes before the write.
    cdef int status = table_own(&state.table, index)
    if status == DISK_OK and target == BLOCK_PARTIAL:
        status = bits_load(&state.table, first, sectors)
    if status == DISK_OK and (old & 7 == BLOCK_UNDEFINED or old & 7 == BLOCK_UNMAPPED) and old & ENTRY_PLACE:
        anchor = space_node()
        status = DISK_OK if anchor != NULL else DISK_WRITE_ERROR
    if status == DISK_OK:
        status = take_space(state, 0, width, &start, &clean)
    if status != DISK_OK:
        free(anchor)
        return status
    place = start * MIB
    busy_begin(state, &busy, block)
    monitor_unlock(&state.meta)
    status = span_write(state.medium, place + within, span, length, 0)
    if not clean:                                  # rules 7 and 15: nothing of an earlier owner shows
        if status == DISK_OK:
            status = zero_range(state.medium, place, within)
        if status == DISK_OK:
            status = zero_range(state.medium, place + within + length, state.block_size - within - length)
    monitor_lock(&state.meta)
    busy_end(state, &busy)
    if status == DISK_OK:
        status = table_reserve(&state.table, bit_pages(state) + 1)
    if status != DISK_OK:
        # The entry is as it was. The space is no longer clean: clean_from lies behind it.
        space_release(&state.space, start, width)
        free(anchor)
        return status
    if target == BLOCK_PARTIAL:
        # Exactly the written sectors: bits of a block that was here before must not show the new place (7).
        bits_set(&state.table, first, sectors, False)
        bits_set(&state.table, at >> state.sector_shift, length >> state.sector_shift, True)
    # Only now that bytes and bits are there (O4, rule 2); a reader that sees the entry sees them.
    table_set(&state.table, index, place | target)
    if anchor != NULL:
        space_free(&state.space, anchor, (old & ENTRY_PLACE) // MIB, width)
    return DISK_OK


cdef int write_partial(VhdxState *state, uint64_t at, uint64_t length, uint64_t entry, Span *span,
                       bint *again) noexcept nogil:
    """Writes into a partial block and sets its bits; `meta` is let go meanwhile. again: the block has moved."""
    cdef uint64_t block = at >> state.block_shift, index = block_entry(&state.table, block), now = 0
    cdef uint64_t first = block << (state.block_shift - state.sector_shift), sectors = block_sectors(state, block)
    cdef bint value = False
    cdef int status = bits_load(&state.table, first, sectors)
    if status != DISK_OK:
        return status
    monitor_unlock(&state.meta)
    status = span_write(state.medium, (entry & ENTRY_PLACE) + (at & (state.block_size - 1)), span, length, 0)
    monitor_lock(&state.meta)
    if status == DISK_OK:
        status = table_reserve(&state.table, bit_pages(state) + 1)
    if status == DISK_OK:
        status = table_get(&state.table, index, &now)
    if status != DISK_OK:
        return status
    if now != entry:
        # Another thread filled the block (what was written shows already), or took it away. Its old place is no other
        # block's as long as we are counted (rule 13), so nothing was hurt.
        again[0] = now != (entry & ENTRY_PLACE | BLOCK_FULL)
        return DISK_OK
    # The bytes are there: now their bits. Full blocks need no bits, and are not looked up twice.
    if length >> state.sector_shift != sectors:
        bits_set(&state.table, at >> state.sector_shift, length >> state.sector_shift, True)
        if bits_run(&state.table, first, sectors, &value) != sectors or not value:
            return DISK_OK
    table_set(&state.table, index, entry & ENTRY_PLACE | BLOCK_FULL)
    return DISK_OK


cdef int write_block(VhdxState *state, uint64_t at, uint64_t length, Span *span) noexcept nogil:
    """A part of one block that is not there, or not all there, by the table of section 7."""
    cdef uint64_t block = at >> state.block_shift, entry = 0
    cdef bint whole = length >> state.sector_shift == block_sectors(state, block), flag = False
    cdef Span start = span[0]
    cdef int status
    monitor_lock(&state.meta)
    status = table_scan(&state.table)
    while status == DISK_OK:
        status = settled(state, block, &entry)
        if status != DISK_OK:
            break
        if entry & 7 == BLOCK_FULL:                # by another thread
            monitor_unlock(&state.meta)
            return span_write(state.medium, (entry & ENTRY_PLACE) + (at & (state.block_size - 1)), span, length, 0)
        if entry & 7 == BLOCK_PARTIAL:
            flag = False
            status = write_partial(state, at, length, entry, span, &flag)
            if not flag:
                break
            span[0] = start
        elif entry & 7 == BLOCK_NOT_PRESENT and state.differencing and not whole:
            if state.transparent:
                # Rule 9: a block may have been partial elsewhere on disk; that it left must be durable before it is
                # partial again.
                monitor_unlock(&state.meta)
                status = flush_all(state)
                monitor_lock(&state.meta)
                continue
            flag = False
            status = need_bitmap(state, at >> (state.sector_shift + CHUNK_SECTOR_SHIFT), &flag)
            if status == DISK_OK and not flag:
                continue
            if status == DISK_OK:
                status = allocate_block(state, at, length, BLOCK_PARTIAL, entry, span)
            break
        else:
            # 1, 2 and 3 read as zeros: in a child too the rest of the block must not become the parent's (7).
            status = allocate_block(state, at, length, BLOCK_FULL, entry, span)
            break
    monitor_unlock(&state.meta)
    return status


cdef int write_range(VhdxState *state, uint64_t offset, const iovec *iov, int count, uint64_t total,
                     uint32_t flags) noexcept nogil:
    cdef Run run
    cdef Span span
    cdef uint64_t left = total, take
    cdef int status
    span_begin(&span, iov)
    while left:
        status = find_run(state, offset, left, flags, &run)
        if status != DISK_OK:
            return status
        if run.kind == RUN_DATA:                   # O3
            if run.length == total:
                return medium_write(state.medium, run.place, iov, count, total, flags)
            take = run.length
            status = span_write(state.medium, run.place, &span, take, flags)
        else:
            if flags & DISK_NOWAIT:
                return DISK_WOULD_BLOCK
            take = state.block_size - (offset & (state.block_size - 1))
            if take > left:
                take = left
            status = write_block(state, offset, take, &span)
        if status != DISK_OK:
            return status
        offset += take
        left -= take
    return DISK_OK


cdef int begin(VhdxState *state, const uint8_t *data_write_guid) noexcept nogil:
    """O1 and O2 in one: both GUIDs by one pair of header updates, durable before anything else is written."""
    cdef int status = DISK_OK
    cdef uint8_t[16] file_guid
    cdef uint8_t[16] data_guid
    monitor_lock(&state.flushing)
    if state.medium.poison:
        status = DISK_WRITE_ERROR
    elif not state.begun or data_write_guid != NULL:
        if state.log.header_sequence > SEQUENCE_MOST or not random_guid(file_guid) or not random_guid(data_guid):
            status = DISK_WRITE_ERROR
        else:
            if not state.begun:
                memcpy(state.log.file_write_guid, file_guid, 16)
            memcpy(state.log.data_write_guid, data_write_guid if data_write_guid != NULL else data_guid, 16)
            status = header_update(&state.log)
            if status == DISK_OK:
                store_release32(&state.begun, 1)
    monitor_unlock(&state.flushing)
    return status


cdef bint misaligned(const VhdxState *state, uint64_t offset, uint64_t length) noexcept nogil:
    return ((offset | length) & ((<uint64_t> 1 << state.sector_shift) - 1)) != 0


cdef int vhdx_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef VhdxState *state = <VhdxState *> pointer
    cdef int64_t total
    cdef uint32_t side
    cdef int status
    if state.read_only:
        return DISK_READ_ONLY
    total = iovec_span(state.size, offset, iov, count)
    if total <= 0:
        return <int> total
    if misaligned(state, offset, total):           # a sector is present or not, as a whole
        return DISK_RANGE
    if not load_acquire32(&state.begun):
        if flags & DISK_NOWAIT:
            return DISK_WOULD_BLOCK
        status = begin(state, NULL)
        if status != DISK_OK:
            return status
    side = epoch_enter(&state.space.epoch)
    status = write_range(state, offset, iov, count, total, flags)
    epoch_leave(&state.space.epoch, side)
    return status


# Flushing.

cdef uint64_t last_offset(const VhdxState *state) noexcept nogil:
    """The end of all structures, in bytes; `meta` is held. Anchors may lie beyond the file and need no room."""
    cdef uint64_t end = space_top(&state.space), size = (state.file_size + MIB - 1) // MIB
    return (end if end < size else size) * MIB


cdef void own_entries(VhdxState *state, uint64_t place, uint8_t *page) noexcept nogil:
    """Of a page of the table only what follows behind its entries is the caller's."""
    cdef uint64_t number, count
    if place < state.table.offset or place >= state.table.offset + state.table.page_count * PAGE_BYTES:
        return
    number = (place - state.table.offset) // PAGE_BYTES
    count = state.table.entries - number * PAGE_ENTRIES
    memcpy(page, state.table.pages[number], 8 * (count if count < PAGE_ENTRIES else PAGE_ENTRIES))


cdef int commit_all(VhdxState *state, const uint64_t *places, const uint8_t *pages, uint64_t count) noexcept nogil:
    """O5 or O6, with `flushing` held; the caller's pages come in the one entry, so together there are few enough."""
    cdef Frozen frozen
    cdef uint64_t done = 0, part, end, i
    cdef int status
    monitor_lock(&state.meta)
    if state.table.dirty_count + count == 0:
        monitor_unlock(&state.meta)
        # O5, and rule 18: no frozen page waits for its entry, as every flush takes `flushing`.
        return log_sync(&state.log)
    # Rule 16: what goes into the log is copied before the flush that makes the data durable begins.
    status = table_freeze(&state.table, &frozen, count)
    if status != DISK_OK:
        monitor_unlock(&state.meta)
        return status
    for i in range(count):
        frozen.places[frozen.count] = places[i]
        memcpy(frozen.pages + PAGE_BYTES * frozen.count, pages + PAGE_BYTES * i, PAGE_BYTES)
        own_entries(state, places[i], frozen.pages + PAGE_BYTES * frozen.count)
        frozen.count += 1
    space_freeze(&state.space)
    if state.transparent:
        state.transparent = 2
    end = last_offset(state)
    monitor_unlock(&state.meta)
    while done < frozen.count and status == DISK_OK:
        part = frozen.count - done
        if part > LOG_PAGES_MAX:
            part = LOG_PAGES_MAX
        # Rule 2: data, zeros and the file's size are durable before the entry that refers to them. Rule 5: so are the
        # pages of the entry before, which this one's tail leaves behind. Opening the log flushes as well, and nothing
        # was written since.
        if not state.log.is_open:
            status = log_open(&state.log, end)
        elif not log_fits(&state.log, part):       # O7
            status = log_close(&state.log)
            if status == DISK_OK:
                status = log_open(&state.log, end)
        else:
            status = log_sync(&state.log)
        # Rule 4: the entry is durable before its pages are written to their places.
        if status == DISK_OK:
            status = log_append(&state.log, frozen.places + done, frozen.pages + PAGE_BYTES * done, part, end)
        if status == DISK_OK:
            status = log_apply(&state.log, frozen.places + done, frozen.pages + PAGE_BYTES * done, part)
        done += part
    frozen_free(&frozen)
    if status == DISK_OK:
        monitor_lock(&state.meta)
        # Rule 7: nothing on disk refers to this space any more.
        space_durable(&state.space)
        space_drain(&state.space)
        if state.transparent == 2:
            state.transparent = 0
        monitor_unlock(&state.meta)
    return status


cdef int flush_all(VhdxState *state) noexcept nogil:
    # Acquire: the number is read after the caller's writes completed. A flush with a greater one began after that.
    cdef uint64_t seen = load_acquire64(&state.flushes), number
    cdef int status = DISK_OK
    monitor_lock(&state.flushing)
    if state.medium.poison:
        status = -<int> state.medium.poison
    elif state.covered <= seen:                    # else a flush that began later covers us, and is done
        number = state.flushes + 1
        store_release64(&state.flushes, number)
        status = commit_all(state, NULL, NULL, 0)
        if status == DISK_OK:
            state.covered = number
    monitor_unlock(&state.flushing)
    return status


cdef int vhdx_flush(void *pointer) noexcept nogil:
    cdef VhdxState *state = <VhdxState *> pointer
    if state.read_only:
        return DISK_READ_ONLY
    if not load_acquire32(&state.begun):           # nothing was written
        return -<int> load_relaxed32(&state.medium.poison)
    return flush_all(state)


# Trimming.

cdef int give_up(VhdxState *state, uint64_t block, uint64_t end, int target) noexcept nogil:
    """Blocks to the state 0 or 2, without a place. Their space follows the stages of space.pxd."""
    cdef uint64_t index, entry = 0, batch, dirty
    cdef Freed *node
    cdef bint owner
    cdef int status = DISK_OK
    while block < end:
        monitor_lock(&state.meta)
        status = table_scan(&state.table)
        batch = 0
        while status == DISK_OK and block < end and batch < BATCH:
            batch += 1
            index = block_entry(&state.table, block)
            status = settled(state, block, &entry)
            if status != DISK_OK:
                break
            if entry & 7 == BLOCK_NOT_PRESENT and (target == BLOCK_NOT_PRESENT or not state.differencing):
                block = after_zeros(state, index, block)
                continue
            if entry == <uint64_t> target:
                block += 1
                continue
            owner = entry & ENTRY_PLACE and entry & 7 != BLOCK_NOT_PRESENT and entry & 7 != BLOCK_ZERO
            node = space_node() if owner else NULL
            if owner and node == NULL:
                status = DISK_WRITE_ERROR
                break
            status = table_own(&state.table, index)
            if status == DISK_OK:
                status = table_reserve(&state.table, 1)
            if status != DISK_OK:
                free(node)
                break
            table_set(&state.table, index, target)
            if owner:
                space_free(&state.space, node, (entry & ENTRY_PLACE) // MIB, state.block_size // MIB)
            if target == BLOCK_NOT_PRESENT and state.differencing:
                state.transparent = 1
            block += 1
        dirty = state.table.dirty_count
        monitor_unlock(&state.meta)
        if status == DISK_OK and dirty > DIRTY_MOST:
            status = flush_all(state)
        if status != DISK_OK:
            return status
    return status


cdef int write_zeros(VhdxState *state, uint64_t offset, uint64_t length) noexcept nogil:
    cdef iovec[SPAN_PIECES] pieces
    cdef uint64_t part
    cdef int n = 0, status
    while length:
        part = zero_pieces(pieces, &n, length)
        status = write_range(state, offset, pieces, n, part, 0)
        if status != DISK_OK:
            return status
        offset += part
        length -= part
    return DISK_OK


cdef int trim_part(VhdxState *state, uint64_t offset, uint64_t length) noexcept nogil:
    """A part of one block: zeros in its place, without a change of metadata where that can be."""
    cdef uint64_t entry = 0
    cdef int status = entry_of(state, block_entry(&state.table, offset >> state.block_shift), 0, &entry)
    if status != DISK_OK:
        return status
    if entry & 7 == BLOCK_FULL:
        return zero_range(state.medium, (entry & ENTRY_PLACE) + (offset & (state.block_size - 1)), length)
    if entry & 7 == BLOCK_PARTIAL:
        return write_zeros(state, offset, length)
    if entry & 7 != BLOCK_NOT_PRESENT or not state.differencing:
        return DISK_OK
    if state.parent != NULL and offset >= state.parent.size_bytes:
        return DISK_OK
    return write_zeros(state, offset, length)


cdef int trim_range(VhdxState *state, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t end = offset + length, block, last, stop
    cdef int status
    while offset < end:
        block = offset >> state.block_shift
        last = end >> state.block_shift
        if end == state.size:                      # the last block is covered although it ends beyond the disk (13)
            last = (end + state.block_size - 1) >> state.block_shift
        if offset & (state.block_size - 1) == 0 and last > block:
            status = give_up(state, block, last, BLOCK_ZERO)
            stop = last << state.block_shift
        else:
            stop = (block + 1) << state.block_shift
            status = trim_part(state, offset, (stop if stop < end else end) - offset)
        if status != DISK_OK:
            return status
        offset = stop
    return DISK_OK


cdef int vhdx_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    cdef VhdxState *state = <VhdxState *> pointer
    cdef uint32_t side
    cdef int status
    if state.read_only:
        return DISK_READ_ONLY
    if state.fixed:                                # its blocks stay where they are (6)
        return DISK_UNSUPPORTED
    if offset > state.size or state.size - offset < length or misaligned(state, offset, length):
        return DISK_RANGE
    if length == 0:
        return DISK_OK
    if not load_acquire32(&state.begun):
        status = begin(state, NULL)
        if status != DISK_OK:
            return status
    if load_relaxed32(&state.medium.poison):
        return DISK_WRITE_ERROR
    side = epoch_enter(&state.space.epoch)         # zeros are written in place
    status = trim_range(state, offset, length)
    epoch_leave(&state.space.epoch, side)
    return status


# Closing and what tools need.

cdef int finish(VhdxState *state) noexcept nogil:
    """O10; no request is running."""
    cdef uint64_t end
    cdef int status
    if not state.begun:
        return DISK_OK
    monitor_lock(&state.flushing)
    if state.medium.poison:                        # rule 12: the log stays, for the next one to replay
        status = -<int> state.medium.poison
    else:
        status = commit_all(state, NULL, NULL, 0)
    if status == DISK_OK and state.log.is_open:
        status = log_close(&state.log)
    if status == DISK_OK and state.table.scanned and state.regular:
        monitor_lock(&state.meta)
        space_settle(&state.space)
        end = space_top(&state.space) * MIB
        monitor_unlock(&state.meta)
        if end < state.file_size:                  # rule 11: only now that no log names a size
            status = medium_resize(state.medium, end)
            if status == DISK_OK:
                store_release64(&state.file_size, end)
                status = log_sync(&state.log)
    monitor_unlock(&state.flushing)
    return status


cdef int copy_block(VhdxState *state, uint64_t source, uint64_t target, bint clean) noexcept nogil:
    cdef uint64_t at = 0, left = state.file_size - source, part
    cdef uint8_t *buffer = <uint8_t *> malloc(ZEROS_BYTES)
    cdef int status = DISK_OK if buffer != NULL else DISK_WRITE_ERROR
    if status == DISK_OK and not clean:
        status = zero_range(state.medium, target, state.block_size)
    if left > state.block_size:                    # the last block may be cut short (7)
        left = state.block_size
    while at < left and status == DISK_OK:
        part = ZEROS_BYTES if left - at > ZEROS_BYTES else left - at
        status = medium_read_bytes(state.medium, source + at, buffer, part)
        if status == DISK_OK and not all_zeros(buffer, part):
            status = medium_write_bytes(state.medium, target + at, buffer, part)
        at += part
    free(buffer)
    return status


cdef int move_block(VhdxState *state, uint64_t block, bint *moved) noexcept nogil:
    cdef uint64_t entry = 0, start = 0, width = state.block_size // MIB
    cdef uint64_t index = block_entry(&state.table, block)
    cdef bint clean = False
    cdef Freed *node = space_node()
    cdef Busy busy
    cdef int status
    monitor_lock(&state.meta)
    status = table_scan(&state.table) if node != NULL else DISK_WRITE_ERROR
    if status == DISK_OK:
        status = settled(state, block, &entry)
    if status == DISK_OK and (entry & 7 == BLOCK_FULL or entry & 7 == BLOCK_PARTIAL):
        space_drain(&state.space)
        if space_find(&state.space, 0, width) < (entry & ENTRY_PLACE) // MIB:
            status = take_space(state, 0, width, &start, &clean)
    if status != DISK_OK or start == 0:
        monitor_unlock(&state.meta)
        free(node)
        return status
    busy_begin(state, &busy, block)
    monitor_unlock(&state.meta)
    status = copy_block(state, entry & ENTRY_PLACE, start * MIB, clean)
    monitor_lock(&state.meta)
    busy_end(state, &busy)
    if status == DISK_OK:
        status = table_own(&state.table, index)
    if status == DISK_OK:
        status = table_reserve(&state.table, 1)
    if status == DISK_OK:
        table_set(&state.table, index, start * MIB | entry & 7)
        space_free(&state.space, node, (entry & ENTRY_PLACE) // MIB, width)
        moved[0] = True
    else:
        space_release(&state.space, start, width)
        free(node)
    monitor_unlock(&state.meta)
    return status


cdef DiskOps OPS
OPS.read = vhdx_read
OPS.write = vhdx_write
OPS.flush = vhdx_flush
OPS.trim = vhdx_trim


def pieces_of(VhdxDisk disk):
    """See VhdxDisk.extents."""
    offset = 0
    while offset < disk.size:
        length, kind, place = disk.piece(offset)
        yield offset, length, kind, place
        offset += length


@cython.final
cdef class VhdxDisk(Backend):
    """The disk in a VHDX file, laid out as `layout` says (hvcore.disk.vhdx.layout.VhdxLayout).

    Owns the file and the parent and closes both. write: the file is open for writing; it is not touched before the
    first write, trim or begin(). parent: of a differencing disk; None: it is not at hand, and what is the parent's
    cannot be read. A small block allocation table is judged at once (ImageDamaged, without the file's name), a large
    one page by page when it is needed, and all of it before the first change of metadata: `damage` says what was found.

    Writes and trims are in whole sectors. All calls may run concurrently, except close(), and except commit(), drop(),
    allocate() and relocate(): while one of those runs nothing but reads and extents() may.
    """

    def __cinit__(self, ImageFile file not None, layout, *, bint write=False, Backend parent=None):
        cdef VhdxState *state = &self.state
        cdef Table *table = &state.table
        cdef uint64_t *used
        cdef uint64_t i, end = 1
        if monitor_init(&state.meta):
            raise MemoryError("no memory for a lock")
        if monitor_init(&state.flushing):
            monitor_destroy(&state.meta)
            raise MemoryError("no memory for a lock")
        state.locks = True
        if parent is not None and not layout.has_parent:
            raise ValueError("a parent for a disk that has none")
        if layout.file_size > SPACE_LIMIT * MIB:
            raise ImageError("files of more than 256 TiB are not supported")
        self.file = file
        self.parent = parent
        state.medium = &file.medium
        state.parent = &parent.ref if parent is not None else NULL
        state.size = layout.size
        state.block_size = layout.block_size
        state.block_shift = layout.block_size.bit_length() - 1
        state.sector_shift = layout.sector_size.bit_length() - 1
        state.read_only = not write
        state.differencing = layout.has_parent
        state.fixed = layout.fixed and not layout.has_parent
        state.regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        state.file_size = layout.file_size
        state.clean_from = (state.file_size + MIB - 1) // MIB

        table.medium = state.medium
        table.space = &state.space
        table.entries = layout.bat_entries
        table.blocks = layout.blocks
        table.offset = layout.bat_offset
        table.disk_size = layout.size
        table.file_size = layout.file_size
        table.block_shift = state.block_shift
        table.sector_shift = state.sector_shift
        table.ratio_shift = layout.chunk_ratio.bit_length() - 1
        table.next_bitmap = layout.chunk_ratio
        table.differencing = state.differencing
        table.page_count = (table.entries + PAGE_ENTRIES - 1) // PAGE_ENTRIES
        chunks = (layout.blocks + layout.chunk_ratio - 1) // layout.chunk_ratio
        table.pages = <uint64_t **> calloc(table.page_count, sizeof(uint64_t *))
        table.flags = <uint8_t *> calloc(table.page_count, 1)
        table.zeros = <uint64_t *> calloc(1, PAGE_BYTES)
        table.bitmaps = <Bitmap **> calloc(chunks, sizeof(Bitmap *))
        table.used = used = <uint64_t *> calloc(len(layout.used) + 1, 2 * sizeof(uint64_t))
        if table.pages == NULL or table.flags == NULL or table.zeros == NULL or table.bitmaps == NULL or used == NULL:
            raise MemoryError(f"no memory for the table of {layout.blocks} blocks")
        for i, (offset, length) in enumerate(layout.used):
            used[2 * i] = offset // MIB
            used[2 * i + 1] = (offset + length) // MIB
            end = max(end, used[2 * i + 1])
            if space_reserve(&state.space, used[2 * i], length // MIB):
                raise MemoryError("no memory for the map of the file")
            space_claim(&state.space, used[2 * i], length // MIB)
        table.used_count = len(layout.used)
        if space_reserve(&state.space, 0, 1):
            raise MemoryError("no memory for the map of the file")
        space_claim(&state.space, 0, 1)            # the header area
        state.most = end + layout.blocks * (state.block_size // MIB) + (chunks if layout.has_parent else 0)

        header = layout.header
        state.log.medium = state.medium
        state.log.file_size = &state.file_size
        state.log.header_sequence = header.sequence
        state.log.log_offset = header.log_offset
        state.log.log_length = header.log_length
        state.log.copy = header.copy
        memcpy(state.log.file_write_guid, <const uint8_t *> <bytes> header.file_write_guid.bytes_le, 16)
        memcpy(state.log.data_write_guid, <const uint8_t *> <bytes> header.data_write_guid.bytes_le, 16)
        if table.page_count <= OPEN_PAGES:
            self.judge()

        self.ref.state = state
        self.ref.size_bytes = layout.size
        self.ref.sector_size = layout.sector_size
        self.ref.physical_sector_size = layout.physical_sector_size
        self.ref.read_only = not write
        self.ref.can_trim = write and not state.fixed
        self.ref.trim_unit = state.block_size
        self.ref.ops = &OPS

    cdef int judge(self) except -1:
        """Loads and judges the whole table."""
        cdef uint64_t page, entry = 0
        cdef int status = DISK_OK
        with nogil:
            monitor_lock(&self.state.meta)
            for page in range(self.state.table.page_count):
                if status == DISK_OK:
                    status = table_get(&self.state.table, page * PAGE_ENTRIES, &entry)
            if status == DISK_OK:
                status = table_scan(&self.state.table)
            monitor_unlock(&self.state.meta)
        if status == DISK_CORRUPT:
            raise ImageDamaged(
                self.damage,
                structure="block allocation table",
                offset=self.state.table.offset + 8 * self.state.table.fault_entry,
            )
        if status != DISK_OK:
            raise disk_error(status)
        return 0

    @property
    def damage(self):
        """What was found wrong with the table since the disk was opened; None: nothing."""
        cdef int kind
        cdef uint64_t at
        with nogil:
            monitor_lock(&self.state.meta)
            kind = self.state.table.fault
            at = self.state.table.fault_at
            monitor_unlock(&self.state.meta)
        if kind == TABLE_GOOD:
            return None
        return "the block allocation table is damaged: " + FAULTS[kind].format(at)

    @property
    def data_write_guid(self):
        """Of the current header."""
        cdef uint8_t[16] guid
        with nogil:
            monitor_lock(&self.state.flushing)
            memcpy(guid, self.state.log.data_write_guid, 16)
            monitor_unlock(&self.state.flushing)
        return UUID(bytes_le=(<const char *> guid)[:16])

    def piece(self, uint64_t offset):
        """(length, state, place in the file) of the longest piece from `offset` on; see extents()."""
        self.check(0, 0)
        cdef Run run
        cdef uint32_t side
        cdef int status
        if offset >= self.state.size:
            raise ValueError(f"offset {offset} is beyond the disk's {self.state.size} bytes")
        with nogil:
            side = epoch_enter(&self.state.space.epoch)
            status = find_run(&self.state, offset, self.state.size - offset, 0, &run)
            epoch_leave(&self.state.space.epoch, side)
        if status != DISK_OK:
            raise disk_error(status)
        if run.kind == RUN_DATA:
            return run.length, "data", run.place
        return run.length, "parent" if run.kind == RUN_PARENT else "zero", None

    def extents(self):
        """(offset, length, state, offset in the file or None) of the pieces of the disk: in order, without gaps,
        neighbours joined. state: "data", "zero", or "parent" where the parent decides. Reads the table as it goes.
        """
        self.check(0, 0)
        return pieces_of(self)

    cdef int writable(self) except -1:
        self.check(0, 0)
        if self.state.read_only:
            raise disk_error(DISK_READ_ONLY)
        return 0

    cdef int begin_now(self, const uint8_t *data_write_guid) except -1:
        cdef int status
        with nogil:
            status = begin(&self.state, data_write_guid)
        if status != DISK_OK:
            raise disk_error(status)
        return 0

    cdef int begin_silently(self) except -1:
        """For changes that nobody sees: the data are the same (3)."""
        if not load_acquire32(&self.state.begun):
            guid = self.data_write_guid.bytes_le
            self.begin_now(<const uint8_t *> <bytes> guid)
        return 0

    def begin(self, data_write_guid=None):
        """Says in the header that the file is being changed: a new FileWriteGuid, and a new DataWriteGuid or the given
        one (O1, O2). The first write and trim do so by themselves; when it is done already, only a given GUID counts.
        """
        self.writable()
        if data_write_guid is None:
            self.begin_now(NULL)
        else:
            guid = data_write_guid.bytes_le
            self.begin_now(<const uint8_t *> <bytes> guid)

    def commit(self, pages):
        """One log entry of everything that is dirty and of these pages, [(offset in the file, 4096 bytes)]; durable and
        applied on return. Offsets are multiples of 4096. Of a page of the block allocation table only what lies behind
        the last entry is taken.

        ValueError: no such pages, or more than 252 together with what is dirty (flush first).
        """
        self.writable()
        cdef uint64_t count = len(pages), i, offset, entry = 0
        cdef uint64_t *places
        cdef uint8_t *content
        cdef int status = DISK_OK
        cdef bint fits = True
        for place, data in pages:
            if place < 3 * 65536 or place % LOG_PAGE or len(data) != LOG_PAGE:
                raise ValueError(f"no page of {LOG_PAGE} bytes: {len(data)} bytes at {place}")
        self.begin_silently()
        places = <uint64_t *> malloc(8 * (count + 1))
        content = <uint8_t *> malloc(LOG_PAGE * (count + 1))
        try:
            if places == NULL or content == NULL:
                raise MemoryError(f"no memory for {count} pages")
            for i, (place, data) in enumerate(pages):
                places[i] = place
                memcpy(content + LOG_PAGE * i, <const uint8_t *> <bytes> data, LOG_PAGE)
            with nogil:
                monitor_lock(&self.state.flushing)
                monitor_lock(&self.state.meta)
                # The end of all structures goes into the entry (9.1), and pages of the table are merged.
                status = table_scan(&self.state.table)
                for i in range(count):
                    offset = places[i] - self.state.table.offset
                    if status == DISK_OK and offset < self.state.table.page_count * PAGE_BYTES:
                        status = table_get(&self.state.table, offset // 8, &entry)
                fits = self.state.table.dirty_count + count <= LOG_PAGES_MAX
                monitor_unlock(&self.state.meta)
                if self.state.medium.poison:
                    status = -<int> self.state.medium.poison
                if status == DISK_OK and fits:
                    store_release64(&self.state.flushes, self.state.flushes + 1)
                    status = commit_all(&self.state, places, content, count)
                    if status == DISK_OK:
                        self.state.covered = self.state.flushes
                monitor_unlock(&self.state.flushing)
        finally:
            free(places)
            free(content)
        if status != DISK_OK:
            raise disk_error(status)
        if not fits:
            raise ValueError(f"more than {LOG_PAGES_MAX} pages together with what is dirty")

    def entry(self, uint64_t index):
        """The entry of the block allocation table with this number, of a block or a sector bitmap, as it is on disk."""
        self.check(0, 0)
        cdef uint64_t entry = 0
        cdef int status
        if index >= self.state.table.entries:
            raise ValueError(f"there is no entry {index}: the table has {self.state.table.entries}")
        with nogil:
            status = entry_of(&self.state, index, 0, &entry)
        if status != DISK_OK:
            raise disk_error(status)
        return entry

    def drop(self, uint64_t first_block, uint64_t count, int state):
        """Takes blocks out of the table: to state 0 (the parent's, or zeros) or 2 (zeros). Durable with the next flush,
        and only then is their space used again (rule 7).
        """
        self.writable()
        cdef int status
        if state != BLOCK_NOT_PRESENT and state != BLOCK_ZERO:
            raise ValueError(f"blocks are dropped to state 0 or 2, not {state}")
        if first_block > self.state.table.blocks or self.state.table.blocks - first_block < count:
            raise ValueError(f"{count} blocks from {first_block} on: the disk has {self.state.table.blocks}")
        self.begin_now(NULL)
        with nogil:
            status = give_up(&self.state, first_block, first_block + count, state)
        if status != DISK_OK:
            raise disk_error(status)

    def allocate(self, uint64_t length):
        """Offset of `length` bytes (whole MiB) of zeros at the end of the file that nothing refers to and nothing else
        will be given.
        """
        self.writable()
        cdef uint64_t start = 0
        cdef bint clean = False
        cdef int status
        if length == 0 or length % MIB or length > SPACE_LIMIT * MIB:
            raise ValueError(f"space is given in whole MiB, not {length} bytes")
        self.begin_silently()
        with nogil:
            monitor_lock(&self.state.meta)
            status = table_scan(&self.state.table)
            if status == DISK_OK:
                status = take_space(&self.state, self.state.clean_from, length // MIB, &start, &clean)
            monitor_unlock(&self.state.meta)
        if status != DISK_OK:
            raise disk_error(status)
        return start * MIB

    def relocate(self, uint64_t block):
        """Moves a block to the lowest free space below its place. False: there is none, or the block has no place."""
        self.writable()
        cdef bint moved = False
        cdef int status
        if block >= self.state.table.blocks:
            raise ValueError(f"there is no block {block}: the disk has {self.state.table.blocks}")
        self.begin_silently()
        with nogil:
            status = move_block(&self.state, block, &moved)
        if status != DISK_OK:
            raise disk_error(status)
        return bool(moved)

    def settle(self):
        """What close() does to the file (O10), while it stays open: it is a clean image then, may be read, and a later
        write begins anew. No other call may be running.
        """
        cdef int status
        self.writable()
        with nogil:
            status = finish(&self.state)
        if status != DISK_OK:
            raise disk_error(status)

    def fileno(self):
        """Of the open file, which stays the disk's."""
        return self.file.fileno()

    def close(self):
        """Ends the session (O10) and closes the file, which ends its locks, and the parent. Idempotent; no call may be
        running. DiskError: not all could be made durable; file and parent are closed all the same.
        """
        cdef int status = DISK_OK
        if self.ref.ops == NULL:
            return
        Backend.close(self)
        try:
            if not self.state.read_only:
                with nogil:
                    status = finish(&self.state)
        finally:
            self.file.close()
            if self.parent is not None:
                self.parent.close()
        if status != DISK_OK:
            raise disk_error(status)

    def __dealloc__(self):
        table_destroy(&self.state.table)
        space_destroy(&self.state.space)
        log_free(&self.state.log)
        if self.state.locks:
            monitor_destroy(&self.state.meta)
            monitor_destroy(&self.state.flushing)
