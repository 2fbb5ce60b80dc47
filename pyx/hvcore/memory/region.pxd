from libc.stdint cimport uint8_t


cdef class Region:
    cdef uint8_t *base              # NULL once closed
    cdef readonly size_t size       # bytes, a multiple of 4096
    cdef readonly int fd            # owned; -1 once closed, and when attached
    cdef Py_ssize_t exports         # buffers handed out: close() refuses while there are any
    cdef int map(self, int fd, size_t size) except -1
    cdef int release(self) except -1
