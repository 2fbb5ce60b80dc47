"""Parts of requests between buffers, image files and parents; for compiled callers only."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from hvcore.disk.medium cimport Medium, medium_punch, medium_read, medium_write
from hvcore.disk.ops cimport DISK_OK, DISK_READ_ERROR, DISK_UNSUPPORTED, DiskRef, disk_read, disk_status
from hvcore.disk.span cimport SPAN_PIECES, Span, span_take, span_zero
from hvcore.linux.syscalls cimport iovec


cdef extern from *:
    """
    static const uint8_t HV_ZEROS[65536];
    """
    const uint8_t *ZEROS "HV_ZEROS"


cdef int span_read(Medium *medium, uint64_t place, Span *span, uint64_t length, uint32_t flags) noexcept nogil:
    cdef iovec[SPAN_PIECES] pieces
    cdef uint64_t part
    cdef int n = 0, status
    while length:
        part = span_take(span, pieces, &n, length)
        status = medium_read(medium, place, pieces, n, part, flags)
        if status != DISK_OK:
            return status
        place += part
        length -= part
    return DISK_OK


cdef int span_write(Medium *medium, uint64_t place, Span *span, uint64_t length, uint32_t flags) noexcept nogil:
    cdef iovec[SPAN_PIECES] pieces
    cdef uint64_t part
    cdef int n = 0, status
    while length:
        part = span_take(span, pieces, &n, length)
        status = medium_write(medium, place, pieces, n, part, flags)
        if status != DISK_OK:
            return status
        place += part
        length -= part
    return DISK_OK


cdef int parent_read(const DiskRef *parent, uint64_t offset, Span *span, uint64_t length,
                     uint32_t flags) noexcept nogil:
    cdef iovec[SPAN_PIECES] pieces
    cdef uint64_t part, inside = 0
    cdef int n = 0, status
    if parent == NULL or parent.ops == NULL:
        return DISK_READ_ERROR
    if offset < parent.size_bytes:
        inside = parent.size_bytes - offset
    if inside > length:
        inside = length
    length -= inside
    while inside:
        part = span_take(span, pieces, &n, inside)
        status = disk_read(parent, offset, pieces, n, flags)
        if status != DISK_OK:
            return status
        offset += part
        inside -= part
    span_zero(span, length)
    return DISK_OK


cdef int64_t parent_status(const DiskRef *parent, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    if parent == NULL or parent.ops == NULL:
        return DISK_READ_ERROR
    if offset >= parent.size_bytes:
        mapped[0] = False
        return <int64_t> length
    if length > parent.size_bytes - offset:
        length = parent.size_bytes - offset
    return disk_status(parent, offset, length, mapped)


cdef uint64_t zero_pieces(iovec *pieces, int *count, uint64_t most) noexcept nogil:
    cdef uint64_t bytes_ = 0
    cdef int n = 0
    while n < SPAN_PIECES and bytes_ < most:
        pieces[n].iov_base = <void *> ZEROS
        pieces[n].iov_len = ZEROS_BYTES if most - bytes_ > ZEROS_BYTES else most - bytes_
        bytes_ += pieces[n].iov_len
        n += 1
    count[0] = n
    return bytes_


cdef int zero_range(Medium *medium, uint64_t place, uint64_t length) noexcept nogil:
    cdef iovec[SPAN_PIECES] pieces
    cdef uint64_t part
    cdef int n = 0, status
    if length == 0:
        return DISK_OK
    status = medium_punch(medium, place, length)
    if status != DISK_UNSUPPORTED:
        return status
    while length:
        part = zero_pieces(pieces, &n, length)
        status = medium_write(medium, place, pieces, n, part, 0)
        if status != DISK_OK:
            return status
        place += part
        length -= part
    return DISK_OK


cdef bint all_zeros(const void *data, uint64_t length) noexcept nogil:
    return memcmp(data, ZEROS, length) == 0
