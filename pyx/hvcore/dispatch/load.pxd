# The load generator. What a path has to offer to it is in request.pxd; all of that can be taken from here.

from libc.stdint cimport uint32_t

from hvcore.dispatch.request cimport (
    LOAD_ABORTED, LOAD_CORRUPT, LOAD_DEPTH_MAX, LOAD_DONE, LOAD_FAILED, LOAD_FLUSH, LOAD_FULL, LOAD_GONE,
    LOAD_INTERRUPTED, LOAD_NO_SPACE, LOAD_OK, LOAD_OPERATIONS, LOAD_OUTCOMES, LOAD_PROTECTED, LOAD_RANGE, LOAD_READ,
    LOAD_READ_ERROR, LOAD_SHORT, LOAD_TRIM, LOAD_UNSUPPORTED, LOAD_WRITE, LOAD_WRITE_ERROR, LoadOperation, LoadOutcome,
    LoadRequest, LoadStatus, LoadTarget, load_finished)


cdef class Requester:
    """Owner of one target; subclasses fill `target` in their constructor. One load at a time."""
    cdef LoadTarget target
    cdef bint busy
    cdef int hold(self, object buffer) except -1     # after abandon(): keep it as long as the host may still write it
    cpdef str describe(self, uint32_t detail)        # what load_finished() was told, in words
