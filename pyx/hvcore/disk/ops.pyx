"""Disk backends as Python sees them: the data path uses the table of functions in the .pxd."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t

import errno

from hvcore.errors import DiskError

cdef dict MESSAGES = {
    DISK_RANGE: ("the range is not within the disk", errno.EINVAL),
    DISK_READ_ONLY: ("the disk is read-only", errno.EROFS),
    DISK_READ_ERROR: ("the medium could not be read", errno.EIO),
    DISK_WRITE_ERROR: ("the medium could not be written", errno.EIO),
    DISK_NO_SPACE: ("no space left for the image", errno.ENOSPC),
    DISK_UNSUPPORTED: ("the disk does not support the operation", errno.EOPNOTSUPP),
    DISK_CLOSED: ("the disk is closed", errno.EBADF),
    DISK_CORRUPT: ("the image's metadata is damaged", errno.EIO),
}


cdef object disk_error(int status):
    """The exception for a DiskStatus."""
    message, code = MESSAGES.get(status, (f"disk status {status}", errno.EIO))
    error = DiskError(message)
    error.errno = code
    return error


cdef class Backend:
    """One disk: byte ranges in whole sectors. All calls may run concurrently, except close().

    read, readinto, write, flush and trim block in the calling thread without the GIL. ValueError: offset or length is
    not a multiple of sector_size; DiskError: anything the medium refuses.
    """

    @property
    def size(self):
        """Bytes."""
        return self.ref.size_bytes

    @property
    def sector_size(self):
        return self.ref.sector_size

    @property
    def physical_sector_size(self):
        return self.ref.physical_sector_size

    @property
    def can_trim(self):
        """Whether trim() may give space back."""
        return bool(self.ref.can_trim)

    @property
    def read_only(self):
        return bool(self.ref.read_only)

    cdef int check(self, uint64_t offset, uint64_t length) except -1:
        if self.ref.ops == NULL:
            raise ValueError("the disk is closed")
        if offset % self.ref.sector_size or length % self.ref.sector_size:
            raise ValueError(
                f"offset {offset} and length {length} must be multiples of the sector size {self.ref.sector_size}")
        if disk_check(&self.ref, offset, length) != DISK_OK:
            raise ValueError(f"offset {offset} + length {length} is beyond the disk's {self.ref.size_bytes} bytes")
        return 0

    def read(self, uint64_t offset, uint64_t length):
        """`length` bytes at `offset`."""
        self.check(offset, length)
        result = PyBytes_FromStringAndSize(NULL, length)
        cdef iovec vector
        vector.iov_base = PyBytes_AS_STRING(result)
        vector.iov_len = length
        cdef int status
        with nogil:
            status = self.ref.ops.read(self.ref.state, offset, &vector, 1, 0)
        if status != DISK_OK:
            raise disk_error(status)
        return result

    def readinto(self, uint64_t offset, buffer):
        """Fills a writable buffer from `offset`."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        cdef iovec vector
        cdef int status
        try:
            self.check(offset, view.len)
            vector.iov_base = view.buf
            vector.iov_len = view.len
            with nogil:
                status = self.ref.ops.read(self.ref.state, offset, &vector, 1, 0)
        finally:
            PyBuffer_Release(&view)
        if status != DISK_OK:
            raise disk_error(status)

    def write(self, uint64_t offset, data):
        """Writes a buffer at `offset`; durable after the next flush()."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        cdef iovec vector
        cdef int status
        try:
            self.check(offset, view.len)
            vector.iov_base = view.buf
            vector.iov_len = view.len
            with nogil:
                status = self.ref.ops.write(self.ref.state, offset, &vector, 1, 0)
        finally:
            PyBuffer_Release(&view)
        if status != DISK_OK:
            raise disk_error(status)

    def flush(self):
        """Every completed write is durable when this returns."""
        self.check(0, 0)
        cdef int status
        with nogil:
            status = self.ref.ops.flush(self.ref.state)
        if status != DISK_OK:
            raise disk_error(status)

    def trim(self, uint64_t offset, uint64_t length):
        """The range reads as zeros afterwards; its space is given back where possible."""
        self.check(offset, length)
        cdef int status
        with nogil:
            status = self.ref.ops.trim(self.ref.state, offset, length)
        if status != DISK_OK:
            raise disk_error(status)

    def status(self, uint64_t offset, uint64_t length):
        """(bytes, mapped) of what lies at `offset`: as many of the length bytes as are alike, and whether they take
        space; what does not reads as zeros."""
        self.check(offset, length)
        cdef bint mapped = False
        cdef int64_t found = 0
        if length:
            with nogil:
                found = disk_status(&self.ref, offset, length, &mapped)
        if found < 0:
            raise disk_error(<int> found)
        return found, bool(mapped)

    def close(self):
        """Releases the medium. Idempotent; no call may be running. Later calls raise ValueError."""
        self.ref.ops = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
