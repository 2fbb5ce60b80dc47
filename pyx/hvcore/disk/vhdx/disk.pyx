"""A VHDX as a disk: fixed, dynamic and differencing, read and written."""

import os
import stat
from uuid import UUID

cimport cython
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from hvcore.disk.medium cimport ImageFile
from hvcore.disk.ops cimport DISK_CORRUPT, DISK_OK, DISK_READ_ONLY, Backend, disk_error
from hvcore.disk.vhdx.allocate cimport give_up, move_block, take_space
from hvcore.disk.vhdx.log_writer cimport LOG_PAGE, LOG_PAGES_MAX, log_free
from hvcore.disk.vhdx.lookup cimport RUN_DATA, RUN_PARENT, Run, entry_of, find_run
from hvcore.disk.vhdx.requests cimport OPS
from hvcore.disk.vhdx.session cimport begin, commit_all, finish
from hvcore.disk.vhdx.space cimport SPACE_LIMIT, epoch_enter, epoch_leave, space_claim, space_destroy, space_reserve
from hvcore.disk.vhdx.state cimport MIB, VhdxState
from hvcore.disk.vhdx.table cimport (BLOCK_NOT_PRESENT, BLOCK_ZERO, PAGE_BYTES, PAGE_ENTRIES, TABLE_BEYOND,
                                     TABLE_BITMAP, TABLE_BITMAP_STATE, TABLE_EXCESS, TABLE_GOOD, TABLE_HEADER,
                                     TABLE_NO_BITMAP, TABLE_OVERLAP, TABLE_PARTIAL, TABLE_RESERVED, TABLE_STATE,
                                     TABLE_TWICE, Bitmap, Table, table_destroy, table_get, table_scan)
from hvcore.linux.atomics cimport load_acquire32, store_release64
from hvcore.linux.threads cimport monitor_destroy, monitor_init, monitor_lock, monitor_unlock

from hvcore.errors import ImageDamaged, ImageError

cdef enum:
    OPEN_PAGES = 64              # a table of no more pages is judged at once, when the disk is opened

cdef dict FAULTS = {
    TABLE_RESERVED: "entry {0} has reserved bits set",
    TABLE_STATE: "entry {0} has a state that does not exist",
    TABLE_PARTIAL: "entry {0} is partially present, which only a differencing disk may have",
    TABLE_BITMAP: "entry {0} names a sector bitmap, which only a differencing disk has",
    TABLE_BITMAP_STATE: "entry {0} gives a sector bitmap a state that does not exist",
    TABLE_NO_BITMAP: "entry {0} needs a sector bitmap that is not there",
    TABLE_EXCESS: "entry {0} names a block beyond the end of the disk",
    TABLE_HEADER: "entry {0} places a block inside the header area",
    TABLE_BEYOND: "entry {0} places a block beyond the end of the file",
    TABLE_OVERLAP: "a block at MiB {0} of the file overlaps the log or a region",
    TABLE_TWICE: "two blocks overlap at MiB {0} of the file",
}


def pieces_of(VhdxDisk disk):
    """See VhdxDisk.extents."""
    offset = 0
    while offset < disk.size:
        length, kind, place = disk.piece(offset)
        yield offset, length, kind, place
        offset += length


@cython.final
cdef class VhdxDisk(Backend):
    """The disk in a VHDX file, laid out as `layout` says (hvcore.disk.vhdx.layout.VhdxLayout).

    Owns the file and the parent and closes both. write: the file is open for writing; it is not touched before the
    first write, trim or begin(). parent: of a differencing disk; None: it is not at hand, and what is the parent's
    cannot be read. A small block allocation table is judged at once (ImageDamaged, without the file's name), a large
    one page by page when it is needed, and all of it before the first change of metadata: `damage` says what was found.

    Writes and trims are in whole sectors. All calls may run concurrently, except close(), and except commit(), drop(),
    allocate() and relocate(): while one of those runs nothing but reads and extents() may.
    """

    def __cinit__(self, ImageFile file not None, layout, *, bint write=False, Backend parent=None):
        cdef VhdxState *state = &self.state
        cdef Table *table = &state.table
        cdef uint64_t *used
        cdef uint64_t i, end = 1
        if monitor_init(&state.meta):
            raise MemoryError("no memory for a lock")
        if monitor_init(&state.flushing):
            monitor_destroy(&state.meta)
            raise MemoryError("no memory for a lock")
        state.locks = True
        if parent is not None and not layout.has_parent:
            raise ValueError("a parent for a disk that has none")
        if layout.file_size > SPACE_LIMIT * MIB:
            raise ImageError("files of more than 256 TiB are not supported")
        self.file = file
        self.parent = parent
        state.medium = &file.medium
        state.parent = &parent.ref if parent is not None else NULL
        state.size = layout.size
        state.block_size = layout.block_size
        state.block_shift = layout.block_size.bit_length() - 1
        state.sector_shift = layout.sector_size.bit_length() - 1
        state.read_only = not write
        state.differencing = layout.has_parent
        state.fixed = layout.fixed and not layout.has_parent
        state.regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        state.file_size = layout.file_size
        state.clean_from = (state.file_size + MIB - 1) // MIB

        table.medium = state.medium
        table.space = &state.space
        table.entries = layout.bat_entries
        table.blocks = layout.blocks
        table.offset = layout.bat_offset
        table.disk_size = layout.size
        table.file_size = layout.file_size
        table.block_shift = state.block_shift
        table.sector_shift = state.sector_shift
        table.ratio_shift = layout.chunk_ratio.bit_length() - 1
        table.next_bitmap = layout.chunk_ratio
        table.differencing = state.differencing
        table.page_count = (table.entries + PAGE_ENTRIES - 1) // PAGE_ENTRIES
        chunks = (layout.blocks + layout.chunk_ratio - 1) // layout.chunk_ratio
        table.pages = <uint64_t **> calloc(table.page_count, sizeof(uint64_t *))
        table.flags = <uint8_t *> calloc(table.page_count, 1)
        table.zeros = <uint64_t *> calloc(1, PAGE_BYTES)
        table.bitmaps = <Bitmap **> calloc(chunks, sizeof(Bitmap *))
        table.used = used = <uint64_t *> calloc(len(layout.used) + 1, 2 * sizeof(uint64_t))
        if table.pages == NULL or table.flags == NULL or table.zeros == NULL or table.bitmaps == NULL or used == NULL:
            raise MemoryError(f"no memory for the table of {layout.blocks} blocks")
        for i, (offset, length) in enumerate(layout.used):
            used[2 * i] = offset // MIB
            used[2 * i + 1] = (offset + length) // MIB
            end = max(end, used[2 * i + 1])
            if space_reserve(&state.space, used[2 * i], length // MIB):
                raise MemoryError("no memory for the map of the file")
            space_claim(&state.space, used[2 * i], length // MIB)
        table.used_count = len(layout.used)
        if space_reserve(&state.space, 0, 1):
            raise MemoryError("no memory for the map of the file")
        space_claim(&state.space, 0, 1)            # the header area
        state.most = end + layout.blocks * (state.block_size // MIB) + (chunks if layout.has_parent else 0)

        header = layout.header
        state.log.medium = state.medium
        state.log.file_size = &state.file_size
        state.log.header_sequence = header.sequence
        state.log.log_offset = header.log_offset
        state.log.log_length = header.log_length
        state.log.copy = header.copy
        memcpy(state.log.file_write_guid, <const uint8_t *> <bytes> header.file_write_guid.bytes_le, 16)
        memcpy(state.log.data_write_guid, <const uint8_t *> <bytes> header.data_write_guid.bytes_le, 16)
        if table.page_count <= OPEN_PAGES:
            self.judge()

        self.ref.state = state
        self.ref.size_bytes = layout.size
        self.ref.sector_size = layout.sector_size
        self.ref.physical_sector_size = layout.physical_sector_size
        self.ref.read_only = not write
        self.ref.can_trim = write and not state.fixed
        self.ref.trim_unit = state.block_size
        self.ref.ops = &OPS

    cdef int judge(self) except -1:
        """Loads and judges the whole table."""
        cdef uint64_t page, entry = 0
        cdef int status = DISK_OK
        with nogil:
            monitor_lock(&self.state.meta)
            for page in range(self.state.table.page_count):
                if status == DISK_OK:
                    status = table_get(&self.state.table, page * PAGE_ENTRIES, &entry)
            if status == DISK_OK:
                status = table_scan(&self.state.table)
            monitor_unlock(&self.state.meta)
        if status == DISK_CORRUPT:
            raise ImageDamaged(
                self.damage,
                structure="block allocation table",
                offset=self.state.table.offset + 8 * self.state.table.fault_entry,
            )
        if status != DISK_OK:
            raise disk_error(status)
        return 0

    @property
    def damage(self):
        """What was found wrong with the table since the disk was opened; None: nothing."""
        cdef int kind
        cdef uint64_t at
        with nogil:
            monitor_lock(&self.state.meta)
            kind = self.state.table.fault
            at = self.state.table.fault_at
            monitor_unlock(&self.state.meta)
        if kind == TABLE_GOOD:
            return None
        return "the block allocation table is damaged: " + FAULTS[kind].format(at)

    @property
    def data_write_guid(self):
        """Of the current header."""
        cdef uint8_t[16] guid
        with nogil:
            monitor_lock(&self.state.flushing)
            memcpy(guid, self.state.log.data_write_guid, 16)
            monitor_unlock(&self.state.flushing)
        return UUID(bytes_le=(<const char *> guid)[:16])

    def piece(self, uint64_t offset):
        """(length, state, place in the file) of the longest piece from `offset` on; see extents()."""
        self.check(0, 0)
        cdef Run run
        cdef uint32_t side
        cdef int status
        if offset >= self.state.size:
            raise ValueError(f"offset {offset} is beyond the disk's {self.state.size} bytes")
        with nogil:
            side = epoch_enter(&self.state.space.epoch)
            status = find_run(&self.state, offset, self.state.size - offset, 0, &run)
            epoch_leave(&self.state.space.epoch, side)
        if status != DISK_OK:
            raise disk_error(status)
        if run.kind == RUN_DATA:
            return run.length, "data", run.place
        return run.length, "parent" if run.kind == RUN_PARENT else "zero", None

    def extents(self):
        """(offset, length, state, offset in the file or None) of the pieces of the disk: in order, without gaps,
        neighbours joined. state: "data", "zero", or "parent" where the parent decides. Reads the table as it goes.
        """
        self.check(0, 0)
        return pieces_of(self)

    cdef int writable(self) except -1:
        self.check(0, 0)
        if self.state.read_only:
            raise disk_error(DISK_READ_ONLY)
        return 0

    cdef int begin_now(self, const uint8_t *data_write_guid) except -1:
        cdef int status
        with nogil:
            status = begin(&self.state, data_write_guid)
        if status != DISK_OK:
            raise disk_error(status)
        return 0

    cdef int begin_silently(self) except -1:
        """For changes that nobody sees: the data are the same (3)."""
        if not load_acquire32(&self.state.begun):
            guid = self.data_write_guid.bytes_le
            self.begin_now(<const uint8_t *> <bytes> guid)
        return 0

    def begin(self, data_write_guid=None):
        """Says in the header that the file is being changed: a new FileWriteGuid, and a new DataWriteGuid or the given
        one (O1, O2). The first write and trim do so by themselves; when it is done already, only a given GUID counts.
        """
        self.writable()
        if data_write_guid is None:
            self.begin_now(NULL)
        else:
            guid = data_write_guid.bytes_le
            self.begin_now(<const uint8_t *> <bytes> guid)

    def commit(self, pages):
        """One log entry of everything that is dirty and of these pages, [(offset in the file, 4096 bytes)]; durable and
        applied on return. Offsets are multiples of 4096. Of a page of the block allocation table only what lies behind
        the last entry is taken.

        ValueError: no such pages, or more than 252 together with what is dirty (flush first).
        """
        self.writable()
        cdef uint64_t count = len(pages), i, offset, entry = 0
        cdef uint64_t *places
        cdef uint8_t *content
        cdef int status = DISK_OK
        cdef bint fits = True
        for place, data in pages:
            if place < 3 * 65536 or place % LOG_PAGE or len(data) != LOG_PAGE:
                raise ValueError(f"no page of {LOG_PAGE} bytes: {len(data)} bytes at {place}")
        self.begin_silently()
        places = <uint64_t *> malloc(8 * (count + 1))
        content = <uint8_t *> malloc(LOG_PAGE * (count + 1))
        try:
            if places == NULL or content == NULL:
                raise MemoryError(f"no memory for {count} pages")
            for i, (place, data) in enumerate(pages):
                places[i] = place
                memcpy(content + LOG_PAGE * i, <const uint8_t *> <bytes> data, LOG_PAGE)
            with nogil:
                monitor_lock(&self.state.flushing)
                monitor_lock(&self.state.meta)
                # The end of all structures goes into the entry (9.1), and pages of the table are merged.
                status = table_scan(&self.state.table)
                for i in range(count):
                    offset = places[i] - self.state.table.offset
                    if status == DISK_OK and offset < self.state.table.page_count * PAGE_BYTES:
                        status = table_get(&self.state.table, offset // 8, &entry)
                fits = self.state.table.dirty_count + count <= LOG_PAGES_MAX
                monitor_unlock(&self.state.meta)
                if self.state.medium.poison:
                    status = -<int> self.state.medium.poison
                if status == DISK_OK and fits:
                    store_release64(&self.state.flushes, self.state.flushes + 1)
                    status = commit_all(&self.state, places, content, count)
                    if status == DISK_OK:
                        self.state.covered = self.state.flushes
                monitor_unlock(&self.state.flushing)
        finally:
            free(places)
            free(content)
        if status != DISK_OK:
            raise disk_error(status)
        if not fits:
            raise ValueError(f"more than {LOG_PAGES_MAX} pages together with what is dirty")

    def entry(self, uint64_t index):
        """The entry of the block allocation table with this number, of a block or a sector bitmap, as it is on disk."""
        self.check(0, 0)
        cdef uint64_t entry = 0
        cdef int status
        if index >= self.state.table.entries:
            raise ValueError(f"there is no entry {index}: the table has {self.state.table.entries}")
        with nogil:
            status = entry_of(&self.state, index, 0, &entry)
        if status != DISK_OK:
            raise disk_error(status)
        return entry

    def drop(self, uint64_t first_block, uint64_t count, int state):
        """Takes blocks out of the table: to state 0 (the parent's, or zeros) or 2 (zeros). Durable with the next flush,
        and only then is their space used again (rule 7).
        """
        self.writable()
        cdef int status
        if state != BLOCK_NOT_PRESENT and state != BLOCK_ZERO:
            raise ValueError(f"blocks are dropped to state 0 or 2, not {state}")
        if first_block > self.state.table.blocks or self.state.table.blocks - first_block < count:
            raise ValueError(f"{count} blocks from {first_block} on: the disk has {self.state.table.blocks}")
        self.begin_now(NULL)
        with nogil:
            status = give_up(&self.state, first_block, first_block + count, state)
        if status != DISK_OK:
            raise disk_error(status)

    def allocate(self, uint64_t length):
        """Offset of `length` bytes (whole MiB) of zeros at the end of the file that nothing refers to and nothing else
        will be given.
        """
        self.writable()
        cdef uint64_t start = 0
        cdef bint clean = False
        cdef int status
        if length == 0 or length % MIB or length > SPACE_LIMIT * MIB:
            raise ValueError(f"space is given in whole MiB, not {length} bytes")
        self.begin_silently()
        with nogil:
            monitor_lock(&self.state.meta)
            status = table_scan(&self.state.table)
            if status == DISK_OK:
                status = take_space(&self.state, self.state.clean_from, length // MIB, &start, &clean)
            monitor_unlock(&self.state.meta)
        if status != DISK_OK:
            raise disk_error(status)
        return start * MIB

    def relocate(self, uint64_t block):
        """Moves a block to the lowest free space below its place. False: there is none, or the block has no place."""
        self.writable()
        cdef bint moved = False
        cdef int status
        if block >= self.state.table.blocks:
            raise ValueError(f"there is no block {block}: the disk has {self.state.table.blocks}")
        self.begin_silently()
        with nogil:
            status = move_block(&self.state, block, &moved)
        if status != DISK_OK:
            raise disk_error(status)
        return bool(moved)

    def settle(self):
        """What close() does to the file (O10), while it stays open: it is a clean image then, may be read, and a later
        write begins anew. No other call may be running.
        """
        cdef int status
        self.writable()
        with nogil:
            status = finish(&self.state)
        if status != DISK_OK:
            raise disk_error(status)

    def fileno(self):
        """Of the open file, which stays the disk's."""
        return self.file.fileno()

    def close(self):
        """Ends the session (O10) and closes the file, which ends its locks, and the parent. Idempotent; no call may be
        running. DiskError: not all could be made durable; file and parent are closed all the same.
        """
        cdef int status = DISK_OK
        if self.ref.ops == NULL:
            return
        Backend.close(self)
        try:
            if not self.state.read_only:
                with nogil:
                    status = finish(&self.state)
        finally:
            self.file.close()
            if self.parent is not None:
                self.parent.close()
        if status != DISK_OK:
            raise disk_error(status)

    def __dealloc__(self):
        table_destroy(&self.state.table)
        space_destroy(&self.state.space)
        log_free(&self.state.log)
        if self.state.locks:
            monitor_destroy(&self.state.meta)
            monitor_destroy(&self.state.flushing)
