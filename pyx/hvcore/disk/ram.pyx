"""A disk in memory: what the paths cost without a medium, and tests without files."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from hvcore.disk.ops cimport DISK_OK, DISK_RANGE, DISK_READ_ONLY, DISK_WRITE_ERROR, Backend, DiskOps, iovec_span
from hvcore.linux.syscalls cimport iovec


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_NORESERVE
        MADV_DONTNEED
    void *MAP_FAILED


cdef int ram_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef RamState *state = <RamState *> pointer
    cdef int64_t total = iovec_span(state.size, offset, iov, count)
    cdef int i
    if total <= 0:
        return <int> total
    for i in range(count):
        memcpy(iov[i].iov_base, state.base + offset, iov[i].iov_len)
        offset += iov[i].iov_len
    return DISK_OK


cdef int ram_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef RamState *state = <RamState *> pointer
    cdef int64_t total = iovec_span(state.size, offset, iov, count)
    cdef int i
    if state.read_only:
        return DISK_READ_ONLY
    if total <= 0:
        return <int> total
    for i in range(count):
        memcpy(state.base + offset, iov[i].iov_base, iov[i].iov_len)
        offset += iov[i].iov_len
    return DISK_OK


cdef int ram_flush(void *pointer) noexcept nogil:
    return DISK_OK


cdef int ram_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    cdef RamState *state = <RamState *> pointer
    cdef uint64_t end, first, last
    if state.read_only:
        return DISK_READ_ONLY
    if offset > state.size or state.size - offset < length:
        return DISK_RANGE
    end = offset + length
    first = (offset + 4095) & ~<uint64_t> 4095
    last = end & ~<uint64_t> 4095
    if first >= last:
        memset(state.base + offset, 0, length)
        return DISK_OK
    memset(state.base + offset, 0, first - offset)
    memset(state.base + last, 0, end - last)
    # Private anonymous pages that are given back read as zeros.
    return DISK_WRITE_ERROR if madvise(state.base + first, last - first, MADV_DONTNEED) else DISK_OK


cdef bint page_empty(const uint8_t *page, uint64_t length) noexcept nogil:
    """Whether a piece of a page is all zeros: the first byte is, and each equals the one before it."""
    return page[0] == 0 and memcmp(page, page + 1, length - 1) == 0


cdef int64_t ram_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    """A page of zeros counts as none: whether it takes memory only the kernel knows. At most 1 MiB is looked at."""
    cdef RamState *state = <RamState *> pointer
    cdef uint64_t done = 0, part
    cdef bint full
    if offset > state.size or state.size - offset < length:
        return DISK_RANGE
    if length > 1 << 20:
        length = 1 << 20
    while done < length:
        part = 4096 - (offset + done) % 4096
        if part > length - done:
            part = length - done
        full = not page_empty(state.base + offset + done, part)
        if done == 0:
            mapped[0] = full
        elif full != mapped[0]:
            break
        done += part
    return <int64_t> done


cdef DiskOps OPS
OPS.read = ram_read
OPS.write = ram_write
OPS.flush = ram_flush
OPS.trim = ram_trim
OPS.status = ram_status


@cython.final
cdef class RamDisk(Backend):
    """`size` bytes of memory, zero at first; pages are taken as written. physical_sector_size None: sector_size."""

    def __cinit__(self, uint64_t size, *, uint32_t sector_size=512, bint read_only=False, physical_sector_size=None):
        cdef void *base
        if sector_size != 512 and sector_size != 4096:
            raise ValueError(f"the sector size is 512 or 4096, not {sector_size}")
        if size == 0 or size % sector_size:
            raise ValueError(f"the size is a positive multiple of the sector size {sector_size}, not {size}")
        base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if base == MAP_FAILED:
            raise MemoryError(f"cannot map {size} bytes")
        self.state.base = <uint8_t *> base
        self.state.size = size
        self.ref.state = &self.state
        self.ref.size_bytes = size
        self.ref.sector_size = sector_size
        self.ref.physical_sector_size = sector_size if physical_sector_size is None else physical_sector_size
        self.ref.read_only = self.state.read_only = read_only
        self.ref.can_trim = not read_only
        self.ref.ops = &OPS

    def close(self):
        """Gives the memory back. Idempotent; no call may be running."""
        Backend.close(self)
        if self.state.base != NULL:
            munmap(self.state.base, self.state.size)
            self.state.base = NULL

    def __dealloc__(self):
        if self.state.base != NULL:
            munmap(self.state.base, self.state.size)
            self.state.base = NULL
