# A VHDX as a disk.

from libc.stdint cimport uint8_t

from hvcore.disk.medium cimport ImageFile
from hvcore.disk.ops cimport Backend
from hvcore.disk.vhdx.state cimport VhdxState


cdef class VhdxDisk(Backend):
    cdef VhdxState state
    cdef ImageFile file
    cdef readonly Backend parent  # None: there is none, or it is not at hand
    cdef int judge(self) except -1
    cdef int writable(self) except -1
    cdef int begin_now(self, const uint8_t *data_write_guid) except -1
    cdef int begin_silently(self) except -1
