from libc.stdint cimport uint64_t

from hvcore.disk.medium cimport ImageFile, Medium
from hvcore.disk.ops cimport Backend

ctypedef struct FileState:
    Medium *medium               # of the ImageFile that the disk keeps
    uint64_t base                # where the disk's first byte lies in the file
    uint64_t size
    bint read_only
    bint can_trim


cdef class FileDisk(Backend):
    cdef FileState state
    cdef ImageFile file
