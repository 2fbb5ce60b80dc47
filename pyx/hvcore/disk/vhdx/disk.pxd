from libc.stdint cimport uint8_t, uint64_t

from hvcore.disk.medium cimport ImageFile, Medium
from hvcore.disk.ops cimport Backend

ctypedef struct VhdxState:
    Medium *medium               # of the ImageFile that the disk keeps
    uint64_t *blocks             # per payload block: where it lies in the file, 0 for a block of zeros
    uint64_t count               # payload blocks
    uint64_t size                # of the disk
    uint64_t block_size          # a power of two


cdef class VhdxDisk(Backend):
    cdef VhdxState state
    cdef ImageFile file
    cdef int load(self, uint64_t file_size, uint64_t offset, uint64_t entries, uint64_t ratio,
                  list used) except -1
