# The block allocation table of a VHDX and its sector bitmaps, in memory: pages of 4 KiB, read when first needed,
# judged, and kept (disk-formats.md 6, 7).
#
# Any thread may look entries up without a lock. A page's pointer is published with release once the page is judged, and
# every change of an entry is a release store: who loads one with acquire sees the block's bits and bytes as they were
# when the entry was stored. All else, changes and first loads, needs the owner's lock: "locked" below.
#
# Pages that are all zeros on disk share one page, so a table of hundreds of MiB costs no more than what is used of it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.medium cimport Medium
from hvcore.disk.vhdx.space cimport Space
from hvcore.linux.atomics cimport load_acquire64

cdef enum BlockState:
    BLOCK_NOT_PRESENT = 0
    BLOCK_UNDEFINED = 1
    BLOCK_ZERO = 2
    BLOCK_UNMAPPED = 3
    BLOCK_FULL = 6
    BLOCK_PARTIAL = 7

cdef enum TableFault:
    TABLE_GOOD
    TABLE_RESERVED               # of these, the number of the entry is reported
    TABLE_STATE
    TABLE_PARTIAL
    TABLE_BITMAP
    TABLE_BITMAP_STATE
    TABLE_NO_BITMAP
    TABLE_EXCESS
    TABLE_HEADER
    TABLE_BEYOND
    TABLE_OVERLAP                # of these two, the MiB of the file
    TABLE_TWICE

cdef enum:
    PAGE_BYTES = 4096
    PAGE_ENTRIES = 512
    PAGE_SECTORS = 32768         # bits of a page of a sector bitmap
    BITMAP_PAGES = 256
    CHUNK_SECTOR_SHIFT = 23      # sectors of one sector bitmap

cdef extern from *:
    """
    #define HV_ENTRY_PLACE (~(uint64_t) 0xFFFFF)
    """
    const uint64_t ENTRY_PLACE "HV_ENTRY_PLACE"    # of an entry: where the block lies in the file

# The sector bitmap of a chunk.
ctypedef struct Bitmap:
    uint64_t *pages[BITMAP_PAGES]        # NULL: not read yet
    uint8_t[BITMAP_PAGES] dirty

ctypedef struct Table:
    Medium *medium
    Space *space                 # where the entries' blocks are claimed
    uint64_t **pages             # NULL: not read yet
    uint64_t *zeros              # the page that all pages of zeros share
    uint8_t *flags               # per page: PageFlag
    Bitmap **bitmaps             # per chunk; differencing disks only
    uint64_t page_count
    uint64_t entries
    uint64_t blocks
    uint64_t offset              # of the table in the file
    uint64_t disk_size
    uint64_t file_size           # when the file was opened: entries on disk name nothing beyond
    const uint64_t *used         # pairs (first, end) in MiB: log and regions
    uint64_t used_count
    uint32_t block_shift
    uint32_t sector_shift
    uint32_t ratio_shift
    bint differencing
    bint scanned                 # all entries are judged and their blocks claimed
    uint64_t claimed             # the pages before this one are, loaded or not
    uint64_t partial             # while scanning: 1 + the first entry of this chunk that needs its bitmap
    uint64_t next_bitmap         # while scanning: the entry of this chunk's bitmap
    uint64_t *dirty              # numbers of pages that differ from the disk
    uint64_t dirty_count, dirty_room
    uint32_t fault               # TableFault, the first that was met
    uint64_t fault_at
    uint64_t fault_entry

# Copies of dirty pages.
ctypedef struct Frozen:
    uint64_t count
    uint64_t *places             # in the file
    uint8_t *pages


cdef inline uint64_t block_entry(const Table *table, uint64_t block) noexcept nogil:
    """The number of a block's entry: one for a sector bitmap follows after each chunk, in all types of disk."""
    return block + (block >> table.ratio_shift)


cdef inline uint64_t bitmap_entry(const Table *table, uint64_t chunk) noexcept nogil:
    return ((chunk + 1) << table.ratio_shift) + chunk


cdef inline bint table_look(const Table *table, uint64_t index, uint64_t *entry) noexcept nogil:
    """One entry; False: its page is not in memory."""
    # Acquire, twice: the page was judged before its pointer was published, and what the entry promises (the block's
    # bytes, its bits) was there before the entry was.
    cdef uint64_t page = load_acquire64(<const uint64_t *> (table.pages + index // PAGE_ENTRIES))
    if page == 0:
        return False
    entry[0] = load_acquire64(<const uint64_t *> page + index % PAGE_ENTRIES)
    return True


# All of these: locked. Those that return int return a DiskStatus.
cdef int table_get(Table *table, uint64_t index, uint64_t *entry) noexcept nogil
# Judges all entries and claims their blocks, without keeping the pages in memory. At once when that was done.
cdef int table_scan(Table *table) noexcept nogil
# Afterwards up to `pages` pages can be marked dirty without a failure.
cdef int table_reserve(Table *table, uint64_t pages) noexcept nogil
# The entry's page can be changed afterwards; its place there.
cdef int table_own(Table *table, uint64_t index) noexcept nogil
# Stores an entry of an owned page; one dirty page must be reserved.
cdef void table_set(Table *table, uint64_t index, uint64_t entry) noexcept nogil
# Copies and forgets the dirty pages. Those of bitmaps come first, those of the table follow from the last on: then an
# entry of the log may end anywhere among them, and no block is partial before its bitmap and its bits are there (rule
# 9).
# room: pages that the caller adds.
cdef int table_freeze(Table *table, Frozen *frozen, uint64_t room) noexcept nogil
cdef void frozen_free(Frozen *frozen) noexcept nogil
# The bits of these sectors (of one block) are in memory afterwards. Needs the chunk's bitmap.
cdef int bits_load(Table *table, uint64_t sector, uint64_t count) noexcept nogil
# Loaded bits; pages of `count` sectors must be reserved.
cdef void bits_set(Table *table, uint64_t sector, uint64_t count, bint value) noexcept nogil

# Without the lock: how many sectors from this one on, at most `most`, have the same bit. 0: not in memory.
cdef uint64_t bits_run(const Table *table, uint64_t sector, uint64_t most, bint *value) noexcept nogil
cdef void table_destroy(Table *table) noexcept nogil
