# The executor of the emulated path, host side: the VSP hands each request to the IDE emulator in the worker process,
# does the media access that the emulator asks for, and takes the result back (design: the five steps).

from libc.stdint cimport uint32_t, uint64_t

from hvcore.dispatch.handover cimport HandOver, HandOverChannel
from hvcore.dispatch.pool cimport PoolJob
from hvcore.dispatch.synthetic cimport MediaDisk
from hvcore.hypervisor.intercept cimport InterceptPages
from hvcore.linux.syscalls cimport iovec
from hvcore.storage.vsp cimport VspRequest, VspUnit

cdef enum:
    EMULATED_IOV = 80            # buffers of one media access

cdef enum EmulatedState:
    EMULATED_IDLE = 0
    EMULATED_WORKER = 1          # the worker has the request
    EMULATED_MEDIA = 2           # a thread of the pool does its media access

ctypedef struct EmulatedChannel:
    PoolJob job                  # first: a job is its channel
    EmulatedHost *host
    VspRequest *first            # waiting, oldest first
    VspRequest *last
    VspRequest *current
    HandOverChannel *shared      # NULL without a worker
    int state                    # EmulatedState
    uint32_t posted              # our own copy of the sequence
    uint64_t moved               # bytes of the current request whose media access is done, from its start
    int media_status             # worst DiskStatus of the current request
    bint lost                    # the worker ended while the pool had the media access
    bint flushing                # the flush that follows a forced write
    bint flushed                 # the medium was flushed for the current request
    bint job_write
    bint job_flush
    uint64_t job_offset
    uint64_t job_bytes
    int job_status
    int iov_count
    iovec iov[80]

ctypedef struct EmulatedHost:
    HandOver *shared             # NULL without a worker
    InterceptPages *intercepts   # of the guest, where the worker then sleeps; NULL without
    int worker_bell              # eventfd: unused by the host but to wait
    uint64_t faults              # answers of a worker that were not believed
    bint unavailable             # there is no worker and will be none: requests are aborted at once
    bint broken                  # the worker broke the protocol: it must be ended
    EmulatedChannel channels[2]

ctypedef struct EmulatedDisk:    # context of a VspUnit
    EmulatedHost *host
    MediaDisk *media
    uint32_t channel             # 0, 1
    uint32_t drive               # 0, 1
    uint32_t mode                # IdeMode

cdef void emulated_init(EmulatedHost *host) noexcept nogil
# A VspExecutor; the unit's context is an EmulatedDisk.
cdef void emulated_execute(VspUnit *unit, VspRequest *request) noexcept nogil
# Takes what the worker posted; the number of messages.
cdef int emulated_poll(EmulatedHost *host) noexcept nogil
# Whether nothing is in the emulator's hands.
cdef bint emulated_idle(EmulatedHost *host) noexcept nogil
# Whether emulated_poll would find something.
cdef bint emulated_ready(EmulatedHost *host) noexcept nogil
# The worker is there (shared: zeroed memory), or is gone: what it had in hand is aborted, what waits goes on waiting.
cdef void emulated_worker(EmulatedHost *host, HandOver *shared) noexcept nogil
cdef void emulated_worker_lost(EmulatedHost *host) noexcept nogil
# There will be no worker: aborts what waits and what will come, until emulated_worker.
cdef void emulated_unavailable(EmulatedHost *host) noexcept nogil
# Aborts the requests that wait for the worker: those of one channel, of one unit, or (both NULL) all.
cdef void emulated_drop(EmulatedHost *host, const void *vsp, const VspUnit *unit) noexcept nogil
