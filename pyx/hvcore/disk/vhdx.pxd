from libc.stdint cimport uint8_t, uint64_t

from hvcore.disk.medium cimport Medium
from hvcore.disk.ops cimport Backend

ctypedef struct VhdxState:
    Medium medium
    uint64_t *blocks             # per payload block: where it lies in the file, 0 for a block of zeros
    uint64_t count               # payload blocks
    uint64_t size                # of the disk
    uint64_t block_size          # a power of two


cdef class VhdxDisk(Backend):
    cdef VhdxState state         # medium.fd is -1 until the constructor succeeded, and once closed
    cdef int load(self, int fd, uint64_t file_size, uint64_t offset, uint64_t entries, uint64_t ratio,
                  list used) except -1
    cdef int release(self) except -1
