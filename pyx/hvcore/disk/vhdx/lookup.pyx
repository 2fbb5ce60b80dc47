"""Where the bytes of a VHDX lie: entries, sector bits, and the longest pieces that they give (disk-formats.md 6, 7)."""

from libc.stdint cimport uint32_t, uint64_t

from hvcore.disk.ops cimport DISK_NOWAIT, DISK_OK, DISK_WOULD_BLOCK
from hvcore.disk.vhdx.state cimport VhdxState
from hvcore.disk.vhdx.table cimport (BLOCK_FULL, BLOCK_NOT_PRESENT, BLOCK_PARTIAL, ENTRY_PLACE, PAGE_ENTRIES,
                                     bits_load, bits_run, block_entry, table_get, table_look)
from hvcore.linux.atomics cimport load_acquire64
from hvcore.linux.threads cimport monitor_lock, monitor_unlock


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
