"""The block allocation table and the sector bitmaps of a VHDX in memory (disk-formats.md 6, 7); see the .pxd."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from hvcore.disk.medium cimport medium_read_bytes
from hvcore.disk.ops cimport DISK_CORRUPT, DISK_OK, DISK_READ_ERROR, DISK_WRITE_ERROR
from hvcore.disk.vhdx.space cimport SPACE_LIMIT, space_claim, space_reserve, space_taken
from hvcore.linux.atomics cimport load_acquire64, store_release64


cdef extern from *:
    """
    #include <errno.h>
    #include <unistd.h>
    #define hv_trailing_zeros(word) ((uint64_t) __builtin_ctzll(word))
    /* Where the next data are from offset on; INT64_MAX: nowhere; offset: the file cannot say. */
    static inline int64_t hv_next_data(int fd, uint64_t offset) {
        off_t found = lseek(fd, (off_t) offset, SEEK_DATA);
        return found >= 0 ? found : errno == ENXIO ? INT64_MAX : (int64_t) offset;
    }
    """
    int64_t next_data "hv_next_data"(int fd, uint64_t offset) noexcept nogil
    uint64_t trailing_zeros "hv_trailing_zeros"(uint64_t word) noexcept nogil

cdef enum PageFlag:
    PAGE_BAD = 1
    PAGE_DIRTY = 2

cdef enum:
    SCAN_PAGES = 16              # read at a time
    HOLE_PAGES = 4096            # of a hole, taken over at a time

# In the number of a dirty page: of a sector bitmap, not of the table.
cdef uint64_t DIRTY_BITMAP = <uint64_t> 1 << 63


cdef int fault(Table *table, int kind, uint64_t at, uint64_t index) noexcept nogil:
    if table.fault == TABLE_GOOD:
        table.fault = kind
        table.fault_at = at
        table.fault_entry = index
    return DISK_CORRUPT


cdef int judge(const Table *table, uint64_t index, uint64_t entry, uint64_t *place, uint64_t *width) noexcept nogil:
    """The fault of an entry that is not 0, and the space in the file (MiB) that it owns; width 0: none."""
    cdef uint64_t chunk = index // ((<uint64_t> 1 << table.ratio_shift) + 1)
    cdef uint64_t block = index - chunk, offset = entry & ENTRY_PLACE, needed
    cdef int state = entry & 7
    width[0] = 0
    if entry & 0xFFFF8:
        return TABLE_RESERVED
    if index == bitmap_entry(table, chunk):
        if not table.differencing:
            return TABLE_BITMAP
        if state == BLOCK_NOT_PRESENT:
            return TABLE_GOOD
        if state != BLOCK_FULL:
            return TABLE_BITMAP_STATE
        needed = 1 << 20
        width[0] = 1
    else:
        if block >= table.blocks:
            return TABLE_EXCESS
        if state == 4 or state == 5:
            return TABLE_STATE
        if state == BLOCK_PARTIAL and not table.differencing:
            return TABLE_PARTIAL
        if state == BLOCK_NOT_PRESENT or state == BLOCK_ZERO:
            return TABLE_GOOD                      # the offset of these means nothing
        if state != BLOCK_FULL and state != BLOCK_PARTIAL and offset == 0:
            return TABLE_GOOD
        needed = 0                                 # of an anchor nothing is ever read
        if state == BLOCK_FULL or state == BLOCK_PARTIAL:
            # The last block may be cut short in the file where the disk ends (7).
            needed = table.disk_size - (block << table.block_shift)
            if needed > <uint64_t> 1 << table.block_shift:
                needed = <uint64_t> 1 << table.block_shift
        width[0] = <uint64_t> 1 << (table.block_shift - 20)
    place[0] = offset >> 20
    if offset < 1 << 20:
        return TABLE_HEADER
    if place[0] + width[0] > SPACE_LIMIT:
        return TABLE_BEYOND
    if needed and (offset > table.file_size or table.file_size - offset < needed):
        return TABLE_BEYOND
    return TABLE_GOOD


cdef int collision(Table *table, uint64_t place, uint64_t width, uint64_t index) noexcept nogil:
    cdef uint64_t i
    while space_taken(table.space, place, 1) == 0:
        place += 1
    for i in range(table.used_count):
        if table.used[2 * i] <= place < table.used[2 * i + 1]:
            return fault(table, TABLE_OVERLAP, place, index)
    return fault(table, TABLE_TWICE, place, index)


cdef uint64_t entries_of(const Table *table, uint64_t page) noexcept nogil:
    """How many entries of a page belong to the table."""
    cdef uint64_t left = table.entries - page * PAGE_ENTRIES
    return left if left < PAGE_ENTRIES else PAGE_ENTRIES


cdef int judge_page(Table *table, uint64_t page, const uint64_t *words) noexcept nogil:
    """Judges a page as it was read, and claims the blocks that it names."""
    cdef uint64_t first = page * PAGE_ENTRIES, count = entries_of(table, page), i, place = 0, width = 0
    cdef bint claims = page >= table.claimed
    cdef int kind
    # First what needs memory, so that a page is claimed as a whole or not at all.
    for i in range(count):
        if words[i] == 0:
            continue
        kind = judge(table, first + i, words[i], &place, &width)
        if kind != TABLE_GOOD:
            table.flags[page] |= PAGE_BAD
            return fault(table, kind, first + i, first + i)
        if width and claims and space_reserve(table.space, place, width):
            return DISK_READ_ERROR
    if not claims:
        return DISK_OK
    for i in range(count):
        if words[i] == 0:
            continue
        judge(table, first + i, words[i], &place, &width)
        if width == 0:
            continue
        if space_taken(table.space, place, width):
            table.flags[page] |= PAGE_BAD
            return collision(table, place, width, first + i)
        space_claim(table.space, place, width)
    return DISK_OK


cdef uint64_t take_hole(Table *table, uint64_t page) noexcept nogil:
    """Pages from this one on that a hole of the file covers share the page of zeros. Returns the next page."""
    cdef int64_t data
    cdef uint64_t end
    if table.medium.overlay != NULL:
        return page
    data = next_data(table.medium.fd, table.offset + page * PAGE_BYTES)
    end = (<uint64_t> data - table.offset) // PAGE_BYTES
    if end > table.page_count:
        end = table.page_count
    if end > page + HOLE_PAGES:
        end = page + HOLE_PAGES
    while page < end and table.pages[page] == NULL:
        store_release64(<uint64_t *> (table.pages + page), <uint64_t> table.zeros)
        page += 1
    return page


cdef int load(Table *table, uint64_t page) noexcept nogil:
    cdef uint64_t *words
    cdef int status
    if table.pages[page] != NULL:
        return DISK_OK
    if table.flags[page] & PAGE_BAD:
        return DISK_CORRUPT
    if take_hole(table, page) > page:
        return DISK_OK
    words = <uint64_t *> malloc(PAGE_BYTES)
    if words == NULL:
        return DISK_READ_ERROR
    status = medium_read_bytes(table.medium, table.offset + page * PAGE_BYTES, words, PAGE_BYTES)
    if status == DISK_OK and memcmp(words, table.zeros, PAGE_BYTES) == 0:
        free(words)
        words = table.zeros
    elif status == DISK_OK:
        status = judge_page(table, page, words)
    if status != DISK_OK:
        free(words)
        return status
    # Release: whoever sees the page sees it judged.
    store_release64(<uint64_t *> (table.pages + page), <uint64_t> words)
    return DISK_OK


cdef int table_get(Table *table, uint64_t index, uint64_t *entry) noexcept nogil:
    cdef int status = load(table, index // PAGE_ENTRIES)
    if status == DISK_OK:
        entry[0] = table.pages[index // PAGE_ENTRIES][index % PAGE_ENTRIES]
    return status


cdef int judge_partials(Table *table, uint64_t page, const uint64_t *words) noexcept nogil:
    """Partial blocks have a sector bitmap; its entry follows after those of the chunk, maybe pages later."""
    cdef uint64_t first = page * PAGE_ENTRIES, count = entries_of(table, page), i
    if not table.differencing or (words == table.zeros and not table.partial and table.next_bitmap >= first + count):
        return DISK_OK
    for i in range(count):
        if first + i == table.next_bitmap:
            if table.partial and words[i] & 7 != BLOCK_FULL:
                return fault(table, TABLE_NO_BITMAP, table.partial - 1, table.partial - 1)
            table.partial = 0
            table.next_bitmap += (<uint64_t> 1 << table.ratio_shift) + 1
        elif words[i] & 7 == BLOCK_PARTIAL and not table.partial:
            table.partial = first + i + 1
    return DISK_OK


cdef int scan_page(Table *table, const uint64_t *words) noexcept nogil:
    """The next page of the scan, loaded or just read."""
    cdef uint64_t page = table.claimed
    cdef int status = DISK_OK
    if table.flags[page] & PAGE_BAD:
        return DISK_CORRUPT
    if table.pages[page] == NULL:
        if memcmp(words, table.zeros, PAGE_BYTES) == 0:
            store_release64(<uint64_t *> (table.pages + page), <uint64_t> table.zeros)
            words = table.zeros
        else:
            status = judge_page(table, page, words)
    if status == DISK_OK:
        status = judge_partials(table, page, words)
    if status == DISK_OK:
        table.claimed = page + 1
    return status


cdef int table_scan(Table *table) noexcept nogil:
    cdef uint64_t *words
    cdef uint64_t count, i, first
    cdef int status = DISK_OK
    if table.scanned:
        return DISK_OK
    if table.fault != TABLE_GOOD:
        return DISK_CORRUPT
    words = <uint64_t *> malloc(SCAN_PAGES * PAGE_BYTES)
    if words == NULL:
        return DISK_READ_ERROR
    while table.claimed < table.page_count and status == DISK_OK:
        first = table.claimed
        if table.pages[first] == NULL:
            take_hole(table, first)
        if table.pages[first] != NULL:
            status = scan_page(table, table.pages[first])
            continue
        count = 1
        while count < SCAN_PAGES and first + count < table.page_count and table.pages[first + count] == NULL:
            count += 1
        status = medium_read_bytes(table.medium, table.offset + first * PAGE_BYTES, words, count * PAGE_BYTES)
        for i in range(count):
            if status == DISK_OK:
                status = scan_page(table, words + i * PAGE_ENTRIES)
    free(words)
    table.scanned = status == DISK_OK
    return status


cdef int table_reserve(Table *table, uint64_t pages) noexcept nogil:
    cdef uint64_t room = table.dirty_count + pages
    cdef void *grown
    if room <= table.dirty_room:
        return DISK_OK
    room = 2 * room + 64
    grown = realloc(table.dirty, room * sizeof(uint64_t))
    if grown == NULL:
        return DISK_WRITE_ERROR
    table.dirty = <uint64_t *> grown
    table.dirty_room = room
    return DISK_OK


cdef int table_own(Table *table, uint64_t index) noexcept nogil:
    cdef uint64_t page = index // PAGE_ENTRIES
    cdef uint64_t *words
    cdef int status = load(table, page)
    if status != DISK_OK or table.pages[page] != table.zeros:
        return status
    words = <uint64_t *> calloc(1, PAGE_BYTES)
    if words == NULL:
        return DISK_WRITE_ERROR
    # Readers that still hold the page of zeros see what was there before the change that is to come.
    store_release64(<uint64_t *> (table.pages + page), <uint64_t> words)
    return DISK_OK


cdef void table_set(Table *table, uint64_t index, uint64_t entry) noexcept nogil:
    cdef uint64_t page = index // PAGE_ENTRIES
    # Release: the block's bytes and bits are there before the entry that promises them.
    store_release64(table.pages[page] + index % PAGE_ENTRIES, entry)
    if not table.flags[page] & PAGE_DIRTY:
        table.flags[page] |= PAGE_DIRTY
        table.dirty[table.dirty_count] = page
        table.dirty_count += 1


cdef int descending(const void *a, const void *b) noexcept nogil:
    cdef uint64_t left = (<const uint64_t *> a)[0]
    cdef uint64_t right = (<const uint64_t *> b)[0]
    return <int> (left < right) - <int> (left > right)


cdef int table_freeze(Table *table, Frozen *frozen, uint64_t room) noexcept nogil:
    cdef uint64_t i, number, chunk, page, place, count = table.dirty_count
    frozen.places = <uint64_t *> malloc((count + room) * sizeof(uint64_t))
    frozen.pages = <uint8_t *> malloc((count + room) * PAGE_BYTES)
    if frozen.places == NULL or frozen.pages == NULL:
        frozen_free(frozen)
        return DISK_WRITE_ERROR
    if count:
        qsort(table.dirty, count, sizeof(uint64_t), descending)
    for i in range(count):
        number = table.dirty[i]
        if number & DIRTY_BITMAP:
            chunk = (number ^ DIRTY_BITMAP) // BITMAP_PAGES
            page = number % BITMAP_PAGES
            # Its page is in memory since the bits were read, and names the same place for ever.
            place = bitmap_entry(table, chunk)
            place = table.pages[place // PAGE_ENTRIES][place % PAGE_ENTRIES] & ENTRY_PLACE
            frozen.places[i] = place + page * PAGE_BYTES
            memcpy(frozen.pages + i * PAGE_BYTES, table.bitmaps[chunk].pages[page], PAGE_BYTES)
            table.bitmaps[chunk].dirty[page] = False
        else:
            frozen.places[i] = table.offset + number * PAGE_BYTES
            memcpy(frozen.pages + i * PAGE_BYTES, table.pages[number], PAGE_BYTES)
            table.flags[number] &= ~PAGE_DIRTY
    frozen.count = count
    table.dirty_count = 0
    return DISK_OK


cdef void frozen_free(Frozen *frozen) noexcept nogil:
    free(frozen.places)
    free(frozen.pages)
    frozen.places = NULL
    frozen.pages = NULL


cdef int bits_load(Table *table, uint64_t sector, uint64_t count) noexcept nogil:
    cdef uint64_t chunk = sector >> CHUNK_SECTOR_SHIFT
    cdef uint64_t first = (sector & ((1 << CHUNK_SECTOR_SHIFT) - 1)) // PAGE_SECTORS
    cdef uint64_t last = ((sector + count - 1) & ((1 << CHUNK_SECTOR_SHIFT) - 1)) // PAGE_SECTORS
    cdef uint64_t page, block, entry = 0
    cdef uint64_t *words
    cdef Bitmap *bitmap = table.bitmaps[chunk]
    cdef int status
    if bitmap == NULL:
        bitmap = <Bitmap *> calloc(1, sizeof(Bitmap))
        if bitmap == NULL:
            return DISK_READ_ERROR
        store_release64(<uint64_t *> (table.bitmaps + chunk), <uint64_t> bitmap)
    for page in range(first, last + 1):
        if bitmap.pages[page] != NULL:
            continue
        status = table_get(table, bitmap_entry(table, chunk), &entry)
        if status != DISK_OK:
            return status
        if entry & 7 != BLOCK_FULL:
            block = block_entry(table, sector >> (table.block_shift - table.sector_shift))
            return fault(table, TABLE_NO_BITMAP, block, block)
        words = <uint64_t *> malloc(PAGE_BYTES)
        if words == NULL:
            return DISK_READ_ERROR
        status = medium_read_bytes(table.medium, (entry & ENTRY_PLACE) + page * PAGE_BYTES, words, PAGE_BYTES)
        if status != DISK_OK:
            free(words)
            return status
        store_release64(<uint64_t *> &bitmap.pages[page], <uint64_t> words)
    return DISK_OK


cdef void bits_set(Table *table, uint64_t sector, uint64_t count, bint value) noexcept nogil:
    cdef uint64_t chunk = sector >> CHUNK_SECTOR_SHIFT, page, take, mask, before, after, low
    cdef Bitmap *bitmap = table.bitmaps[chunk]
    cdef uint64_t *word
    sector &= (1 << CHUNK_SECTOR_SHIFT) - 1
    while count:
        page = sector // PAGE_SECTORS
        low = sector & 63
        take = 64 - low if count > 64 - low else count
        mask = ~<uint64_t> 0 if take == 64 else ((<uint64_t> 1 << take) - 1) << low
        word = bitmap.pages[page] + sector % PAGE_SECTORS // 64
        before = word[0]
        after = before | mask if value else before & ~mask
        if after != before:
            # Release: the sectors' bytes are there before their bits.
            store_release64(word, after)
            if not bitmap.dirty[page]:
                bitmap.dirty[page] = True
                table.dirty[table.dirty_count] = DIRTY_BITMAP | (chunk * BITMAP_PAGES + page)
                table.dirty_count += 1
        sector += take
        count -= take


cdef uint64_t bits_run(const Table *table, uint64_t sector, uint64_t most, bint *value) noexcept nogil:
    cdef uint64_t chunk = sector >> CHUNK_SECTOR_SHIFT, run = 0, word, low, page
    cdef const Bitmap *bitmap = <const Bitmap *> load_acquire64(<const uint64_t *> (table.bitmaps + chunk))
    if bitmap == NULL:
        return 0
    sector &= (1 << CHUNK_SECTOR_SHIFT) - 1
    while run < most:
        page = load_acquire64(<const uint64_t *> &bitmap.pages[sector // PAGE_SECTORS])
        if page == 0:
            break
        low = sector & 63
        word = load_acquire64(<const uint64_t *> page + sector % PAGE_SECTORS // 64) >> low
        if run == 0:
            value[0] = word & 1
        if value[0]:
            word = ~word                           # the shifted-in zeros too, which end no run: see the bound below
        if word and trailing_zeros(word) < 64 - low:
            run += trailing_zeros(word)
            break
        run += 64 - low
        sector += 64 - low
    return run if run < most else most


cdef void table_destroy(Table *table) noexcept nogil:
    cdef uint64_t i, page
    if table.pages != NULL:
        for i in range(table.page_count):
            if table.pages[i] != table.zeros:
                free(table.pages[i])
    if table.bitmaps != NULL:
        for i in range((table.blocks + (<uint64_t> 1 << table.ratio_shift) - 1) >> table.ratio_shift):
            if table.bitmaps[i] != NULL:
                for page in range(<uint64_t> BITMAP_PAGES):
                    free(table.bitmaps[i].pages[page])
                free(table.bitmaps[i])
    free(table.pages)
    free(table.zeros)
    free(table.flags)
    free(table.bitmaps)
    free(<void *> table.used)
    free(table.dirty)
    memset(table, 0, sizeof(Table))
