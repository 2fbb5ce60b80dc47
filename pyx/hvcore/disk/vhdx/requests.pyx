"""What a VHDX is asked: reads, writes, flushes and trims (disk-formats.md 6, 7, 10, 13)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from hvcore.disk.medium cimport medium_read, medium_write
from hvcore.disk.ops cimport (DISK_NOWAIT, DISK_OK, DISK_RANGE, DISK_READ_ONLY, DISK_UNSUPPORTED, DISK_WOULD_BLOCK,
                              DISK_WRITE_ERROR, iovec_span)
from hvcore.disk.pieces cimport parent_read, parent_status, span_read, span_write, zero_pieces, zero_range
from hvcore.disk.span cimport SPAN_PIECES, Span, span_begin, span_zero
from hvcore.disk.vhdx.allocate cimport give_up, write_block
from hvcore.disk.vhdx.lookup cimport RUN_DATA, RUN_PARENT, Run, entry_of, find_run
from hvcore.disk.vhdx.session cimport begin, flush_all
from hvcore.disk.vhdx.space cimport epoch_enter, epoch_leave
from hvcore.disk.vhdx.state cimport VhdxState
from hvcore.disk.vhdx.table cimport BLOCK_FULL, BLOCK_NOT_PRESENT, BLOCK_PARTIAL, BLOCK_ZERO, ENTRY_PLACE, block_entry
from hvcore.linux.atomics cimport load_acquire32, load_relaxed32
from hvcore.linux.syscalls cimport iovec


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


# Writing.

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


cdef int vhdx_flush(void *pointer) noexcept nogil:
    cdef VhdxState *state = <VhdxState *> pointer
    if state.read_only:
        return DISK_READ_ONLY
    if not load_acquire32(&state.begun):           # nothing was written
        return -<int> load_relaxed32(&state.medium.poison)
    return flush_all(state)


# Trimming.

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


# What takes space.

cdef int64_t vhdx_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    cdef VhdxState *state = <VhdxState *> pointer
    cdef Run run
    cdef int status
    if offset > state.size or state.size - offset < length:
        return DISK_RANGE
    status = find_run(state, offset, length, 0, &run)
    if status != DISK_OK:
        return status
    if run.kind == RUN_PARENT:
        return parent_status(state.parent, offset, run.length, mapped)
    mapped[0] = run.kind == RUN_DATA
    return <int64_t> run.length


OPS.read = vhdx_read
OPS.write = vhdx_write
OPS.flush = vhdx_flush
OPS.trim = vhdx_trim
OPS.status = vhdx_status
