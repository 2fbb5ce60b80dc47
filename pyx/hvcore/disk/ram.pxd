from libc.stdint cimport uint8_t

from hvcore.disk.ops cimport Backend, DiskRef


ctypedef struct RamState:
    uint8_t *bytes
    DiskRef *ref                 # of the disk that owns the bytes


cdef class RamDisk(Backend):
    cdef RamState ram
    cdef int release(self) except -1
