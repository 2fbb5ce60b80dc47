# The controller as a Python object.

from libc.stdint cimport uint8_t, uint32_t

from hvcore.disk.ops cimport Backend, DiskRef
from hvcore.ide.channel cimport IdeMedia
from hvcore.ide.controller cimport IdeController
from hvcore.linux.syscalls cimport iovec


cdef class Controller:
    cdef IdeController *core
    cdef list images                 # 4: Backend, an object with its methods, or None
    cdef const DiskRef *disks[4]     # of those that are Backends, else NULL
    cdef uint8_t *buffers[4]
    cdef Py_buffer view              # of memory
    cdef bint has_memory
    cdef readonly bint closed
    cdef public bint media_held
    cdef bint busy                   # a media access runs: its state is in vectors
    cdef iovec vectors[1024]
    cdef uint8_t sink[512]           # what a DMA read has no memory for

    cdef int check(self) except -1
    cdef int settle(self) except -1
    cdef int run(self, uint32_t channel) except -1
    cdef int access(self, const IdeMedia *media) except? -100
    cdef int access_object(self, const IdeMedia *media, int count) except? -100
