"""A VHDX, fixed or dynamic, opened for reading: the block table in memory and reads over it (disk-formats.md 6, 7)."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memset

from hvcore.disk.medium cimport ImageFile, medium_read
from hvcore.disk.ops cimport DISK_OK, DISK_READ_ONLY, Backend, DiskOps, iovec_span
from hvcore.linux.syscalls cimport iovec

from hvcore.errors import ImageError

cdef enum:
    PIECES = 64                  # buffers in one read of a part of a request

cdef uint64_t MIB = 1 << 20
cdef uint64_t LOAD_ENTRIES = 1 << 17     # of the table, read at a time

cdef enum BatFault:
    BAT_GOOD
    BAT_RESERVED
    BAT_STATE
    BAT_PARTIAL
    BAT_BITMAP
    BAT_HEADER
    BAT_BEYOND
    BAT_OVERLAP
    BAT_TWICE

cdef dict FAULTS = {
    BAT_RESERVED: "entry {0} has reserved bits set",
    BAT_STATE: "entry {0} has a state that does not exist",
    BAT_PARTIAL: "entry {0} is partially present, which only a differencing disk may have",
    BAT_BITMAP: "entry {0} names a sector bitmap, which only a differencing disk has",
    BAT_HEADER: "entry {0} places a block inside the header area",
    BAT_BEYOND: "entry {0} places a block beyond the end of the file",
    BAT_OVERLAP: "a block at MiB {0} of the file overlaps the log or a region",
    BAT_TWICE: "two blocks overlap at MiB {0} of the file",
}


ctypedef struct Bat:
    uint64_t blocks              # payload blocks
    uint64_t ratio               # payload entries before each bitmap entry
    uint64_t block_size
    uint64_t size                # of the disk
    uint64_t file_size
    uint64_t owned               # blocks and anchors that own space in the file
    uint64_t *places             # their places in MiB
    uint64_t at                  # the entry at fault


cdef BatFault bat_take(Bat *bat, uint64_t *target, const uint8_t *raw, uint64_t first, uint64_t count) noexcept nogil:
    """Judges `count` entries from number `first` on and fills the block table."""
    cdef uint64_t i, entry, state, place, block, needed
    cdef int byte
    for i in range(count):
        bat.at = first + i
        entry = 0
        for byte in range(7, -1, -1):
            entry = entry << 8 | raw[8 * i + byte]
        if entry & 0xFFFF8:
            return BAT_RESERVED
        if bat.at % (bat.ratio + 1) == bat.ratio:
            if entry:                              # fixed and dynamic disks have no bitmaps, but room for their entries
                return BAT_BITMAP
            continue
        block = bat.at - bat.at // (bat.ratio + 1)
        state = entry & 7
        place = entry & ~<uint64_t> 0xFFFFF
        target[block] = 0
        if state == 7:
            return BAT_PARTIAL
        if state == 4 or state == 5:
            return BAT_STATE
        if state == 6:
            if place < MIB:
                return BAT_HEADER
            # The last block may be cut short in the file where the disk ends (disk-formats.md 7).
            needed = bat.size - block * bat.block_size
            if needed > bat.block_size:
                needed = bat.block_size
            if place > bat.file_size or bat.file_size - place < needed:
                return BAT_BEYOND
            target[block] = place
        elif state == 0 or state == 2 or place == 0:
            continue                               # zeros; the offset of states 0 and 2 means nothing
        bat.places[bat.owned] = place >> 20        # a block, or the space that a block of state 1 or 3 still owns
        bat.owned += 1
    return BAT_GOOD


cdef int compare(const void *a, const void *b) noexcept nogil:
    cdef uint64_t left = (<const uint64_t *> a)[0]
    cdef uint64_t right = (<const uint64_t *> b)[0]
    return <int> (left > right) - <int> (left < right)


cdef BatFault bat_disjoint(Bat *bat, const uint64_t *used, uint64_t ranges) noexcept nogil:
    """Whether no two blocks, and no block and used range, share a MiB. used: pairs (first, end) in MiB, ascending."""
    cdef uint64_t i, width = bat.block_size >> 20, r = 0
    for i in range(1, bat.owned):
        if bat.places[i] < bat.places[i - 1]:      # most files were allocated in order: sort only the others
            qsort(bat.places, bat.owned, sizeof(uint64_t), compare)
            break
    for i in range(bat.owned):
        bat.at = bat.places[i]
        if i and bat.places[i] - bat.places[i - 1] < width:
            return BAT_TWICE
        while r < ranges and used[2 * r + 1] <= bat.places[i]:
            r += 1
        if r < ranges and used[2 * r] < bat.places[i] + width:
            return BAT_OVERLAP
    return BAT_GOOD


cdef int vhdx_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef VhdxState *state = <VhdxState *> pointer
    cdef int64_t span = iovec_span(state.size, offset, iov, count)
    cdef uint64_t left, run, at, block, skip = 0, take, part
    cdef iovec[PIECES] pieces
    cdef int n, i, status
    if span <= 0:
        return <int> span
    left = <uint64_t> span
    while left:
        # The longest run from here that lies in one piece in the file, or is all zeros.
        block = offset // state.block_size
        run = state.block_size - offset % state.block_size
        at = state.blocks[block]
        while run < left:
            block += 1
            if at and state.blocks[block] != state.blocks[block - 1] + state.block_size:
                break
            if not at and state.blocks[block]:
                break
            run += state.block_size
        if run > left:
            run = left
        if at:
            at += offset % state.block_size
            if run == <uint64_t> span:
                return medium_read(state.medium, at, iov, count, run, flags)
        offset += run
        left -= run
        while run:
            n = 0
            part = 0
            while n < PIECES and part < run:
                take = iov.iov_len - skip
                if take > run - part:
                    take = run - part
                pieces[n].iov_base = <uint8_t *> iov.iov_base + skip
                pieces[n].iov_len = take
                n += 1
                part += take
                skip += take
                if skip == iov.iov_len:
                    iov = iov + 1
                    skip = 0
            if at:
                status = medium_read(state.medium, at, pieces, n, part, flags)
                if status != DISK_OK:
                    return status
                at += part
            else:
                for i in range(n):
                    memset(pieces[i].iov_base, 0, pieces[i].iov_len)
            run -= part
    return DISK_OK


cdef int vhdx_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    return DISK_READ_ONLY


cdef int vhdx_flush(void *pointer) noexcept nogil:
    return DISK_READ_ONLY


cdef int vhdx_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    return DISK_READ_ONLY


cdef DiskOps OPS
OPS.read = vhdx_read
OPS.write = vhdx_write
OPS.flush = vhdx_flush
OPS.trim = vhdx_trim


@cython.final
cdef class VhdxDisk(Backend):
    """The disk in a VHDX file, laid out as `layout` says (hvcore.disk.vhdx.layout.VhdxLayout).

    The disk closes the file. Reads the whole block allocation table and judges it:
    ImageError with the fault, without the file's name. Memory: 8 bytes per block, twice that while opening.
    """

    def __cinit__(self, ImageFile file not None, layout):
        self.file = file
        self.state.medium = &file.medium
        self.state.size = layout.size
        self.state.block_size = layout.block_size
        self.state.count = layout.blocks
        self.load(layout.file_size, layout.bat_offset, layout.bat_entries, layout.chunk_ratio, layout.used)
        self.ref.state = &self.state
        self.ref.size_bytes = layout.size
        self.ref.sector_size = layout.sector_size
        self.ref.physical_sector_size = layout.physical_sector_size
        self.ref.read_only = True
        self.ref.ops = &OPS

    cdef int load(self, uint64_t file_size, uint64_t offset, uint64_t entries, uint64_t ratio,
                  list used) except -1:
        cdef Bat bat
        cdef uint64_t done = 0, step, i, count = len(used)
        cdef BatFault fault = BAT_GOOD
        cdef const uint8_t *raw
        cdef uint64_t *blocks
        cdef uint64_t *ranges = <uint64_t *> malloc(16 * count)
        bat.blocks = self.state.count
        bat.ratio = ratio
        bat.block_size = self.state.block_size
        bat.size = self.state.size
        bat.file_size = file_size
        bat.owned = 0
        bat.at = 0
        bat.places = <uint64_t *> malloc(8 * self.state.count)
        self.state.blocks = blocks = <uint64_t *> malloc(8 * self.state.count)
        try:
            if ranges == NULL or bat.places == NULL or blocks == NULL:
                raise MemoryError(f"no memory for the table of {self.state.count} blocks")
            for i, (start, length) in enumerate(sorted(used)):
                ranges[2 * i] = start >> 20
                ranges[2 * i + 1] = (start + length) >> 20
            while done < entries and fault == BAT_GOOD:
                step = min(entries - done, LOAD_ENTRIES)
                chunk = self.file.read(offset + 8 * done, 8 * step)
                raw = chunk
                with nogil:
                    fault = bat_take(&bat, blocks, raw, done, step)
                done += step
            if fault == BAT_GOOD:
                with nogil:
                    fault = bat_disjoint(&bat, ranges, count)
            if fault != BAT_GOOD:
                raise ImageError("the block allocation table is damaged: " + FAULTS[fault].format(bat.at))
        finally:
            free(bat.places)
            free(ranges)
        return 0

    def extents(self):
        """[(offset, length, offset in the file or None for zeros)], in order, without gaps, neighbours joined."""
        self.check(0, 0)
        cdef uint64_t block, place, start = 0
        result = []
        for block in range(1, self.state.count + 1):
            place = self.state.blocks[block - 1]
            if block < self.state.count:
                if place == 0 and self.state.blocks[block] == 0:
                    continue
                if place and self.state.blocks[block] == place + self.state.block_size:
                    continue
            offset = start * self.state.block_size
            length = min(block * self.state.block_size, self.state.size) - offset
            result.append((offset, length, self.state.blocks[start] or None))
            start = block
        return result

    def close(self):
        """Closes the file, which ends its locks. Idempotent; no call may be running."""
        Backend.close(self)
        self.file.close()

    def __dealloc__(self):
        free(self.state.blocks)
