"""Shared memory: one memfd and its mapping."""

import fcntl
import os

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint8_t


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
    void *MAP_FAILED

# F_SEAL_SHRINK | F_SEAL_GROW: nobody can pull a mapped page away. F_SEAL_SEAL: nobody can add a seal later that would
# make our own mapping or writes fail.
cdef int SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@cython.final
cdef class Region:
    """One sealed memfd mapped read-write; also a writable buffer of its bytes.

    Region.create(size) makes one, Region.attach(fd) maps one that another process made (the descriptor stays
    the caller's; `fd` is then -1). The mapping lives until close() or the last reference goes. Concurrent use of the
    bytes is the
    users' affair; close() must not run beside them.
    """

    def __cinit__(self):
        self.base = NULL
        self.fd = -1

    @staticmethod
    def create(size_t size, str name="hvcore"):
        """A new zeroed region of `size` bytes (a positive multiple of 4096), sealed before anyone else sees it."""
        if size == 0 or size % 4096:
            raise ValueError(f"a region's size is a positive multiple of 4096 bytes, not {size}")
        cdef Region self = Region.__new__(Region)
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        self.map(self.fd, size)
        return self

    @staticmethod
    def attach(int fd):
        """Maps the memfd behind `fd`. ValueError unless it is sealed against shrinking: else a peer could make our
        accesses fault."""
        cdef Region self = Region.__new__(Region)
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise ValueError("the descriptor is not a memfd") from None
        if not seals & fcntl.F_SEAL_SHRINK:
            raise ValueError("the shared memory is not sealed against shrinking")
        size = os.fstat(fd).st_size
        if size == 0 or size % 4096:
            raise ValueError(f"the shared memory has {size} bytes, not a positive multiple of 4096")
        self.map(fd, size)
        return self

    cdef int map(self, int fd, size_t size) except -1:
        cdef void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            raise MemoryError(f"cannot map {size} bytes of shared memory")
        self.base = <uint8_t *> address
        self.size = size
        return 0

    @property
    def closed(self):
        return self.base == NULL

    def close(self):
        """Unmaps and closes. BufferError while a memoryview of the region is alive. Idempotent."""
        if self.exports:
            raise BufferError(f"{self.exports} buffers of the region are still in use")
        self.release()

    cdef int release(self) except -1:
        if self.base != NULL:
            munmap(self.base, self.size)
            self.base = NULL
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        return 0

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.base == NULL:
            raise BufferError("the region is closed")
        PyBuffer_FillInfo(view, self, self.base, self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    def __dealloc__(self):
        self.release()


@cython.final
cdef class RegionSlice:
    """A writable buffer over part of a region. `released()` is called when its last reference and view are gone."""
    cdef readonly Region region
    cdef readonly size_t offset
    cdef readonly size_t size
    cdef object released

    def __cinit__(self, Region region not None, size_t offset, size_t size, released):
        if region.base == NULL or offset > region.size or region.size - offset < size:
            raise ValueError("the slice is not within the region")
        self.region = region
        self.offset = offset
        self.size = size
        self.released = released

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.region.base == NULL:
            raise BufferError("the region is closed")
        PyBuffer_FillInfo(view, self, self.region.base + self.offset, self.size, 0, flags)
        self.region.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.region.exports -= 1

    def __del__(self):
        # A finalizer, not __dealloc__: in a cycle what `released` uses may be cleared before the slice is.
        if self.released is not None:
            self.released()
