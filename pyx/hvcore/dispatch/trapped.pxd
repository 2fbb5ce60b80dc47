# The host's part of the trapped path: the media accesses that the guest's own IDE controller, in the worker, asks for.
# The guest's port accesses themselves never come here.
#
# The worker is a stranger: drive, range, addresses and lengths are fetched once and checked, against the disk and
# against the memory of the guest that is attached.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from hvcore.disk.ops cimport DiskRef
from hvcore.dispatch.handover cimport GuestMedia, HandOver
from hvcore.dispatch.pool cimport PoolJob
from hvcore.dispatch.synthetic cimport MediaDisk
from hvcore.hypervisor.intercept cimport InterceptPages
from hvcore.linux.syscalls cimport iovec
from hvcore.metrics.counters cimport Counters
from hvcore.metrics.trace cimport TraceRing

ctypedef struct TrappedDrive:
    DiskRef *disk                    # NULL: no drive at this place
    MediaDisk *media                 # its way to the pool
    Counters *counters               # the disk's: media accesses, errors, hand-overs and doorbells of their answers
    Counters worker                  # what workers that are gone had counted
    uint64_t trace_base

ctypedef struct TrappedChannel:
    PoolJob job                      # first: a job is its channel
    TrappedHost *host
    GuestMedia *shared               # NULL without a worker
    uint32_t taken                   # our own copy of the sequence
    bint busy                        # a thread of the pool does the access: its memory is in use
    bint lost                        # and the worker that asked for it is gone
    TrappedDrive *drive
    DiskRef *disk                    # as it was when the request came: a filter may come or go
    uint32_t kind                    # IdeMediaKind
    uint64_t offset
    uint64_t bytes
    uint64_t trace_id
    int status
    int iov_count
    iovec iov[1025]                  # IDE_SEGMENTS and the dropped tail

ctypedef struct TrappedHost:
    HandOver *shared                 # NULL without a worker
    InterceptPages *pages            # of the guest, NULL without
    uint8_t *memory                  # of the guest, NULL without: what is asked for then fails
    uint64_t memory_bytes
    TraceRing *trace
    uint32_t busy                    # media accesses that threads of the pool do
    uint64_t faults                  # requests that no honest worker makes
    bint broken                      # the worker must be ended
    TrappedDrive drives[4]           # 2 * channel + drive
    TrappedChannel channels[2]
    uint8_t sink[512]

cdef void trapped_init(TrappedHost *host, TraceRing *trace) noexcept nogil
# The guest that is attached. Nothing reaches the memory of the one before once `busy` is 0.
cdef void trapped_guest(TrappedHost *host, uint8_t *memory, uint64_t memory_bytes, InterceptPages *pages) noexcept nogil
# Takes what the worker posted; the number of requests.
cdef int trapped_poll(TrappedHost *host) noexcept nogil
# Whether trapped_poll would find something.
cdef bint trapped_ready(TrappedHost *host) noexcept nogil
cdef void trapped_worker(TrappedHost *host, HandOver *shared) noexcept nogil
cdef void trapped_worker_lost(TrappedHost *host) noexcept nogil
# Adds what its port accesses have cost since the drive was added: what workers counted.
cdef void trapped_counters(TrappedHost *host, uint32_t place, Counters *counters) noexcept nogil
