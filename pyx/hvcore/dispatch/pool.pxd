# The host's native threads for disk calls that may block: one pool for all VMs. Jobs are embedded in their owners'
# requests: no allocation, no limit but the requests themselves.
#
# Fair between disks. Each disk is a source; a free thread takes the oldest job of the source that has the fewest jobs
# running, in turns. A source with nothing running never waits behind others: when every thread is busy it gets one
# more, of use to such sources only, which ends again when it is no longer needed. So a disk that hangs holds up nothing
# but itself.

from libc.stdint cimport uint32_t

from hvcore.linux.threads cimport Monitor, Thread

cdef enum:
    POOL_THREADS_MAX = 1024

ctypedef struct PoolJob:
    PoolJob *next
    void (*run)(PoolJob *job) noexcept nogil       # in a thread of the pool
    void (*done)(PoolJob *job) noexcept nogil      # for the owner to call in its own thread, once it has the job back

ctypedef struct PoolHome:        # one VM's thread, which gets its jobs back
    PoolJob *done                # newest first; pushed by any thread, taken whole by the owner
    int doorbell                 # eventfd rung for each done job; not owned

ctypedef struct PoolSource:      # one disk
    PoolHome *home
    PoolSource *next             # [monitor] in the pool's ring of sources that have jobs waiting
    PoolJob *first               # [monitor] waiting, oldest first
    PoolJob *last
    uint32_t running             # [monitor] threads that run a job of it or will still touch it or its home
    uint32_t urgent              # served before sources that are not: a disk below its minimum (written by the owner)

ctypedef struct PoolThread:
    Thread thread
    Pool *pool
    int state                    # PoolThreadState

ctypedef struct Pool:
    Monitor monitor
    PoolSource *turn             # the ring's last: its next is the first in turn; NULL: nothing waits
    uint32_t waiting             # jobs
    int base                     # threads that stay
    int threads                  # that live
    int idle                     # of those
    int leaving                  # callers of pool_leave
    bint stopping
    PoolThread thread[1024]

# 0 or -errno. pool_stop waits for the jobs that were submitted.
cdef int pool_start(Pool *pool, int threads) noexcept nogil
cdef void pool_stop(Pool *pool) noexcept nogil
cdef void pool_source(PoolSource *source, PoolHome *home) noexcept nogil
cdef void pool_submit(Pool *pool, PoolSource *source, PoolJob *job) noexcept nogil
# The jobs done since the last call, linked by `next`, in no order; NULL when there are none.
cdef PoolJob *pool_take_done(PoolHome *home) noexcept nogil
cdef bint pool_has_done(PoolHome *home) noexcept nogil
# No job of this source is submitted any more, and all were taken back: when this returns no thread touches source or
# home.
cdef void pool_leave(Pool *pool, PoolSource *source) noexcept nogil

cdef class MediaPool:
    cdef Pool pool
    cdef bint running
