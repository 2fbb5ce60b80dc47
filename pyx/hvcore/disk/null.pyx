"""A disk without a medium: reads give zeros, writes vanish. The floor under every measurement."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.disk.ops cimport DISK_OK, DISK_RANGE, Backend, DiskOps, iovec_span
from hvcore.linux.syscalls cimport iovec


cdef int null_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef int64_t total = iovec_span((<uint64_t *> pointer)[0], offset, iov, count)
    cdef int i
    if total <= 0:
        return <int> total
    for i in range(count):
        memset(iov[i].iov_base, 0, iov[i].iov_len)
    return DISK_OK


cdef int null_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef int64_t total = iovec_span((<uint64_t *> pointer)[0], offset, iov, count)
    return <int> total if total < 0 else DISK_OK


cdef int null_flush(void *pointer) noexcept nogil:
    return DISK_OK


cdef int null_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t size = (<uint64_t *> pointer)[0]
    if offset > size or size - offset < length:
        return DISK_RANGE
    return DISK_OK


cdef int64_t null_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    mapped[0] = False
    return <int64_t> length


cdef DiskOps OPS
OPS.read = null_read
OPS.write = null_write
OPS.flush = null_flush
OPS.trim = null_trim
OPS.status = null_status


@cython.final
cdef class NullDisk(Backend):
    """`size` bytes of nothing."""

    def __cinit__(self, uint64_t size, *, uint32_t sector_size=512):
        if sector_size != 512 and sector_size != 4096:
            raise ValueError(f"the sector size is 512 or 4096, not {sector_size}")
        if size == 0 or size > 1 << 62 or size % sector_size:
            raise ValueError(f"the size is a positive multiple of the sector size {sector_size}, not {size}")
        self.bytes = size
        self.ref.state = &self.bytes
        self.ref.size_bytes = size
        self.ref.sector_size = self.ref.physical_sector_size = sector_size
        self.ref.can_trim = True
        self.ref.ops = &OPS
