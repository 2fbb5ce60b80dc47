"""Writing the headers and the log of a VHDX (disk-formats.md 3, 9, 10); see the .pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from hvcore.disk.crc cimport crc32c_update
from hvcore.disk.medium cimport medium_flush, medium_poison, medium_write_bytes
from hvcore.disk.ops cimport DISK_OK, DISK_WRITE_ERROR
from hvcore.linux.atomics cimport load_acquire64


cdef extern from *:
    """
    #include <errno.h>
    #include <sys/random.h>
    #include <string.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "structures of VHDX are written as they lie in memory: little-endian"
    #endif
    #pragma pack(push, 1)
    typedef struct {
        char signature[4]; uint32_t checksum; uint64_t sequence;
        uint8_t file_write_guid[16], data_write_guid[16], log_guid[16];
        uint16_t log_version, version; uint32_t log_length; uint64_t log_offset;
        uint8_t reserved[4016];
    } hv_vhdx_header;
    typedef struct {
        char signature[4]; uint32_t checksum, entry_length, tail; uint64_t sequence; uint32_t count, reserved;
        uint8_t log_guid[16]; uint64_t flushed_file_offset, last_file_offset;
    } hv_vhdx_entry;
    typedef struct {
        char signature[4]; uint8_t trailing[4], leading[8]; uint64_t file_offset, sequence;
    } hv_vhdx_descriptor;
    typedef struct { char signature[4]; uint32_t high; uint8_t bytes[4084]; uint32_t low; } hv_vhdx_sector;
    #pragma pack(pop)
    _Static_assert(sizeof(hv_vhdx_header) == 4096, "VHDX header");
    _Static_assert(sizeof(hv_vhdx_entry) == 64, "log entry header");
    _Static_assert(sizeof(hv_vhdx_descriptor) == 32, "log descriptor");
    _Static_assert(sizeof(hv_vhdx_sector) == 4096, "log data sector");
    static inline int hv_random(uint8_t *bytes, size_t length) {
        ssize_t got = getrandom(bytes, length, 0);
        while (got < 0 && errno == EINTR) got = getrandom(bytes, length, 0);
        return got == (ssize_t) length ? 0 : -1;
    }
    """
    ctypedef struct Header "hv_vhdx_header":
        char[4] signature
        uint32_t checksum
        uint64_t sequence
        uint8_t[16] file_write_guid
        uint8_t[16] data_write_guid
        uint8_t[16] log_guid
        int version
        uint32_t log_length
        uint64_t log_offset
    ctypedef struct Entry "hv_vhdx_entry":
        char[4] signature
        uint32_t checksum, entry_length, tail
        uint64_t sequence
        uint32_t count
        uint8_t[16] log_guid
        uint64_t flushed_file_offset, last_file_offset
    ctypedef struct Descriptor "hv_vhdx_descriptor":
        char[4] signature
        uint8_t[4] trailing
        uint8_t[8] leading
        uint64_t file_offset, sequence
    ctypedef struct Sector "hv_vhdx_sector":
        char[4] signature
        uint32_t high
        uint8_t[4084] bytes
        uint32_t low
    int random_bytes "hv_random"(uint8_t *bytes, size_t length) noexcept nogil

cdef enum:
    FIRST_HEADER = 64 << 10      # the other one follows after as much again
    DESCRIPTORS_FIRST = 126      # in the sector of the entry header; 128 in each further one


cdef bint random_guid(uint8_t *guid) noexcept nogil:
    if random_bytes(guid, 16):
        return False
    guid[7] = (guid[7] & 0x0F) | 0x40              # version 4, variant 1: fields are little-endian on disk
    guid[8] = (guid[8] & 0x3F) | 0x80
    return True


cdef int failed(LogWriter *log, int status) noexcept nogil:
    """What comes later relies on what failed: nothing more is written (rule 12)."""
    if log.medium.poison == 0:
        medium_poison(log.medium, status)
    return status


cdef int log_sync(LogWriter *log) noexcept nogil:
    # Read before the flush begins: what the flush makes durable is at least this long.
    cdef uint64_t size = load_acquire64(log.file_size)
    cdef int status = medium_flush(log.medium)
    if status == DISK_OK:
        log.durable_size = size
    return status


cdef int header_write(LogWriter *log) noexcept nogil:
    """HU: over the copy that is not current, then a flush; never both copies under one flush."""
    cdef Header header
    cdef int status
    if log.header_sequence == <uint64_t> -1:
        return failed(log, DISK_WRITE_ERROR)
    memset(&header, 0, sizeof(header))
    memcpy(header.signature, b"head", 4)
    header.sequence = log.header_sequence + 1
    memcpy(header.file_write_guid, log.file_write_guid, 16)
    memcpy(header.data_write_guid, log.data_write_guid, 16)
    memcpy(header.log_guid, log.log_guid, 16)
    header.version = 1
    header.log_length = log.log_length
    header.log_offset = log.log_offset
    header.checksum = crc32c_update(0, <const uint8_t *> &header, sizeof(header))
    status = medium_write_bytes(log.medium, FIRST_HEADER << (1 - log.copy), &header, sizeof(header))
    if status == DISK_OK:
        status = log_sync(log)
    if status != DISK_OK:
        return failed(log, status)
    log.header_sequence += 1
    log.copy = 1 - log.copy
    return DISK_OK


cdef int header_update(LogWriter *log) noexcept nogil:
    cdef int status = header_write(log)
    # Once more: were the newer copy lost, the older one must not name an older log (3).
    return header_write(log) if status == DISK_OK else status


cdef uint64_t entry_length(uint64_t count) noexcept nogil:
    cdef uint64_t sectors = 1
    if count > DESCRIPTORS_FIRST:
        sectors += (count - DESCRIPTORS_FIRST + 127) // 128
    return LOG_PAGE * (sectors + count)


cdef int entry_write(LogWriter *log, const uint64_t *places, const uint8_t *pages, uint64_t count,
                     uint64_t end) noexcept nogil:
    """L and the flush behind it: an entry at the position of the log."""
    cdef uint64_t length = entry_length(count), number = log.sequence + 1, i
    cdef Entry *entry
    cdef Descriptor *descriptor
    cdef Sector *sector
    cdef const uint8_t *page
    cdef int status
    if log.buffer == NULL:
        log.buffer = <uint8_t *> malloc(entry_length(LOG_PAGES_MAX))
        if log.buffer == NULL:
            return failed(log, DISK_WRITE_ERROR)
    memset(log.buffer, 0, length - LOG_PAGE * count)
    entry = <Entry *> log.buffer
    memcpy(entry.signature, b"loge", 4)
    entry.entry_length = <uint32_t> length
    entry.tail = log.position
    entry.sequence = number
    entry.count = <uint32_t> count
    memcpy(entry.log_guid, log.log_guid, 16)
    entry.flushed_file_offset = log.durable_size >> 20 << 20
    entry.last_file_offset = end
    for i in range(count):
        page = pages + LOG_PAGE * i
        descriptor = <Descriptor *> (log.buffer + 64 + 32 * i)
        memcpy(descriptor.signature, b"desc", 4)
        memcpy(descriptor.trailing, page + LOG_PAGE - 4, 4)
        memcpy(descriptor.leading, page, 8)
        descriptor.file_offset = places[i]
        descriptor.sequence = number
        sector = <Sector *> (log.buffer + length - LOG_PAGE * (count - i))
        memcpy(sector.signature, b"data", 4)
        sector.high = <uint32_t> (number >> 32)
        memcpy(sector.bytes, page + 8, 4084)
        sector.low = <uint32_t> number
    entry.checksum = crc32c_update(0, log.buffer, length)
    status = medium_write_bytes(log.medium, log.log_offset + log.position, log.buffer, length)
    if status == DISK_OK:
        status = log_sync(log)
    if status != DISK_OK:
        return failed(log, status)
    log.sequence = number
    log.position += <uint32_t> length
    return DISK_OK


cdef int log_open(LogWriter *log, uint64_t end) noexcept nogil:
    cdef int status
    # A GUID that no entry in the ring has: nothing of an earlier log can be taken for one of this (9.2).
    if not random_guid(log.log_guid):
        return failed(log, DISK_WRITE_ERROR)
    log.position = 0
    # Rule 1: a header may name the log only once a valid entry is durable in it.
    status = entry_write(log, NULL, NULL, 0, end)
    if status == DISK_OK:
        status = header_update(log)
    log.is_open = status == DISK_OK
    return status


cdef int log_close(LogWriter *log) noexcept nogil:
    # Rule 10: the applied pages are durable before the header stops naming the log.
    cdef int status = log_sync(log)
    if status != DISK_OK:
        return status
    memset(log.log_guid, 0, 16)
    log.is_open = False
    return header_update(log)


cdef bint log_fits(const LogWriter *log, uint64_t count) noexcept nogil:
    # Rule 20: a sector stays free behind it.
    return log.position + entry_length(count) + LOG_PAGE <= log.log_length


cdef int log_append(LogWriter *log, const uint64_t *places, const uint8_t *pages, uint64_t count,
                    uint64_t end) noexcept nogil:
    return entry_write(log, places, pages, count, end)


cdef int log_apply(LogWriter *log, const uint64_t *places, const uint8_t *pages, uint64_t count) noexcept nogil:
    cdef uint64_t i
    cdef int status
    # Rule 17: the logged copies, never the live pages. Rule 19 holds since entries are applied one after the other.
    for i in range(count):
        status = medium_write_bytes(log.medium, places[i], pages + LOG_PAGE * i, LOG_PAGE)
        if status != DISK_OK:
            return failed(log, status)
    return DISK_OK


cdef void log_free(LogWriter *log) noexcept nogil:
    free(log.buffer)
    log.buffer = NULL
