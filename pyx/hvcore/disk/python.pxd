# A disk whose requests are calls of a Python object. Only threads that may block come here: under DISK_NOWAIT every
# request is DISK_WOULD_BLOCK, so a VM's data thread never waits for the interpreter.

from libc.stdint cimport uint32_t, uint64_t

from hvcore.disk.ops cimport Backend
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport Monitor, Thread

ctypedef struct PythonState:
    void *disk                   # the PythonDisk, borrowed: requests end before it does
    uint64_t size
    bint read_only
    bint can_trim
    bint concurrent              # several calls at once; else one after the other
    Monitor monitor              # guards what follows. Taken before the interpreter lock, never while holding it
    uint32_t inside              # calls under way
    bint closed
    bint busy                    # not concurrent: `owner` is inside
    Thread owner


cdef class PythonDisk(Backend):
    cdef PythonState state
    cdef bint ready              # the monitor is made
    cdef readonly object target  # the object
    cdef str name                # of it, in reports
    cdef object report
    cdef object call_read
    cdef object call_readinto
    cdef object call_write
    cdef object call_flush
    cdef object call_trim
    cdef object ending           # what atexit calls
    cdef readonly dict failures
    cdef int serve(self, int operation, uint64_t offset, uint64_t length, const iovec *iov) except -1
    cdef int moved(self, str method, result, uint64_t length) except -1
    cdef int failed(self, int operation, uint64_t offset, uint64_t length, error) noexcept
