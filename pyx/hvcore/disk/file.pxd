from libc.stdint cimport uint64_t

from hvcore.disk.medium cimport Medium
from hvcore.disk.ops cimport Backend

ctypedef struct FileState:
    Medium medium
    uint64_t base                # where the disk's first byte lies in the file
    uint64_t size
    bint read_only
    bint can_trim


cdef class FileDisk(Backend):
    cdef FileState state         # medium.fd is -1 until the constructor succeeded, and once closed
