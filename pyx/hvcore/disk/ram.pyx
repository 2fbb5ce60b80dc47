"""A disk in memory."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.disk.ops cimport (
    DISK_OK, DISK_RANGE, DISK_READ_ONLY, Backend, DiskOps, DiskRef, disk_check, iovec_bytes)
from hvcore.linux.syscalls cimport iovec

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_NORESERVE
    void *MAP_FAILED


cdef int ram_read(void *state, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef RamState *ram = <RamState *> state
    cdef int i
    if disk_check(ram.ref, offset, iovec_bytes(iov, count)) != DISK_OK:
        return DISK_RANGE
    for i in range(count):
        memcpy(iov[i].iov_base, ram.bytes + offset, iov[i].iov_len)
        offset += iov[i].iov_len
    return DISK_OK


cdef int ram_write(void *state, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef RamState *ram = <RamState *> state
    cdef int i
    if ram.ref.read_only:
        return DISK_READ_ONLY
    if disk_check(ram.ref, offset, iovec_bytes(iov, count)) != DISK_OK:
        return DISK_RANGE
    for i in range(count):
        memcpy(ram.bytes + offset, iov[i].iov_base, iov[i].iov_len)
        offset += iov[i].iov_len
    return DISK_OK


cdef int ram_flush(void *state) noexcept nogil:
    return DISK_READ_ONLY if (<RamState *> state).ref.read_only else DISK_OK


cdef int ram_trim(void *state, uint64_t offset, uint64_t length) noexcept nogil:
    cdef RamState *ram = <RamState *> state
    if ram.ref.read_only:
        return DISK_READ_ONLY
    if disk_check(ram.ref, offset, length) != DISK_OK:
        return DISK_RANGE
    memset(ram.bytes + offset, 0, length)
    return DISK_OK


cdef DiskOps OPS = DiskOps(ram_read, ram_write, ram_flush, ram_trim)


@cython.final
cdef class RamDisk(Backend):
    """`size` bytes of zeroed memory, gone with close(). Concurrent writes to the same bytes leave either or a mix."""

    def __cinit__(self, uint64_t size, uint32_t sector_size=512, bint read_only=False, physical_sector_size=None):
        if sector_size not in (512, 4096):
            raise ValueError(f"sector_size is 512 or 4096, not {sector_size}")
        if size == 0 or size % sector_size:
            raise ValueError(f"size is a positive multiple of {sector_size} bytes, not {size}")
        cdef void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if address == MAP_FAILED:
            raise MemoryError(f"no memory for a disk of {size} bytes")
        self.ram.bytes = <uint8_t *> address
        self.ram.ref = &self.ref
        self.ref.state = &self.ram
        self.ref.size_bytes = size
        self.ref.sector_size = sector_size
        self.ref.physical_sector_size = sector_size if physical_sector_size is None else physical_sector_size
        self.ref.read_only = read_only
        self.ref.can_trim = True
        self.ref.ops = &OPS

    cdef int release(self) except -1:
        if self.ram.bytes != NULL:
            munmap(self.ram.bytes, self.ref.size_bytes)
            self.ram.bytes = NULL
        return 0

    def close(self):
        """Gives the memory back. Idempotent; no call may be running."""
        Backend.close(self)
        self.release()

    def __dealloc__(self):
        self.release()
