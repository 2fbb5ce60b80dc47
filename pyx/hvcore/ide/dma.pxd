# The bus-master half of a channel (ide.md section 5): its registers and the walk through a PRD table.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

ctypedef struct IdeMemory:           # guest memory as the controller reaches it; addresses are the guest's
    void *context
    uint64_t size_bytes              # data segments lie within it
    # Copy `bytes` from or to memory; 0, or -1 when the range is not all memory.
    int (*fetch)(void *context, uint32_t address, void *destination, uint32_t bytes) noexcept nogil
    int (*store)(void *context, uint32_t address, const void *source, uint32_t bytes) noexcept nogil

ctypedef struct IdeSegment:
    uint32_t address
    uint32_t bytes                   # 1 .. 65536

ctypedef struct PrdCursor:
    uint32_t next                    # address of the entry to fetch next
    uint32_t entries                 # fetched since the start
    uint32_t address                 # what is left of the current entry
    uint32_t bytes
    bint last                        # the current entry ends the table

ctypedef struct BusMaster:
    uint8_t command                  # start and direction
    uint8_t status                   # error, interrupt, capable; active is `active`
    bint active                      # from start until stop, the table's end, or an error
    uint32_t table                   # PRD pointer
    PrdCursor cursor

cdef enum BusMasterEvent:
    BM_NOTHING = 0
    BM_STARTED = 1
    BM_STOPPED = 2

cdef enum PrdStatus:
    PRD_OK = 0
    PRD_SHORT = 1                    # the table ended before the sectors did
    PRD_BAD = 2                      # entry or table not in memory, or no end within IDE_PRD_ENTRIES

ctypedef struct PrdChunk:
    uint32_t sectors                 # a partial last one included
    uint32_t segment_count
    uint32_t tail_bytes              # of the last sector, without memory: the table ended inside it

cdef uint32_t bm_read(const BusMaster *bm, uint32_t offset, uint32_t width) noexcept nogil
cdef int bm_write(BusMaster *bm, uint32_t offset, uint32_t width, uint32_t value) noexcept nogil   # BusMasterEvent
cdef void bm_start(BusMaster *bm, bint to_memory) noexcept nogil
# Takes memory for up to `sectors` sectors from the table; segments has IDE_SEGMENTS slots.
cdef int prd_collect(BusMaster *bm, const IdeMemory *memory, uint32_t sectors, IdeSegment *segments,
                     PrdChunk *chunk) noexcept nogil
# Gives up the last, partial sector: a write stores only sectors received in full (5.2).
cdef void prd_drop_tail(IdeSegment *segments, PrdChunk *chunk) noexcept nogil


cdef inline bint bm_to_memory(const BusMaster *bm) noexcept nogil:
    return (bm.command & 0x08) != 0


cdef inline bint prd_exhausted(const BusMaster *bm) noexcept nogil:
    return bm.cursor.bytes == 0 and bm.cursor.last
