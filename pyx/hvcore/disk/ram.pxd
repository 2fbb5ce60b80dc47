from libc.stdint cimport uint8_t, uint64_t

from hvcore.disk.ops cimport Backend

ctypedef struct RamState:
    uint8_t *base                # NULL once closed
    uint64_t size
    bint read_only


cdef class RamDisk(Backend):
    cdef RamState state
