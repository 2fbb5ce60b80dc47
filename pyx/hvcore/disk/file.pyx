"""A disk whose bytes lie in one piece in a file or block device: raw images and fixed VHDs."""

import errno
import os

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from hvcore.disk.medium cimport ImageFile, medium_flush, medium_mapped, medium_punch, medium_read, medium_write
from hvcore.disk.ops cimport DISK_OK, DISK_RANGE, DISK_READ_ONLY, DISK_UNSUPPORTED, Backend, DiskOps, iovec_span
from hvcore.linux.syscalls cimport iovec


cdef int file_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef FileState *state = <FileState *> pointer
    cdef int64_t total = iovec_span(state.size, offset, iov, count)
    if total <= 0:
        return <int> total
    return medium_read(state.medium, state.base + offset, iov, count, total, flags)


cdef int file_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef FileState *state = <FileState *> pointer
    cdef int64_t total
    if state.read_only:
        return DISK_READ_ONLY
    total = iovec_span(state.size, offset, iov, count)
    if total <= 0:
        return <int> total
    return medium_write(state.medium, state.base + offset, iov, count, total, flags)


cdef int file_flush(void *pointer) noexcept nogil:
    cdef FileState *state = <FileState *> pointer
    if state.read_only:
        return DISK_READ_ONLY
    return medium_flush(state.medium)


cdef int file_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    cdef FileState *state = <FileState *> pointer
    if state.read_only:
        return DISK_READ_ONLY
    if not state.can_trim:
        return DISK_UNSUPPORTED
    if offset > state.size or state.size - offset < length:
        return DISK_RANGE
    if length == 0:
        return DISK_OK
    return medium_punch(state.medium, state.base + offset, length)


cdef int64_t file_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    cdef FileState *state = <FileState *> pointer
    if offset > state.size or state.size - offset < length:
        return DISK_RANGE
    return medium_mapped(state.medium, state.base + offset, length, mapped)


cdef DiskOps OPS
OPS.read = file_read
OPS.write = file_write
OPS.flush = file_flush
OPS.trim = file_trim
OPS.status = file_status


def pieces_of(ImageFile file, base, size):
    """See FileDisk.extents."""
    at = base
    end = base + size
    while at < end:
        try:
            data = min(os.lseek(file.fileno(), at, os.SEEK_DATA), end)
            hole = min(os.lseek(file.fileno(), data, os.SEEK_HOLE), end) if data < end else end
        except OSError as error:
            if error.errno == errno.ENXIO:         # no data from here to the end
                data = hole = end
            elif error.errno == errno.EINVAL:      # the file system (or a device) knows no holes
                data, hole = at, end
            else:
                raise
        if data > at:
            yield at - base, data - at, "zero", None
        if hole > data:
            yield data - base, hole - data, "data", data
        at = hole


@cython.final
cdef class FileDisk(Backend):
    """`size` bytes of an open file, from byte `base` of the file on.

    The disk closes the file. The caller has judged the file: nothing about it is checked
    here, and a file that turns out shorter than said fails reads.
    """

    def __cinit__(self, ImageFile file not None, uint64_t size, *, uint64_t base=0, uint32_t sector_size=512,
                  bint read_only=True, bint can_trim=False):
        if sector_size != 512 and sector_size != 4096:
            raise ValueError(f"the sector size is 512 or 4096, not {sector_size}")
        if size == 0 or size % sector_size:
            raise ValueError(f"the size is a positive multiple of the sector size {sector_size}, not {size}")
        if size > 1 << 62 or base > 1 << 62:
            raise ValueError(f"{size} bytes at {base} are beyond any file")
        self.state.base = base
        self.state.size = size
        self.state.read_only = read_only
        self.state.can_trim = can_trim and not read_only
        self.file = file
        self.state.medium = &file.medium
        self.ref.state = &self.state
        self.ref.size_bytes = size
        self.ref.sector_size = self.ref.physical_sector_size = sector_size
        self.ref.read_only = read_only
        self.ref.can_trim = self.state.can_trim
        self.ref.ops = &OPS

    def extents(self):
        """(offset, length, state, offset in the file or None) of the pieces of the disk: in order, without gaps. state:
        "data", or "zero" for a hole.
        """
        self.check(0, 0)
        return pieces_of(self.file, self.state.base, self.state.size)

    def resize(self, uint64_t size):
        """Makes file and disk larger while requests run; what is added reads as zeros. ImageError, DiskError."""
        if size < self.ref.size_bytes or size % self.ref.sector_size or self.state.base or size > 1 << 62:
            raise ValueError(f"a raw disk of {self.ref.size_bytes} bytes cannot get {size} while it is in use")
        self.file.resize(size)
        self.file.flush()
        # First the backend takes requests for the new bytes, then somebody can know that there are some.
        self.state.size = size
        self.ref.size_bytes = size

    def close(self):
        """Closes the file, which ends its locks. Idempotent; no call may be running. Does not flush."""
        Backend.close(self)
        self.file.close()
