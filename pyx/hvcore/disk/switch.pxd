from libc.stdint cimport uint32_t, uint64_t

from hvcore.disk.medium cimport pthread_mutex_t
from hvcore.disk.ops cimport Backend, DiskRef

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass

ctypedef struct SwitchState:
    const DiskRef *top           # who does the requests; changes only while the gate is shut and nobody is inside
    uint32_t inside              # requests under way
    uint32_t shut                # 1: requests wait at the gate
    pthread_mutex_t lock
    pthread_cond_t changed       # the gate opened, or the last request left


cdef class SwitchDisk(Backend):
    cdef SwitchState state
    cdef DiskRef closed          # stands for a top that is closed
    cdef readonly Backend top
