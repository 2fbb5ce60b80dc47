"""Places of blocks: given by writes, taken away by trims, changed by compaction (disk-formats.md 7, 10, 13)."""

from libc.stdint cimport uint64_t, uint8_t
from libc.stdlib cimport free, malloc

from hvcore.disk.medium cimport medium_read_bytes, medium_resize, medium_write_bytes
from hvcore.disk.ops cimport DISK_NO_SPACE, DISK_OK, DISK_WRITE_ERROR
from hvcore.disk.pieces cimport ZEROS_BYTES, all_zeros, span_write, zero_range
from hvcore.disk.span cimport Span
from hvcore.disk.vhdx.lookup cimport after_zeros
from hvcore.disk.vhdx.session cimport flush_all
from hvcore.disk.vhdx.space cimport (SPACE_LIMIT, Freed, space_claim, space_drain, space_find, space_free, space_node,
                                     space_release, space_reserve)
from hvcore.disk.vhdx.state cimport MIB, Busy, VhdxState
from hvcore.disk.vhdx.table cimport (BLOCK_FULL, BLOCK_NOT_PRESENT, BLOCK_PARTIAL, BLOCK_UNDEFINED, BLOCK_UNMAPPED,
                                     BLOCK_ZERO, CHUNK_SECTOR_SHIFT, ENTRY_PLACE, PAGE_SECTORS, bitmap_entry,
                                     bits_load, bits_run, bits_set, block_entry, table_get, table_own, table_reserve,
                                     table_scan, table_set)
from hvcore.linux.atomics cimport store_release64
from hvcore.linux.threads cimport monitor_lock, monitor_unlock, monitor_wait, monitor_wake

cdef enum:
    EXTEND_MIB = 32              # at least, at a time: fewer changes of the file's size
    BATCH = 512                  # blocks that a trim takes before it lets others have the lock
    DIRTY_MOST = 4096            # pages that a trim leaves to the next flush

cdef uint64_t BUSY_BITMAP = <uint64_t> 1 << 63


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


# Giving up and moving.

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
