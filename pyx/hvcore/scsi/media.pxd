# Media access that is more than one call of the disk: comparing, and repeating one block. Blocking.

from libc.stdint cimport uint32_t, uint64_t

from hvcore.disk.ops cimport DiskRef
from hvcore.linux.syscalls cimport iovec

cdef enum:
    MEDIA_MISCOMPARE = 1         # beside the DiskStatus values, which are <= 0
    MEDIA_ABORTED = 2            # by PREEMPT AND ABORT, before it began

# Compares the medium with the first buffer_length bytes of iov, repeated over `length`. buffer_length is `length` or
# one block. DISK_OK, MEDIA_MISCOMPARE (mismatch: the first byte that differs), or what the read failed with.
cdef int media_compare(const DiskRef *disk, uint64_t offset, uint32_t length, const iovec *iov, int count,
                       uint32_t buffer_length, uint32_t *mismatch) noexcept nogil
# Writes the block that iov begins with, or zeros when buffer_length is 0, over the whole range. trim: zeros may be
# discarded blocks.
cdef int media_write_same(const DiskRef *disk, uint64_t offset, uint32_t length, const iovec *iov, int count,
                          uint32_t buffer_length, bint trim) noexcept nogil
# Writes `length` bytes of iov, from byte `skip` on.
cdef int media_write_rest(const DiskRef *disk, uint64_t offset, uint32_t length, const iovec *iov, int count,
                          uint32_t skip) noexcept nogil
