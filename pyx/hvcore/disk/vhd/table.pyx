"""The block allocation table of a VHD: pages of it in memory, each entry judged before it is used."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from hvcore.disk.medium cimport medium_read_bytes
from hvcore.disk.ops cimport DISK_CORRUPT, DISK_OK, DISK_READ_ERROR, DISK_WRITE_ERROR
from hvcore.linux.threads cimport monitor_lock, monitor_unlock

cdef enum:
    SCAN_BYTES = 65536           # read at a time to find the highest block


cdef uint64_t claim_find(const uint32_t *claims, uint64_t size, uint64_t cell, uint64_t width) noexcept nogil:
    """Where the block that begins in the cell is noted, or where it would be."""
    cdef uint64_t at = (cell * <uint64_t> 0x9E3779B97F4A7C15) >> 20 & (size - 1)
    while claims[at] and claims[at] // width != cell:
        at = (at + 1) & (size - 1)
    return at


cdef int claim_grow(VhdTable *table, uint64_t width) noexcept nogil:
    cdef uint64_t size = 2 * table.claim_size if table.claim_size else 1024, i
    cdef uint32_t *claims = <uint32_t *> calloc(size, 4)
    if claims == NULL:
        return DISK_READ_ERROR
    for i in range(table.claim_size):
        if table.claims[i]:
            claims[claim_find(claims, size, table.claims[i] // width, width)] = table.claims[i]
    free(table.claims)
    table.claims = claims
    table.claim_size = size
    return DISK_OK


cdef int claim(VhdTable *table, uint32_t first) noexcept nogil:
    """Notes the block whose bitmap begins at sector `first`; DISK_CORRUPT: it overlaps one that is known.

    All blocks are equally long, so of those that begin in one cell of that length two always overlap, and one that
    begins elsewhere can only overlap those of the neighbouring cells.
    """
    cdef uint64_t width = table.slot // VHD_SECTOR, cell = first // width, at, near
    cdef uint32_t other
    if 2 * table.claim_count >= table.claim_size and claim_grow(table, width) != DISK_OK:
        return DISK_READ_ERROR
    for near in range(cell - 1 if cell else 0, cell + 2):
        other = table.claims[claim_find(table.claims, table.claim_size, near, width)]
        if other and other < first + width and first < other + width:
            return DISK_CORRUPT
    at = claim_find(table.claims, table.claim_size, cell, width)
    table.claims[at] = first
    table.claim_count += 1
    return DISK_OK


cdef VhdFault entry_judge(const VhdTable *table, uint32_t entry) noexcept nogil:
    """Whether an allocated block lies where one may (15.5): products of 32 and 9 bits and a block do not wrap."""
    cdef uint64_t first = <uint64_t> entry * VHD_SECTOR, end = first + table.slot
    cdef int i
    if end > table.limit:
        return VHD_BEYOND
    for i in range(table.used_count):
        if first < table.used[2 * i + 1] and table.used[2 * i] < end:
            return VHD_STRUCTURE
    return VHD_SOUND


cdef int page_read(VhdTable *table, uint64_t number, VhdPage *page) noexcept nogil:
    """Fills a page from the file and judges it; `load` is held."""
    cdef uint64_t at = number * VHD_PAGE_BYTES, length = table.limit - table.offset - at, first, i
    cdef uint32_t entry
    cdef VhdFault fault
    cdef int status
    if length > VHD_PAGE_BYTES:
        length = VHD_PAGE_BYTES
    memset(page.entries, 0xFF, VHD_PAGE_BYTES)
    page.number = number
    status = medium_read_bytes(table.medium, table.offset + at, page.entries, length)
    if status != DISK_OK:
        return status
    first = number * VHD_PAGE_ENTRIES
    for i in range(<uint64_t> VHD_PAGE_ENTRIES):
        entry = be32toh(page.entries[i])
        page.entries[i] = entry
        if entry == VHD_NONE or first + i >= table.blocks:       # entries beyond the disk mean nothing, and are kept
            continue
        fault = entry_judge(table, entry)
        if fault == VHD_SOUND:
            status = claim(table, entry)
            if status == DISK_READ_ERROR:
                return status
            if status == DISK_CORRUPT:
                fault = VHD_OVERLAP
        if fault != VHD_SOUND:
            table.fault = fault
            table.fault_entry = first + i
            return DISK_CORRUPT
    return DISK_OK


cdef int page_load(VhdTable *table, uint64_t number) noexcept nogil:
    """Brings a page into memory. What proves damaged stays so; what could not be read may be tried again."""
    cdef VhdPage *page
    cdef int status = DISK_OK
    monitor_lock(&table.load)
    if table.pages[number] == bad_page():
        status = DISK_CORRUPT
    elif table.pages[number] == NULL:
        page = <VhdPage *> calloc(1, sizeof(VhdPage))
        if page != NULL and table.bitmap_bytes:
            page.bitmaps = <VhdBitmap **> calloc(VHD_PAGE_ENTRIES, sizeof(VhdBitmap *))
        if page == NULL or (table.bitmap_bytes and page.bitmaps == NULL):
            status = DISK_READ_ERROR
        else:
            status = page_read(table, number, page)
        if status == DISK_OK:
            store_page(&table.pages[number], page)           # whoever sees the page sees its entries
        else:
            if page != NULL:
                free(page.bitmaps)
            free(page)
            if status == DISK_CORRUPT:
                store_page(&table.pages[number], bad_page())
    monitor_unlock(&table.load)
    return status


cdef int table_scan(VhdTable *table, uint64_t *top, uint64_t *count) noexcept nogil:
    """Counts the blocks of a table that was not read at opening, without keeping it, and raises `top` to the highest
    one's end. Nothing has been allocated yet, so the file's table is the whole truth."""
    cdef uint64_t done = 0, length, i, total = 4 * table.blocks
    cdef uint32_t *entries = <uint32_t *> malloc(SCAN_BYTES)
    cdef uint32_t entry
    cdef int status = DISK_OK if entries != NULL else DISK_WRITE_ERROR
    count[0] = 0
    while status == DISK_OK and done < total:
        length = total - done
        if length > SCAN_BYTES:
            length = SCAN_BYTES
        status = medium_read_bytes(table.medium, table.offset + done, entries, length)
        if status != DISK_OK:
            break
        for i in range(length // 4):
            entry = be32toh(entries[i])
            if entry == VHD_NONE:
                continue
            if entry_judge(table, entry) != VHD_SOUND:
                status = DISK_CORRUPT
                break
            count[0] += 1
            if <uint64_t> entry * VHD_SECTOR + table.slot > top[0]:
                top[0] = <uint64_t> entry * VHD_SECTOR + table.slot
        done += length
    free(entries)
    return status


cdef VhdBitmap *bitmap_new(uint64_t place, uint64_t length) noexcept nogil:
    cdef VhdBitmap *bitmap = <VhdBitmap *> calloc(1, sizeof(VhdBitmap) + length)
    if bitmap != NULL:
        bitmap.words = <uint64_t *> (bitmap + 1)
        bitmap.place = place
    return bitmap


cdef int bitmap_load(VhdTable *table, VhdBitmap **target, uint32_t entry) noexcept nogil:
    cdef VhdBitmap *bitmap
    cdef uint64_t i
    cdef int status = DISK_OK
    monitor_lock(&table.load)
    if target[0] == NULL:
        bitmap = bitmap_new(<uint64_t> entry * VHD_SECTOR, table.bitmap_bytes)
        status = DISK_READ_ERROR
        if bitmap != NULL:
            status = medium_read_bytes(table.medium, bitmap.place, bitmap.words, table.bitmap_bytes)
        if status == DISK_OK:
            for i in range(table.bitmap_bytes // 8):
                bitmap.words[i] = be64toh(bitmap.words[i])
            store_bitmap(target, bitmap)
        else:
            free(bitmap)
    monitor_unlock(&table.load)
    return status


cdef int table_open(VhdTable *table) noexcept nogil:
    """After the fields that describe the table were set; the others are zero. DISK_READ_ERROR: no memory."""
    table.page_count = (table.blocks + VHD_PAGE_ENTRIES - 1) // VHD_PAGE_ENTRIES
    table.pages = <VhdPage **> calloc(table.page_count, sizeof(VhdPage *))
    return DISK_OK if table.pages != NULL else DISK_READ_ERROR


cdef void table_close(VhdTable *table) noexcept nogil:
    cdef VhdPage *page
    cdef uint64_t number, i
    if table.pages != NULL:
        for number in range(table.page_count):
            page = table.pages[number]
            if page == NULL or page == bad_page():
                continue
            if page.bitmaps != NULL:
                for i in range(<uint64_t> VHD_PAGE_ENTRIES):
                    free(page.bitmaps[i])
            free(page.bitmaps)
            free(page)
    free(table.pages)
    free(table.claims)
