"""Comparing with and repeating over a disk, for the SCSI target."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from hvcore.disk.ops cimport DISK_OK, DISK_RANGE, DISK_UNSUPPORTED, DiskRef, disk_read, disk_write
from hvcore.linux.syscalls cimport iovec

cdef enum:
    CHUNK = 4096                 # a multiple of every sector size
    REPEATS = 64                 # chunks of one write


cdef int iovec_gather(const iovec *iov, int count, uint64_t skip, uint8_t *out, uint64_t length) noexcept nogil:
    """Copies `length` bytes from `skip` on. The bytes may change meanwhile (they are a guest's): each is read once."""
    cdef int i
    cdef uint64_t part
    for i in range(count):
        if skip >= iov[i].iov_len:
            skip -= iov[i].iov_len
            continue
        part = iov[i].iov_len - skip
        if part > length:
            part = length
        memcpy(out, <const uint8_t *> iov[i].iov_base + skip, part)
        out += part
        length -= part
        skip = 0
        if length == 0:
            return DISK_OK
    return DISK_OK if length == 0 else DISK_RANGE


cdef int fill_chunk(const DiskRef *disk, const iovec *iov, int count, uint8_t *chunk) noexcept nogil:
    """The first block of iov, repeated over one chunk."""
    cdef uint32_t filled = disk.sector_size
    if iovec_gather(iov, count, 0, chunk, disk.sector_size) != DISK_OK:
        return DISK_RANGE
    while filled < CHUNK:
        memcpy(chunk + filled, chunk, disk.sector_size)
        filled += disk.sector_size
    return DISK_OK


cdef int media_compare(const DiskRef *disk, uint64_t offset, uint32_t length, const iovec *iov, int count,
                       uint32_t buffer_length, uint32_t *mismatch) noexcept nogil:
    cdef uint8_t expected[CHUNK]
    cdef uint8_t found[CHUNK]
    cdef iovec vector
    cdef uint32_t done = 0, part
    cdef int status = DISK_OK
    if buffer_length < length:
        status = fill_chunk(disk, iov, count, expected)
    while status == DISK_OK and done < length:
        part = length - done if length - done < CHUNK else CHUNK
        if buffer_length == length:
            status = iovec_gather(iov, count, done, expected, part)
            if status != DISK_OK:
                break
        vector.iov_base = found
        vector.iov_len = part
        status = disk_read(disk, offset + done, &vector, 1, 0)
        if status == DISK_OK and memcmp(found, expected, part) != 0:
            status = MEDIA_MISCOMPARE
            mismatch[0] = done
            while found[mismatch[0] - done] == expected[mismatch[0] - done]:
                mismatch[0] += 1
        done += part
    return status


cdef int media_write_same(const DiskRef *disk, uint64_t offset, uint32_t length, const iovec *iov, int count,
                          uint32_t buffer_length, bint trim) noexcept nogil:
    cdef uint8_t chunk[CHUNK]
    cdef iovec vectors[REPEATS]
    cdef uint32_t done = 0, part
    cdef int n, status = DISK_OK
    if buffer_length == 0:
        memset(chunk, 0, CHUNK)
    else:
        status = fill_chunk(disk, iov, count, chunk)
    # A block that is not zeros is written, UNMAP or not; so are zeros that the disk cannot have by discarding.
    if status == DISK_OK and trim and chunk[0] == 0 and memcmp(chunk, chunk + 1, CHUNK - 1) == 0:
        status = disk.ops.trim(disk.state, offset, length)
        if status == DISK_OK:
            return DISK_OK
        if status == DISK_UNSUPPORTED:
            status = DISK_OK
    while status == DISK_OK and done < length:
        n = 0
        part = 0
        while n < REPEATS and part < length - done:
            vectors[n].iov_base = chunk
            vectors[n].iov_len = length - done - part if length - done - part < CHUNK else CHUNK
            part += <uint32_t> vectors[n].iov_len
            n += 1
        status = disk_write(disk, offset + done, vectors, n, 0)
        done += part
    return status


cdef int media_write_rest(const DiskRef *disk, uint64_t offset, uint32_t length, const iovec *iov, int count,
                          uint32_t skip) noexcept nogil:
    cdef iovec vectors[REPEATS]
    cdef uint64_t part, left
    cdef uint32_t done = 0, given
    cdef int i = 0, n, status = DISK_OK
    while i < count and skip >= iov[i].iov_len:
        skip -= <uint32_t> iov[i].iov_len
        i += 1
    while status == DISK_OK and done < length:
        n = 0
        given = 0
        while n < REPEATS and i < count and given < length - done:
            part = iov[i].iov_len - skip
            left = length - done - given
            vectors[n].iov_base = <uint8_t *> iov[i].iov_base + skip
            vectors[n].iov_len = part if part < left else left
            given += <uint32_t> vectors[n].iov_len
            skip = 0
            n += 1
            i += 1
        if given % disk.sector_size or given == 0:           # pieces of blocks, or too few bytes: no guest's pages
            return DISK_RANGE
        status = disk_write(disk, offset + done, vectors, n, 0)
        done += given
    return status
