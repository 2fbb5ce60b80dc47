"""A dynamic or differencing VHD: reads, writes, allocation and flushes (disk-formats.md 15.3, 15.5, 15.6).

Order of changes. A block's space is inside the file, with a footer behind it, before it is used; its bitmap and data
are durable before its table entry is written; a sector's data are durable before its bit is written. Table and bitmap
sectors are therefore changed in memory only, and written by flushes, between two fdatasync.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from hvcore.disk.medium cimport ImageFile, medium_flush, medium_poison, medium_resize, medium_write_bytes
from hvcore.disk.ops cimport (DISK_CORRUPT, DISK_NO_SPACE, DISK_NOWAIT, DISK_OK, DISK_RANGE, DISK_READ_ONLY,
                              DISK_WOULD_BLOCK, DISK_WRITE_ERROR, Backend, DiskOps, disk_error, iovec_span)
from hvcore.disk.pieces cimport parent_read, parent_status, span_read, span_write, zero_range
from hvcore.disk.span cimport Span, span_begin, span_zero
from hvcore.disk.vhd.table cimport (VHD_BEYOND, VHD_NONE, VHD_OVERLAP, VHD_PAGE_BYTES, VHD_PAGE_ENTRIES, VHD_SECTOR,
                                    VHD_STRUCTURE, VHD_USED, VhdBitmap, VhdPage, be64toh, bitmap_find, bitmap_new,
                                    bitmap_run, htobe32, htobe64, page_find, page_load, store_bitmap, table_close,
                                    table_open, table_scan, word_mask)
from hvcore.linux.atomics cimport (load_acquire32, load_acquire64, load_relaxed32, store_release32, store_release64)
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport (monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait,
                                   monitor_wake)

from hvcore.disk.vhd.footer import build
from hvcore.errors import ImageDamaged


cdef extern from *:
    """
    static const uint8_t hv_vhd_zeros[512];
    static inline int hv_bit_count(uint64_t value) { return __builtin_popcountll(value); }
    """
    const uint8_t *ZEROS "hv_vhd_zeros"
    int bit_count "hv_bit_count"(uint64_t value) noexcept nogil


cdef enum:
    WHOLE_BYTES = 256 << 10      # a table up to this size is read and judged when the disk is opened
    STEP_BYTES = 32 << 20        # by which the file grows at least, unless fewer blocks are left
    ALIGNED = 4096               # data of new blocks begin at multiples of it (15.6)

cdef uint64_t MOST = <uint64_t> 0xFFFFFFFF * VHD_SECTOR      # no block may begin here or later

cdef dict FAULTS = {
    VHD_STRUCTURE: "entry {0} places a block over a header, the table or a parent locator",
    VHD_BEYOND: "entry {0} places a block beyond the end of the file",
    VHD_OVERLAP: "the block of entry {0} overlaps another block",
}


# ---- Reading

cdef int run_find(VhdState *state, uint64_t offset, uint64_t most, uint32_t flags, VhdRun *run) noexcept nogil:
    """The longest run from `offset` on that lies in one piece, at most `most` bytes (> 0, inside the disk)."""
    cdef uint64_t block = offset // state.block_size, within = offset % state.block_size, sector, last
    cdef uint64_t length = state.block_size - within
    cdef VhdPage *page
    cdef VhdBitmap *bitmap
    cdef uint32_t entry
    cdef bint stored = True
    cdef int status = page_find(&state.table, block, flags, &page)
    if status != DISK_OK:
        return status
    entry = load_acquire32(&page.entries[block % VHD_PAGE_ENTRIES])
    if entry == VHD_NONE:
        while length < most:
            block += 1
            if page_find(&state.table, block, flags, &page) != DISK_OK:
                break                              # told when the next run begins there
            if load_acquire32(&page.entries[block % VHD_PAGE_ENTRIES]) != VHD_NONE:
                break
            length += state.block_size
        run.kind = VHD_PARENT if state.differencing else VHD_ZERO
        run.length = length if length < most else most
        return DISK_OK
    if length > most:
        length = most
    if state.differencing:
        status = bitmap_find(&state.table, page, block, entry, flags, &bitmap)
        if status != DISK_OK:
            return status
        sector = within // VHD_SECTOR
        last = (within + length + VHD_SECTOR - 1) // VHD_SECTOR
        last = bitmap_run(bitmap.words, sector, last, &stored) * VHD_SECTOR - within
        if length > last:
            length = last
    run.kind = VHD_DATA if stored else VHD_PARENT
    run.length = length
    run.at = <uint64_t> entry * VHD_SECTOR + state.bitmap_bytes + within
    return DISK_OK


cdef int vhd_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef VhdState *state = <VhdState *> pointer
    cdef int64_t total = iovec_span(state.size, offset, iov, count)
    cdef uint64_t left
    cdef Span span
    cdef VhdRun run
    cdef int status
    if total <= 0:
        return <int> total
    left = <uint64_t> total
    span_begin(&span, iov)
    while left:
        status = run_find(state, offset, left, flags, &run)
        if status != DISK_OK:
            return status
        offset += run.length
        left -= run.length
        if run.kind == VHD_ZERO:
            span_zero(&span, run.length)
        elif run.kind == VHD_PARENT:
            status = parent_read(state.parent, offset - run.length, &span, run.length, flags)
        else:
            status = span_read(state.medium, run.at, &span, run.length, flags)
        if status != DISK_OK:
            return status
    return DISK_OK


# ---- Space at the end of the file

cdef inline uint64_t footer_place(uint64_t end) noexcept nogil:
    """Where the footer goes behind `end`: at once, not aligned as in 15.6. Other writers put their next block there and
    expect zeros in it; a footer further on would show in the guest's data."""
    return end + -end % VHD_SECTOR


cdef inline uint64_t block_stride(uint64_t slot) noexcept nogil:
    """From one aligned block to the next."""
    return (slot + ALIGNED - 1) // ALIGNED * ALIGNED


cdef inline uint64_t block_place(const VhdState *state, uint64_t end) noexcept nogil:
    """Where a block's bitmap goes behind `end`, so that its data begin at a multiple of ALIGNED."""
    if state.aligned:
        return end + (-state.bitmap_bytes - end) % ALIGNED
    return end + -end % VHD_SECTOR


cdef int tail_put(VhdState *state, uint64_t at) noexcept nogil:
    """Moves the end of the file up: a footer at `at` >= the old end, durable on return.

    One write extends the file and fills its last sector, so that no size of its own is on its way to the disk that
    lacks the footer. A failure leaves the file as it was, or poisoned.
    """
    cdef int status = medium_write_bytes(state.medium, at, state.footer, VHD_SECTOR)
    if status != DISK_OK:
        if medium_resize(state.medium, state.end) != DISK_OK:
            medium_poison(state.medium, status)
        return status
    status = medium_flush(state.medium)
    if status == DISK_OK:
        state.tail = at
        state.end = at + VHD_SECTOR
        state.tail_lost = False
    return status


cdef int footers_mend(VhdState *state) noexcept nogil:
    """Before the first change: a footer at both ends, and the same one (15.5, open). `space` is held."""
    cdef int status = DISK_OK
    if state.head_differs:
        status = medium_write_bytes(state.medium, 0, state.footer, VHD_SECTOR)
        if status == DISK_OK:
            status = medium_flush(state.medium)
        if status == DISK_OK:
            state.head_differs = False
    if status == DISK_OK and state.tail_lost:
        status = tail_put(state, footer_place(state.end))
    return status


cdef int changes_begin(VhdState *state, uint32_t flags) noexcept nogil:
    """What precedes the first change of the file."""
    cdef int status = DISK_OK
    if load_acquire32(&state.begun):
        return DISK_OK
    if flags & DISK_NOWAIT:                        # whether there is anything to do is known under `space`
        return DISK_WOULD_BLOCK
    monitor_lock(&state.space)
    if not state.begun:
        status = footers_mend(state)
        if status == DISK_OK:
            store_release32(&state.begun, 1)
    monitor_unlock(&state.space)
    return status


cdef int space_extend(VhdState *state, uint64_t place) noexcept nogil:
    """Makes room for the block at `place` and for more that will follow it; `space` is held (15.5, step 1)."""
    cdef uint64_t stride = state.slot, left, steps = STEP_BYTES, end, old_tail = state.tail, old_end = state.end
    cdef int status
    if state.aligned:
        stride = block_stride(stride)
    monitor_lock(&state.meta)
    left = state.table.blocks - state.allocated
    monitor_unlock(&state.meta)
    steps //= stride
    if steps > left:
        steps = left
    if steps < 1:
        steps = 1
    end = place + (steps - 1) * stride + state.slot
    status = tail_put(state, footer_place(end if end > old_end else old_end))
    if status != DISK_OK:
        return status
    # The old footer's place becomes part of a block, or lies before it: zeros only now, as until the new one was
    # durable it was the only one. If it cannot be zeroed now, blocks there are zeroed as old space is.
    if medium_write_bytes(state.medium, old_tail, ZEROS, old_end - old_tail) != DISK_OK:
        state.fresh = old_end
    return DISK_OK


cdef int place_take(VhdState *state, uint64_t *place, uint64_t *dirty) noexcept nogil:
    """Space for a block; its first `dirty` bytes may hold anything, the others read as zeros."""
    cdef VhdSpare *spare
    cdef uint64_t top, count
    cdef int status = DISK_OK
    monitor_lock(&state.space)
    spare = state.spares
    if spare != NULL:
        state.spares = spare.next
        place[0] = spare.place
        dirty[0] = state.slot
        free(spare)
    else:
        if not state.scanned:
            top = state.top
            status = table_scan(&state.table, &top, &count)
            if status == DISK_OK:
                monitor_lock(&state.meta)
                state.top = top
                state.allocated = count
                monitor_unlock(&state.meta)
                state.free = top
                state.scanned = True
        if status == DISK_OK:
            place[0] = block_place(state, state.free)
            if place[0] >= MOST:
                status = DISK_NO_SPACE
            elif state.tail_lost or place[0] + state.slot > state.tail:
                status = space_extend(state, place[0])
        if status == DISK_OK:
            state.free = place[0] + state.slot
            # What was in the file when it was opened is not known to be zeros (rule 15).
            dirty[0] = 0 if place[0] >= state.fresh else state.fresh - place[0]
            if dirty[0] > state.slot:
                dirty[0] = state.slot
    monitor_unlock(&state.space)
    return status


cdef void place_return(VhdState *state, uint64_t place) noexcept nogil:
    """The block's allocation failed. Without memory to note that its space is lost until compaction."""
    cdef VhdSpare *spare = <VhdSpare *> malloc(sizeof(VhdSpare))
    if spare == NULL:
        return
    spare.place = place
    monitor_lock(&state.space)
    spare.next = state.spares
    state.spares = spare
    monitor_unlock(&state.space)


# ---- Writing

cdef void bitmap_set(VhdState *state, VhdBitmap *bitmap, uint64_t first, uint64_t last) noexcept nogil:
    """Sectors [first, last) of a block are stored from now on: their data have been written.

    Bits and the note that they are dirty change together under `meta`: whoever finds a bit set, and flushes, finds it
    either frozen by an earlier flush or still to be written (rule 18).
    """
    cdef uint64_t word, mask, old
    cdef bint stored
    if bitmap_run(bitmap.words, first, last, &stored) == last and stored:
        return
    monitor_lock(&state.meta)
    for word in range(first >> 6, ((last - 1) >> 6) + 1):
        mask = word_mask(word, first, last)
        old = bitmap.words[word]
        if old & mask == mask:
            continue
        store_release64(&bitmap.words[word], old | mask)
        bitmap.dirty[word >> 12] |= <uint64_t> 1 << (word >> 6 & 63)
        if not bitmap.listed:
            bitmap.listed = True
            bitmap.next = state.dirty_bitmaps
            state.dirty_bitmaps = bitmap
    monitor_unlock(&state.meta)


cdef int block_fill(VhdState *state, uint64_t place, uint64_t dirty, uint64_t within, uint64_t length, Span *span,
                    VhdBitmap **made) noexcept nogil:
    """Writes a new block into its space: what is not covered by `span` (NULL: nothing is) becomes zeros, then bitmap
    and data (15.5, step 2). They become durable by the flush that writes the entry.

    made: a differencing disk's bitmap, with exactly the given sectors set; the caller's.
    """
    cdef VhdBitmap *bitmap = bitmap_new(place, state.bitmap_bytes)
    cdef uint64_t word, first = within // VHD_SECTOR, last = (within + length) // VHD_SECTOR
    cdef int status = DISK_OK
    made[0] = bitmap
    if bitmap == NULL:
        return DISK_WRITE_ERROR
    if dirty:
        status = zero_range(state.medium, place, dirty)
        if status != DISK_OK:
            return status
    if not state.differencing:
        memset(bitmap.words, 0xFF, state.bitmap_bytes)
    else:
        for word in range(first >> 6, ((last - 1) >> 6) + 1):
            bitmap.words[word] = htobe64(word_mask(word, first, last))
    status = medium_write_bytes(state.medium, place, bitmap.words, state.bitmap_bytes)
    if status == DISK_OK and span != NULL:
        status = span_write(state.medium, place + state.bitmap_bytes + within, span, length, 0)
    if status == DISK_OK and state.differencing:
        for word in range(first >> 6, ((last - 1) >> 6) + 1):
            bitmap.words[word] = be64toh(bitmap.words[word])
    return status


cdef void block_publish(VhdState *state, VhdPage *page, uint64_t block, uint64_t place,
                        VhdBitmap *bitmap) noexcept nogil:
    """A new block whose bitmap and data have been written appears in the table; `meta` is held."""
    cdef uint64_t index = block % VHD_PAGE_ENTRIES
    if state.differencing:
        store_bitmap(&page.bitmaps[index], bitmap)
    # Release: whoever sees the entry finds bitmap and data.
    store_release32(&page.entries[index], <uint32_t> (place // VHD_SECTOR))
    page.dirty |= <uint32_t> 1 << (index * 4 // VHD_SECTOR)
    if not page.listed:
        page.listed = True
        page.next = state.dirty_pages
        state.dirty_pages = page
    state.allocated += 1
    if place + state.slot > state.top:
        state.top = place + state.slot


cdef int block_allocate(VhdState *state, VhdPage *page, uint64_t block, uint64_t within, uint64_t length,
                        Span *span, bint *done) noexcept nogil:
    """Allocates a block with a first write of `span` (NULL: of zeros). done: False when another thread has allocated it
    meanwhile, and the write is still to be done (rule 13)."""
    cdef VhdBusy mine
    cdef VhdBusy *other
    cdef VhdBusy **link
    cdef VhdBitmap *bitmap = NULL
    cdef uint64_t place = 0, dirty = 0
    cdef int status
    done[0] = False
    monitor_lock(&state.meta)
    other = state.busy
    while other != NULL:
        if other.block == block:
            monitor_wait(&state.meta, -1)
            other = state.busy                     # the list has changed
        else:
            other = other.next
    if page.entries[block % VHD_PAGE_ENTRIES] != VHD_NONE:
        monitor_unlock(&state.meta)
        return DISK_OK
    mine.block = block
    mine.next = state.busy
    state.busy = &mine
    monitor_unlock(&state.meta)

    status = place_take(state, &place, &dirty)
    if status == DISK_OK:
        status = block_fill(state, place, dirty, within, length, span, &bitmap)
        if status != DISK_OK:
            place_return(state, place)

    monitor_lock(&state.meta)
    if status == DISK_OK:
        block_publish(state, page, block, place, bitmap)
        done[0] = True
    link = &state.busy
    while link[0] != &mine:
        link = &link[0].next
    link[0] = mine.next
    monitor_wake(&state.meta)
    monitor_unlock(&state.meta)
    if status != DISK_OK or not state.differencing:
        free(bitmap)
    return status


cdef int block_write(VhdState *state, uint64_t block, uint64_t within, uint64_t length, Span *span,
                     uint32_t flags) noexcept nogil:
    """Writes whole sectors of one block; span NULL: zeros."""
    cdef VhdPage *page
    cdef VhdBitmap *bitmap = NULL
    cdef uint32_t entry
    cdef uint64_t at
    cdef bint done
    cdef int status = page_find(&state.table, block, flags, &page)
    if status != DISK_OK:
        return status
    entry = load_acquire32(&page.entries[block % VHD_PAGE_ENTRIES])
    if entry == VHD_NONE:
        if span == NULL and not state.differencing:
            return DISK_OK                         # it reads as zeros as it is
        if span == NULL and state.parent != NULL and (
                block * state.block_size + within >= state.parent.size_bytes):
            return DISK_OK                         # so it does behind the parent's end
        if flags & DISK_NOWAIT:
            return DISK_WOULD_BLOCK
        status = block_allocate(state, page, block, within, length, span, &done)
        if status != DISK_OK or done:
            return status
        entry = load_acquire32(&page.entries[block % VHD_PAGE_ENTRIES])
    if state.differencing:
        status = bitmap_find(&state.table, page, block, entry, flags, &bitmap)
        if status != DISK_OK:
            return status
    at = <uint64_t> entry * VHD_SECTOR + state.bitmap_bytes + within
    if span == NULL:
        status = zero_range(state.medium, at, length)
    else:
        status = span_write(state.medium, at, span, length, flags)
    if status == DISK_OK and state.differencing:
        bitmap_set(state, bitmap, within // VHD_SECTOR, (within + length) // VHD_SECTOR)
    return status


cdef int blocks_write(VhdState *state, uint64_t offset, uint64_t left, Span *span, uint32_t flags) noexcept nogil:
    cdef uint64_t within, part
    cdef int status = changes_begin(state, flags)
    while left and status == DISK_OK:
        within = offset % state.block_size
        part = state.block_size - within
        if part > left:
            part = left
        status = block_write(state, offset // state.block_size, within, part, span, flags)
        offset += part
        left -= part
    return status


cdef int vhd_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef VhdState *state = <VhdState *> pointer
    cdef int64_t total
    cdef Span span
    if state.read_only:
        return DISK_READ_ONLY
    total = iovec_span(state.size, offset, iov, count)
    if total <= 0:
        return <int> total
    if (offset | <uint64_t> total) % VHD_SECTOR:       # a bit stands for a whole sector
        return DISK_RANGE
    span_begin(&span, iov)
    return blocks_write(state, offset, total, &span, flags)


cdef int vhd_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    """Zeros in place. A block never leaves the table: its space would have to wait for a flush and for every request
    that uses it; and in a differencing disk the parent would show again (disk-formats.md 15.3)."""
    cdef VhdState *state = <VhdState *> pointer
    if state.read_only:
        return DISK_READ_ONLY
    if offset > state.size or state.size - offset < length or (offset | length) % VHD_SECTOR:
        return DISK_RANGE
    if length == 0:
        return DISK_OK
    return blocks_write(state, offset, length, NULL, 0)


cdef int64_t vhd_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    cdef VhdState *state = <VhdState *> pointer
    cdef VhdRun run
    cdef int status
    if offset > state.size or state.size - offset < length:
        return DISK_RANGE
    status = run_find(state, offset, length, 0, &run)
    if status != DISK_OK:
        return status
    if run.kind == VHD_PARENT:
        return parent_status(state.parent, offset, run.length, mapped)
    mapped[0] = run.kind == VHD_DATA
    return <int64_t> run.length


# ---- Flushing

cdef int frozen_take(VhdState *state, VhdFrozen *frozen) noexcept nogil:
    """Copies every dirty sector of table and bitmaps, which is clean from now on; `meta` is held (rule 16)."""
    cdef VhdPage *page = state.dirty_pages
    cdef VhdBitmap *bitmap = state.dirty_bitmaps
    cdef uint64_t count = 0, i, n
    cdef uint32_t *entries
    cdef uint64_t *words
    frozen.places = NULL
    frozen.data = NULL
    frozen.count = 0
    while page != NULL:
        count += bit_count(page.dirty)
        page = page.next
    while bitmap != NULL:
        count += bit_count(bitmap.dirty[0]) + bit_count(bitmap.dirty[1])
        bitmap = bitmap.next
    if count == 0:
        return DISK_OK
    frozen.places = <uint64_t *> malloc(8 * count)
    frozen.data = <uint8_t *> malloc(VHD_SECTOR * count)
    if frozen.places == NULL or frozen.data == NULL:
        return DISK_WRITE_ERROR
    page = state.dirty_pages
    while page != NULL:
        for n in range(<uint64_t> VHD_PAGE_BYTES // VHD_SECTOR):
            if page.dirty >> n & 1:
                frozen.places[frozen.count] = state.table.offset + page.number * VHD_PAGE_BYTES + n * VHD_SECTOR
                entries = <uint32_t *> (frozen.data + VHD_SECTOR * frozen.count)
                for i in range(<uint64_t> VHD_SECTOR // 4):
                    entries[i] = htobe32(page.entries[n * (VHD_SECTOR // 4) + i])
                frozen.count += 1
        page.dirty = 0
        page.listed = False
        page = page.next
    bitmap = state.dirty_bitmaps
    while bitmap != NULL:
        for n in range(state.bitmap_bytes // VHD_SECTOR):
            if bitmap.dirty[n >> 6] >> (n & 63) & 1:
                frozen.places[frozen.count] = bitmap.place + n * VHD_SECTOR
                words = <uint64_t *> (frozen.data + VHD_SECTOR * frozen.count)
                for i in range(<uint64_t> VHD_SECTOR // 8):
                    words[i] = htobe64(bitmap.words[n * (VHD_SECTOR // 8) + i])
                frozen.count += 1
        bitmap.dirty[0] = bitmap.dirty[1] = 0
        bitmap.listed = False
        bitmap = bitmap.next
    state.dirty_pages = NULL
    state.dirty_bitmaps = NULL
    return DISK_OK


cdef int frozen_write(VhdState *state, const VhdFrozen *frozen) noexcept nogil:
    """Writes the copies, neighbours together. A sector is written by flushes alone, which follow one another, so two
    versions of it are never on their way at once (rule 19)."""
    cdef uint64_t at = 0, end
    cdef int status = DISK_OK
    while at < frozen.count and status == DISK_OK:
        end = at + 1
        while end < frozen.count and frozen.places[end] == frozen.places[end - 1] + VHD_SECTOR:
            end += 1
        status = medium_write_bytes(
            state.medium, frozen.places[at], frozen.data + VHD_SECTOR * at, VHD_SECTOR * (end - at))
        at = end
    return status


cdef int metadata_flush(VhdState *state) noexcept nogil:
    """Makes every completed write durable, and every entry and bit that it changed; flush_lock is held."""
    cdef VhdFrozen frozen
    cdef int status
    monitor_lock(&state.meta)
    status = frozen_take(state, &frozen)
    monitor_unlock(&state.meta)
    # Data, zeros, new blocks' bitmaps and the file's size first: an entry or bit that reached the disk before them
    # would show old content of the file, where zeros or the parent's data were promised.
    if status == DISK_OK:
        status = medium_flush(state.medium)
    if status == DISK_OK and frozen.count:
        status = frozen_write(state, &frozen)
        if status == DISK_OK:
            status = medium_flush(state.medium)
    if status != DISK_OK:
        medium_poison(state.medium, status)        # the copies are lost, and with them what they promised (rule 12)
    free(frozen.places)
    free(frozen.data)
    return status


cdef int vhd_flush(void *pointer) noexcept nogil:
    cdef VhdState *state = <VhdState *> pointer
    # Acquire: the number is read after the caller's writes completed. A flush with a greater number freezes after that.
    cdef uint64_t seen = load_acquire64(&state.flushes)
    cdef int status = DISK_OK
    if state.read_only:
        return DISK_READ_ONLY
    monitor_lock(&state.flush_lock)
    if load_relaxed32(&state.medium.poison):
        status = -<int> load_relaxed32(&state.medium.poison)
    elif state.flushes == seen:                    # else another caller's flush, begun after our writes, covered them
        store_release64(&state.flushes, seen + 1)
        status = metadata_flush(state)
    monitor_unlock(&state.flush_lock)
    return status


cdef void spares_drop(VhdState *state, uint64_t place) noexcept nogil:
    """Forgets those from `place` on; no other call runs."""
    cdef VhdSpare **link = &state.spares
    cdef VhdSpare *spare
    while link[0] != NULL:
        spare = link[0]
        if spare.place < place:
            link = &spare.next
        else:
            link[0] = spare.next
            free(spare)


cdef int changes_settle(VhdState *state) noexcept nogil:
    """A flush, then the space that no block took is given back; no other call runs, and the disk can be used on."""
    cdef uint64_t at
    cdef int status
    if not state.begun:
        return DISK_OK
    status = vhd_flush(state)
    if status != DISK_OK or not state.scanned:
        return status
    at = footer_place(state.top)
    if at + VHD_SECTOR > state.tail:               # it is there, or so near that the two would overlap
        return DISK_OK
    # The footer is durable at its new place before the file ends there; until then the old one counts. If that fails
    # half-way, space that held nothing holds a footer.
    state.fresh = state.end
    status = medium_write_bytes(state.medium, at, state.footer, VHD_SECTOR)
    if status == DISK_OK:
        status = medium_flush(state.medium)
    if status == DISK_OK:
        status = medium_resize(state.medium, at + VHD_SECTOR)
    if status == DISK_OK:
        status = medium_flush(state.medium)
    if status == DISK_OK:                          # all is as if the file had been opened now
        state.tail = at
        state.end = state.fresh = at + VHD_SECTOR
        state.free = state.top
        spares_drop(state, state.top)
    return status


cdef DiskOps OPS
OPS.read = vhd_read
OPS.write = vhd_write
OPS.flush = vhd_flush
OPS.trim = vhd_trim
OPS.status = vhd_status


@cython.final
cdef class VhdDisk(Backend):
    """The disk in a dynamic or differencing VHD, laid out as `layout` says (hvcore.disk.vhd.layout.VhdLayout).

    The disk closes the file, and the parent after itself. write: the file is open for writing; nothing in it changes
    before the first write or trim. Without its parent a differencing disk opens, and reads fail where it is needed.
    Writes and trims cover whole sectors of 512 bytes. A table of up to 256 KiB is judged here (ImageDamaged), a larger
    one page by page when it is used (DiskError, "the image's metadata is damaged"). Memory: 4 bytes per block of the
    pages used, in a differencing disk also the bitmaps of the blocks used.
    """

    def __cinit__(self, ImageFile file not None, layout, *, bint write=False, Backend parent=None):
        cdef VhdState *state = &self.state
        monitor_init(&state.table.load)
        monitor_init(&state.meta)
        monitor_init(&state.flush_lock)
        monitor_init(&state.space)
        if layout.block_size % ALIGNED or layout.bitmap_bytes % VHD_SECTOR or len(layout.used) > VHD_USED:
            raise ValueError("a layout that no VHD has")
        state.differencing = layout.differencing
        if parent is not None and not state.differencing:
            raise ValueError("a dynamic disk has no parent")
        if parent is not None and parent.ref.sector_size != VHD_SECTOR:
            raise ValueError(f"a VHD's parent has sectors of 512 bytes, not {parent.ref.sector_size}")
        self.file = file
        self.layout = layout
        self.parent = parent
        state.medium = state.table.medium = &file.medium
        state.parent = NULL if parent is None else &parent.ref
        state.size = layout.size
        state.block_size = layout.block_size
        state.bitmap_bytes = layout.bitmap_bytes
        state.slot = state.table.slot = state.bitmap_bytes + state.block_size
        state.table.bitmap_bytes = state.bitmap_bytes if state.differencing else 0
        state.table.blocks = layout.blocks
        state.table.offset = layout.table_offset
        state.read_only = not write
        state.table.limit = state.tail = layout.tail_offset
        state.end = state.fresh = layout.file_size
        state.tail_lost = layout.tail_lost
        state.head_differs = layout.head_differs
        for offset, length in layout.used:
            state.table.used[2 * state.table.used_count] = offset
            state.table.used[2 * state.table.used_count + 1] = offset + length
            state.table.used_count += 1
            state.top = max(state.top, offset + length)
        footer = build(layout.footer)
        memcpy(state.footer, PyBytes_AS_STRING(footer), VHD_SECTOR)
        # Padding counts against the 32 bits of an entry: a disk whose blocks would not fit with it is packed.
        state.aligned = layout.file_size + block_stride(state.slot) * layout.blocks < MOST
        self.load_table()
        self.ref.state = state
        self.ref.size_bytes = state.size
        self.ref.sector_size = self.ref.physical_sector_size = VHD_SECTOR
        self.ref.read_only = not write
        self.ref.can_trim = write
        self.ref.ops = &OPS

    cdef int load_table(self) except -1:
        cdef VhdState *state = &self.state
        cdef uint64_t number = 0, block
        cdef uint32_t entry
        cdef int status = DISK_OK
        if table_open(&state.table) != DISK_OK:
            raise MemoryError(f"no memory for the table of {state.table.blocks} blocks")
        if 4 * state.table.blocks > WHOLE_BYTES:
            return 0
        while number < state.table.page_count and status == DISK_OK:
            with nogil:
                status = page_load(&state.table, number)
            number += 1
        if status == DISK_CORRUPT:
            fault = FAULTS[state.table.fault].format(state.table.fault_entry)
            raise ImageDamaged(f"the block allocation table is damaged: {fault}", structure="block allocation table",
                               offset=state.table.offset + 4 * state.table.fault_entry)
        if status != DISK_OK:
            raise disk_error(status)
        for block in range(state.table.blocks):
            entry = state.table.pages[block // VHD_PAGE_ENTRIES].entries[block % VHD_PAGE_ENTRIES]
            if entry != VHD_NONE:
                state.allocated += 1
                state.top = max(state.top, <uint64_t> entry * VHD_SECTOR + state.slot)
        state.free = state.top
        state.scanned = True
        free(state.table.claims)                   # no page will come that could overlap
        state.table.claims = NULL
        return 0

    @property
    def disk_id(self):
        return self.layout.disk_id

    @property
    def block_size(self):
        """Bytes."""
        return self.state.block_size

    def entry(self, uint64_t index):
        """The block's table entry: the sector of its bitmap in the file, 0xFFFFFFFF: not allocated."""
        self.check(0, 0)
        cdef VhdPage *page
        cdef int status
        if index >= self.state.table.blocks:
            raise ValueError(f"the disk has {self.state.table.blocks} blocks, none of them is number {index}")
        with nogil:
            status = page_find(&self.state.table, index, 0, &page)
        if status != DISK_OK:
            raise disk_error(status)
        return load_acquire32(&page.entries[index % VHD_PAGE_ENTRIES])

    def find(self, uint64_t offset):
        """(length, state, file offset) of the run that begins at `offset`, as extents() gives them."""
        self.check(offset, 0)
        cdef VhdRun run
        cdef int status
        if offset >= self.state.size:
            raise ValueError(f"offset {offset} is beyond the disk's {self.state.size} bytes")
        with nogil:
            status = run_find(&self.state, offset, self.state.size - offset, 0, &run)
        if status != DISK_OK:
            raise disk_error(status)
        if run.kind == VHD_DATA:
            return run.length, "data", run.at
        return run.length, "zero" if run.kind == VHD_ZERO else "parent", None

    def extents(self):
        """Yields (offset, length, state, file_offset) in order, without gaps; neighbours are joined where they can.

        state: "data" lie at file_offset (else None), "zero": zeros, "parent": this file says nothing, the parent does.
        """
        at = start = 0
        state = place = None
        while at < self.size:
            length, kind, found = self.find(at)
            if at > start and (kind != state or (place is not None and place + at - start != found)):
                yield start, at - start, state, place
                start = at
            if at == start:
                state, place = kind, found
            at += length
        yield start, at - start, state, place

    def fileno(self):
        """Of the open file, which stays the disk's."""
        return self.file.fileno()

    def settle(self):
        """Makes the file what close() leaves, and keeps it open: all that was written is durable, unused space is given
        back, and the footer stands behind the last block. No call may be running, and none may begin meanwhile.

        Until the next write or trim a copy of the file is an image that was closed; after it, too, the disk can be
        used as before. DiskError: something could not be written; what was flushed before is there.
        """
        cdef int status
        self.check(0, 0)
        with nogil:
            status = changes_settle(&self.state)
        if status != DISK_OK:
            raise disk_error(status)

    def close(self):
        """Settles the file, and closes it, then the parent. Idempotent; no call may be running.

        DiskError: something could not be written; the file is closed all the same, and what was flushed before is
        there. A disk that is dropped without close leaves a file that opens, with what was flushed.
        """
        if self.ref.ops == NULL:
            return
        try:
            self.settle()
        finally:
            Backend.close(self)
            self.file.close()
            if self.parent is not None:
                self.parent.close()

    def __dealloc__(self):
        cdef VhdState *state = &self.state
        cdef VhdSpare *spare
        table_close(&state.table)
        while state.spares != NULL:
            spare = state.spares
            state.spares = spare.next
            free(spare)
        monitor_destroy(&state.table.load)
        monitor_destroy(&state.meta)
        monitor_destroy(&state.flush_lock)
        monitor_destroy(&state.space)
