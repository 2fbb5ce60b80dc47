from libc.stdint cimport uint64_t

from hvcore.disk.ops cimport Backend


cdef class NullDisk(Backend):
    cdef uint64_t bytes          # the size, which is all its functions need
