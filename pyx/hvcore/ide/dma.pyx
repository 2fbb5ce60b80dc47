"""Bus-master registers and PRD tables (ide.md section 5)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.ide.abi cimport (
    BM_ACTIVE,
    BM_CAPABLE,
    BM_COMMAND,
    BM_ERROR,
    BM_INTERRUPT,
    BM_START,
    BM_STATUS,
    BM_TABLE,
    BM_TO_MEMORY,
    IDE_PRD_ENTRIES,
    IDE_SECTOR,
    IDE_SEGMENTS,
    PRD_END_OF_TABLE,
    Prd,
)


cdef uint32_t bm_read(const BusMaster *bm, uint32_t offset, uint32_t width) noexcept nogil:
    cdef uint32_t status = bm.status | (BM_ACTIVE if bm.active else 0)
    if width == 4 and offset == BM_COMMAND:
        return bm.command | status << 16
    if width == 4 and offset == BM_TABLE:
        return bm.table
    if width == 2 and (offset == BM_TABLE or offset == BM_TABLE + 2):
        return bm.table >> 8 * (offset - BM_TABLE) & 0xFFFF
    if width <= 2 and offset == BM_COMMAND:
        return bm.command
    if width <= 2 and offset == BM_STATUS:
        return status
    if width == 1 and offset < BM_TABLE:
        return 0                                 # reserved
    return <uint32_t> 0xFFFFFFFF >> (32 - 8 * width)        # 5.1: a size that the register does not have


cdef int bm_write_command(BusMaster *bm, uint8_t value) noexcept nogil:
    cdef bint running = (bm.command & BM_START) != 0
    if value & BM_START:
        if running:
            return BM_NOTHING                    # 5.1: the direction is frozen, a second start has no effect
        bm_start(bm, (value & BM_TO_MEMORY) != 0)
        return BM_STARTED
    bm.command = value & BM_TO_MEMORY
    bm.active = False
    return BM_STOPPED if running else BM_NOTHING


cdef void bm_write_status(BusMaster *bm, uint8_t value) noexcept nogil:
    cdef uint8_t kept = bm.status & ~value & (BM_ERROR | BM_INTERRUPT)       # write one to clear
    bm.status = kept | (value & BM_CAPABLE)


cdef int bm_write(BusMaster *bm, uint32_t offset, uint32_t width, uint32_t value) noexcept nogil:
    if width == 4 and offset == BM_COMMAND:
        bm_write_status(bm, value >> 16 & 0xFF)
        return bm_write_command(bm, value & 0xFF)
    if width == 4 and offset == BM_TABLE:
        bm.table = value & ~<uint32_t> 3
    elif width == 2 and offset == BM_TABLE:
        bm.table = (bm.table & <uint32_t> 0xFFFF0000) | (value & 0xFFFC)
    elif width == 2 and offset == BM_TABLE + 2:
        bm.table = (bm.table & 0xFFFF) | (value & 0xFFFF) << 16
    elif width <= 2 and offset == BM_COMMAND:
        return bm_write_command(bm, value & 0xFF)
    elif width <= 2 and offset == BM_STATUS:
        bm_write_status(bm, value & 0xFF)
    return BM_NOTHING


cdef void bm_start(BusMaster *bm, bint to_memory) noexcept nogil:
    bm.command = BM_START | (BM_TO_MEMORY if to_memory else 0)
    bm.active = True
    bm.cursor.next = bm.table
    bm.cursor.entries = 0
    bm.cursor.address = 0
    bm.cursor.bytes = 0
    bm.cursor.last = False


cdef int next_entry(PrdCursor *cursor, const IdeMemory *memory) noexcept nogil:
    """Fetches one entry, once, into private memory, and checks it before anything uses it (section 8)."""
    cdef Prd entry
    cdef uint64_t end
    if cursor.last:
        return PRD_SHORT
    if cursor.entries == IDE_PRD_ENTRIES:
        return PRD_BAD
    if memory.fetch(memory.context, cursor.next, &entry, sizeof(Prd)) != 0:
        return PRD_BAD
    cursor.entries += 1
    cursor.next += sizeof(Prd)                   # 5.2: wraps at 32 bits
    cursor.last = (entry.flags & PRD_END_OF_TABLE) != 0
    cursor.address = entry.base
    cursor.bytes = entry.count if entry.count else 65536
    end = <uint64_t> cursor.address + cursor.bytes
    if end > memory.size_bytes or end > <uint64_t> 1 << 32:
        return PRD_BAD
    return PRD_OK


cdef inline bint follows(const IdeSegment *segment, uint32_t address) noexcept nogil:
    return <uint64_t> segment.address + segment.bytes == address


cdef int prd_collect(BusMaster *bm, const IdeMemory *memory, uint32_t sectors, IdeSegment *segments,
                     PrdChunk *chunk) noexcept nogil:
    cdef PrdCursor *cursor = &bm.cursor
    cdef uint32_t missing, bytes
    cdef int status
    chunk.sectors = 0
    chunk.segment_count = 0
    chunk.tail_bytes = 0
    # A sector takes at most 512 segments (entries are byte-exact), so one that is begun always finds its slots.
    while chunk.sectors < sectors and chunk.segment_count <= IDE_SEGMENTS - IDE_SECTOR:
        missing = IDE_SECTOR
        while missing:
            if cursor.bytes == 0:
                status = next_entry(cursor, memory)
                if status == PRD_SHORT and missing < IDE_SECTOR:
                    chunk.sectors += 1
                    chunk.tail_bytes = missing
                if status != PRD_OK:
                    return status
            bytes = cursor.bytes if cursor.bytes < missing else missing
            # Sectors that lie together in one entry share a segment.
            if chunk.segment_count and follows(&segments[chunk.segment_count - 1], cursor.address):
                segments[chunk.segment_count - 1].bytes += bytes
            else:
                segments[chunk.segment_count].address = cursor.address
                segments[chunk.segment_count].bytes = bytes
                chunk.segment_count += 1
            cursor.address += bytes
            cursor.bytes -= bytes
            missing -= bytes
        chunk.sectors += 1
    return PRD_OK


cdef void prd_drop_tail(IdeSegment *segments, PrdChunk *chunk) noexcept nogil:
    cdef uint32_t partial, bytes
    if chunk.tail_bytes == 0:
        return
    partial = IDE_SECTOR - chunk.tail_bytes
    while partial:
        bytes = segments[chunk.segment_count - 1].bytes
        if bytes > partial:
            segments[chunk.segment_count - 1].bytes = bytes - partial
            break
        partial -= bytes
        chunk.segment_count -= 1
    chunk.sectors -= 1
    chunk.tail_bytes = 0
