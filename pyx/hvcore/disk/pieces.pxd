# What block formats do with a part of a request, or with a range of the file: each in calls of at most SPAN_PIECES
# buffers. All return a DiskStatus.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from hvcore.disk.medium cimport Medium
from hvcore.disk.ops cimport DiskRef
from hvcore.disk.span cimport Span
from hvcore.linux.syscalls cimport iovec

# The next `length` bytes of the span, from and to `place` in the file.
cdef int span_read(Medium *medium, uint64_t place, Span *span, uint64_t length, uint32_t flags) noexcept nogil
cdef int span_write(Medium *medium, uint64_t place, Span *span, uint64_t length, uint32_t flags) noexcept nogil
# The same from the disk below, beyond whose end there are zeros. parent NULL: DISK_READ_ERROR.
cdef int parent_read(const DiskRef *parent, uint64_t offset, Span *span, uint64_t length, uint32_t flags) noexcept nogil
# What takes space of the disk below (DiskOps.status); beyond its end nothing does. parent NULL: DISK_READ_ERROR.
cdef int64_t parent_status(const DiskRef *parent, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil
# The range of the file reads as zeros: by a hole where the file system can, else by writing.
cdef int zero_range(Medium *medium, uint64_t place, uint64_t length) noexcept nogil
# Fills SPAN_PIECES buffers at most with places of zeros, together at most `most` bytes. Returns their bytes.
cdef uint64_t zero_pieces(iovec *pieces, int *count, uint64_t most) noexcept nogil
# Whether the bytes are all zeros; at most ZEROS_BYTES.
cdef bint all_zeros(const void *data, uint64_t length) noexcept nogil

cdef enum:
    ZEROS_BYTES = 65536
