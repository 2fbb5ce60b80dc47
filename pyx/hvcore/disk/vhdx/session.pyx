"""Headers, log and flushes of a VHDX that is written: from its first change to its clean close (disk-formats.md 10)."""

from libc.stdint cimport uint64_t, uint8_t
from libc.string cimport memcpy

from hvcore.disk.medium cimport medium_resize
from hvcore.disk.ops cimport DISK_OK, DISK_WRITE_ERROR
from hvcore.disk.vhdx.log_writer cimport (LOG_PAGES_MAX, header_update, log_append, log_apply, log_close, log_fits,
                                          log_open, log_sync, random_guid)
from hvcore.disk.vhdx.space cimport space_drain, space_durable, space_freeze, space_settle, space_top
from hvcore.disk.vhdx.state cimport MIB, VhdxState
from hvcore.disk.vhdx.table cimport PAGE_BYTES, PAGE_ENTRIES, Frozen, frozen_free, table_freeze
from hvcore.linux.atomics cimport load_acquire64, store_release32, store_release64
from hvcore.linux.threads cimport monitor_lock, monitor_unlock

# Every update of the header takes a number; beyond this one they might run out within a session.
cdef uint64_t SEQUENCE_MOST = ~<uint64_t> 0 - (<uint64_t> 1 << 40)


cdef int begin(VhdxState *state, const uint8_t *data_write_guid) noexcept nogil:
    """O1 and O2 in one: both GUIDs by one pair of header updates, durable before anything else is written."""
    cdef int status = DISK_OK
    cdef uint8_t[16] file_guid
    cdef uint8_t[16] data_guid
    monitor_lock(&state.flushing)
    if state.medium.poison:
        status = DISK_WRITE_ERROR
    elif not state.begun or data_write_guid != NULL:
        if state.log.header_sequence > SEQUENCE_MOST or not random_guid(file_guid) or not random_guid(data_guid):
            status = DISK_WRITE_ERROR
        else:
            if not state.begun:
                memcpy(state.log.file_write_guid, file_guid, 16)
            memcpy(state.log.data_write_guid, data_write_guid if data_write_guid != NULL else data_guid, 16)
            status = header_update(&state.log)
            if status == DISK_OK:
                store_release32(&state.begun, 1)
    monitor_unlock(&state.flushing)
    return status


cdef uint64_t last_offset(const VhdxState *state) noexcept nogil:
    """The end of all structures, in bytes; `meta` is held. Anchors may lie beyond the file and need no room."""
    cdef uint64_t end = space_top(&state.space), size = (state.file_size + MIB - 1) // MIB
    return (end if end < size else size) * MIB


cdef void own_entries(VhdxState *state, uint64_t place, uint8_t *page) noexcept nogil:
    """Of a page of the table only what follows behind its entries is the caller's."""
    cdef uint64_t number, count
    if place < state.table.offset or place >= state.table.offset + state.table.page_count * PAGE_BYTES:
        return
    number = (place - state.table.offset) // PAGE_BYTES
    count = state.table.entries - number * PAGE_ENTRIES
    memcpy(page, state.table.pages[number], 8 * (count if count < PAGE_ENTRIES else PAGE_ENTRIES))


cdef int commit_all(VhdxState *state, const uint64_t *places, const uint8_t *pages, uint64_t count) noexcept nogil:
    """O5 or O6, with `flushing` held; the caller's pages come in the one entry, so together there are few enough."""
    cdef Frozen frozen
    cdef uint64_t done = 0, part, end, i
    cdef int status
    monitor_lock(&state.meta)
    if state.table.dirty_count + count == 0:
        monitor_unlock(&state.meta)
        # O5, and rule 18: no frozen page waits for its entry, as every flush takes `flushing`.
        return log_sync(&state.log)
    # Rule 16: what goes into the log is copied before the flush that makes the data durable begins.
    status = table_freeze(&state.table, &frozen, count)
    if status != DISK_OK:
        monitor_unlock(&state.meta)
        return status
    for i in range(count):
        frozen.places[frozen.count] = places[i]
        memcpy(frozen.pages + PAGE_BYTES * frozen.count, pages + PAGE_BYTES * i, PAGE_BYTES)
        own_entries(state, places[i], frozen.pages + PAGE_BYTES * frozen.count)
        frozen.count += 1
    space_freeze(&state.space)
    if state.transparent:
        state.transparent = 2
    end = last_offset(state)
    monitor_unlock(&state.meta)
    while done < frozen.count and status == DISK_OK:
        part = frozen.count - done
        if part > LOG_PAGES_MAX:
            part = LOG_PAGES_MAX
        # Rule 2: data, zeros and the file's size are durable before the entry that refers to them. Rule 5: so are the
        # pages of the entry before, which this one's tail leaves behind. Opening the log flushes as well, and nothing
        # was written since.
        if not state.log.is_open:
            status = log_open(&state.log, end)
        elif not log_fits(&state.log, part):       # O7
            status = log_close(&state.log)
            if status == DISK_OK:
                status = log_open(&state.log, end)
        else:
            status = log_sync(&state.log)
        # Rule 4: the entry is durable before its pages are written to their places.
        if status == DISK_OK:
            status = log_append(&state.log, frozen.places + done, frozen.pages + PAGE_BYTES * done, part, end)
        if status == DISK_OK:
            status = log_apply(&state.log, frozen.places + done, frozen.pages + PAGE_BYTES * done, part)
        done += part
    frozen_free(&frozen)
    if status == DISK_OK:
        monitor_lock(&state.meta)
        # Rule 7: nothing on disk refers to this space any more.
        space_durable(&state.space)
        space_drain(&state.space)
        if state.transparent == 2:
            state.transparent = 0
        monitor_unlock(&state.meta)
    return status


cdef int flush_all(VhdxState *state) noexcept nogil:
    # Acquire: the number is read after the caller's writes completed. A flush with a greater one began after that.
    cdef uint64_t seen = load_acquire64(&state.flushes), number
    cdef int status = DISK_OK
    monitor_lock(&state.flushing)
    if state.medium.poison:
        status = -<int> state.medium.poison
    elif state.covered <= seen:                    # else a flush that began later covers us, and is done
        number = state.flushes + 1
        store_release64(&state.flushes, number)
        status = commit_all(state, NULL, NULL, 0)
        if status == DISK_OK:
            state.covered = number
    monitor_unlock(&state.flushing)
    return status


cdef int finish(VhdxState *state) noexcept nogil:
    """O10; no request is running."""
    cdef uint64_t end
    cdef int status
    if not state.begun:
        return DISK_OK
    monitor_lock(&state.flushing)
    if state.medium.poison:                        # rule 12: the log stays, for the next one to replay
        status = -<int> state.medium.poison
    else:
        status = commit_all(state, NULL, NULL, 0)
    if status == DISK_OK and state.log.is_open:
        status = log_close(&state.log)
    if status == DISK_OK and state.table.scanned and state.regular:
        monitor_lock(&state.meta)
        space_settle(&state.space)
        end = space_top(&state.space) * MIB
        monitor_unlock(&state.meta)
        if end < state.file_size:                  # rule 11: only now that no log names a size
            status = medium_resize(state.medium, end)
            if status == DISK_OK:
                store_release64(&state.file_size, end)
                status = log_sync(&state.log)
    monitor_unlock(&state.flushing)
    return status
