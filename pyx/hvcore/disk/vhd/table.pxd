# The block allocation table of a VHD in memory, its entries judged as they are read, and the sector bitmaps of a
# differencing disk's blocks (disk-formats.md 15.3, 15.5).

from libc.stdint cimport uint32_t, uint64_t

from hvcore.disk.medium cimport Medium
from hvcore.disk.ops cimport DISK_CORRUPT, DISK_NOWAIT, DISK_OK, DISK_WOULD_BLOCK
from hvcore.linux.atomics cimport load_acquire64
from hvcore.linux.threads cimport Monitor

cdef extern from *:
    """
    #ifndef HV_VHD_TABLE
    #define HV_VHD_TABLE
    #include <endian.h>
    #include <stdint.h>
    #define HV_VHD_NONE 0xFFFFFFFFu
    #define hv_load_page(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define hv_store_page(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)
    /* value: not 0 */
    static inline int hv_leading_zeros(uint64_t value) { return __builtin_clzll(value); }
    #endif
    """
    const uint32_t VHD_NONE "HV_VHD_NONE"     # the entry of a block that is not allocated
    VhdPage *load_page "hv_load_page"(VhdPage **page) noexcept nogil
    void store_page "hv_store_page"(VhdPage **page, VhdPage *value) noexcept nogil
    VhdBitmap *load_bitmap "hv_load_page"(VhdBitmap **bitmap) noexcept nogil
    void store_bitmap "hv_store_page"(VhdBitmap **bitmap, VhdBitmap *value) noexcept nogil
    int leading_zeros "hv_leading_zeros"(uint64_t value) noexcept nogil
    uint64_t be64toh(uint64_t value) noexcept nogil
    uint64_t htobe64(uint64_t value) noexcept nogil
    uint32_t be32toh(uint32_t value) noexcept nogil
    uint32_t htobe32(uint32_t value) noexcept nogil

cdef enum:
    VHD_PAGE_ENTRIES = 1024      # of the table, read and kept together
    VHD_PAGE_BYTES = 4096
    VHD_SECTOR = 512
    VHD_USED = 16                # most ranges that headers, table and locators take

cdef enum VhdFault:              # what is wrong with an entry of the table
    VHD_SOUND
    VHD_STRUCTURE                # its block lies over a header, the table or a locator
    VHD_BEYOND                   # ... beyond the end of the file's content
    VHD_OVERLAP                  # ... over another block

# A block's sector bitmap in memory. Bits only ever rise, each after its sector's data were written.
cdef struct VhdBitmap:
    uint64_t *words              # 64 sectors each, the first one in the highest bit
    uint64_t place               # in the file
    uint64_t[2] dirty            # bit n: its n-th sector of 512 bytes waits for a flush; under `meta`
    bint listed
    VhdBitmap *next              # in the list of dirty bitmaps

# 4096 bytes of the table, in host order.
cdef struct VhdPage:
    uint32_t[VHD_PAGE_ENTRIES] entries   # sector of a block's bitmap; published with release
    uint64_t number
    uint32_t dirty               # bit n: its n-th sector of 512 bytes waits for a flush; under `meta`
    bint listed
    VhdPage *next                # in the list of dirty pages
    VhdBitmap **bitmaps          # differencing: per entry, NULL until it is read; published with release

# `load` is held over reads of table and bitmaps; no other lock is taken under it.
ctypedef struct VhdTable:
    Medium *medium
    uint64_t offset              # in the file
    uint64_t blocks              # entries that count
    uint64_t slot                # bytes of a block: bitmap and data
    uint64_t bitmap_bytes        # of a differencing disk; 0: bitmaps mean nothing
    uint64_t limit               # blocks that are found in the file end here at the latest
    uint64_t[2 * VHD_USED] used  # begin and end of each range that headers, table and locators take
    int used_count
    Monitor load
    VhdPage **pages              # NULL: not read yet; published with release
    uint64_t page_count
    uint32_t *claims             # first sectors of known blocks, hashed by the slot-sized cell that they begin in
    uint64_t claim_size          # a power of two
    uint64_t claim_count
    VhdFault fault               # of `fault_entry`, when a page was found damaged
    uint64_t fault_entry

# All return a DiskStatus. A page or bitmap that could not be read may be tried again; a damaged page stays so.
cdef int page_load(VhdTable *table, uint64_t number) noexcept nogil
cdef int bitmap_load(VhdTable *table, VhdBitmap **target, uint32_t entry) noexcept nogil
cdef int table_scan(VhdTable *table, uint64_t *top, uint64_t *count) noexcept nogil
# A bitmap in memory without a bit set; NULL: no memory.
cdef VhdBitmap *bitmap_new(uint64_t place, uint64_t length) noexcept nogil
cdef int table_open(VhdTable *table) noexcept nogil
cdef void table_close(VhdTable *table) noexcept nogil


cdef inline VhdPage *bad_page() noexcept nogil:
    """What stands for a page that proved damaged."""
    return <VhdPage *> 1


cdef inline int page_find(VhdTable *table, uint64_t block, uint32_t flags, VhdPage **page) noexcept nogil:
    """The page that holds a block's entry."""
    cdef uint64_t number = block // VHD_PAGE_ENTRIES
    cdef int status
    page[0] = load_page(&table.pages[number])
    if page[0] == NULL:
        if flags & DISK_NOWAIT:
            return DISK_WOULD_BLOCK
        status = page_load(table, number)
        if status != DISK_OK:
            return status
        page[0] = load_page(&table.pages[number])
    return DISK_CORRUPT if page[0] == bad_page() else DISK_OK


cdef inline int bitmap_find(VhdTable *table, VhdPage *page, uint64_t block, uint32_t entry, uint32_t flags,
                            VhdBitmap **bitmap) noexcept nogil:
    """The bitmap of an allocated block of a differencing disk."""
    cdef VhdBitmap **target = &page.bitmaps[block % VHD_PAGE_ENTRIES]
    cdef int status
    bitmap[0] = load_bitmap(target)
    if bitmap[0] == NULL:
        if flags & DISK_NOWAIT:
            return DISK_WOULD_BLOCK
        status = bitmap_load(table, target, entry)
        if status != DISK_OK:
            return status
        bitmap[0] = load_bitmap(target)
    return DISK_OK


cdef inline uint64_t bitmap_run(const uint64_t *words, uint64_t first, uint64_t last, bint *stored) noexcept nogil:
    """The end of the run of equal bits that begins with sector `first`, at most `last`; stored: their value.

    Acquire: a bit that is seen was set after its sector's data reached the file. Each word is read once, so a bit that
    rises meanwhile cannot make the run empty.
    """
    cdef uint64_t word = load_acquire64(words + (first >> 6)), at = first, flip
    stored[0] = (word >> (63 - (first & 63))) & 1
    flip = ~<uint64_t> 0 if stored[0] else 0
    while True:
        word = (word ^ flip) << (at & 63)
        if word:
            at += leading_zeros(word)
            break
        at += 64 - (at & 63)
        if at >= last:
            break
        word = load_acquire64(words + (at >> 6))
    return at if at < last else last


cdef inline uint64_t word_mask(uint64_t word, uint64_t first, uint64_t last) noexcept nogil:
    """The bits of sectors [first, last) that lie in a word."""
    cdef uint64_t mask = ~<uint64_t> 0
    if first > 64 * word:
        mask >>= first - 64 * word
    if last < 64 * word + 64:
        mask &= ~<uint64_t> 0 << (64 * word + 64 - last)
    return mask
