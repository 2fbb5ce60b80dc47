"""A disk's table of functions as it is, from Python: several buffers, any offset, DISK_NOWAIT, plain statuses.

Nothing is checked before the backend's own checks: this is how tests stand where a guest's request stands.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint32_t, uint64_t

from hvcore.disk.ops cimport DISK_CLOSED, DISK_NOWAIT, Backend
from hvcore.linux.syscalls cimport iovec


cdef int transfer(Backend disk, uint64_t offset, list buffers, bint write, bint nowait) except 1:
    cdef Py_ssize_t count = len(buffers), held = 0, i
    cdef uint32_t flags = DISK_NOWAIT if nowait else 0
    cdef int status
    cdef Py_buffer *views = <Py_buffer *> PyMem_Calloc(count + 1, sizeof(Py_buffer))
    cdef iovec *iov = <iovec *> PyMem_Calloc(count + 1, sizeof(iovec))
    try:
        if views == NULL or iov == NULL:
            raise MemoryError()
        if disk.ref.ops == NULL:
            return DISK_CLOSED
        for buffer in buffers:
            PyObject_GetBuffer(buffer, &views[held], PyBUF_SIMPLE if write else PyBUF_SIMPLE | PyBUF_WRITABLE)
            iov[held].iov_base = views[held].buf
            iov[held].iov_len = views[held].len
            held += 1
        with nogil:
            if write:
                status = disk.ref.ops.write(disk.ref.state, offset, iov, count, flags)
            else:
                status = disk.ref.ops.read(disk.ref.state, offset, iov, count, flags)
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])
        PyMem_Free(views)
        PyMem_Free(iov)
    return status


def readv(Backend disk not None, uint64_t offset, list buffers not None, *, bint nowait=False):
    """Reads into writable buffers, one after the other. Returns the DiskStatus (0: done)."""
    return transfer(disk, offset, buffers, False, nowait)


def writev(Backend disk not None, uint64_t offset, list buffers not None, *, bint nowait=False):
    """Writes buffers, one after the other. Returns the DiskStatus (0: done)."""
    return transfer(disk, offset, buffers, True, nowait)


def flush(Backend disk not None):
    """Returns the DiskStatus."""
    if disk.ref.ops == NULL:
        return DISK_CLOSED
    cdef int status
    with nogil:
        status = disk.ref.ops.flush(disk.ref.state)
    return status


def trim(Backend disk not None, uint64_t offset, uint64_t length):
    """Returns the DiskStatus."""
    if disk.ref.ops == NULL:
        return DISK_CLOSED
    cdef int status
    with nogil:
        status = disk.ref.ops.trim(disk.ref.state, offset, length)
    return status
