# A bounded pool of native threads for disk calls that may block. Jobs are embedded in their owners' requests: no
# allocation, no limit but the requests themselves.

from libc.stdint cimport uint32_t

from hvcore.linux.threads cimport Monitor, Thread

cdef enum:
    POOL_THREADS_MAX = 16

ctypedef struct PoolJob:
    PoolJob *next
    void (*run)(PoolJob *job) noexcept nogil       # in a thread of the pool
    void (*done)(PoolJob *job) noexcept nogil     # for the owner to call in its own thread, once it has the job back

ctypedef struct Pool:
    Monitor monitor
    PoolJob *first               # waiting, oldest first
    PoolJob *last
    PoolJob *done                # newest first; taken whole by the owner
    uint32_t done_count          # read without the monitor by a spinning owner
    int doorbell                 # eventfd rung for each done job; not owned
    bint stopping
    int thread_count
    Thread threads[16]

# Both return 0 or -errno. pool_stop waits for the jobs that were submitted.
cdef int pool_start(Pool *pool, int threads, int doorbell) noexcept nogil
cdef void pool_stop(Pool *pool) noexcept nogil
cdef void pool_submit(Pool *pool, PoolJob *job) noexcept nogil
# The jobs done since the last call, linked by `next`, in no order; NULL when there are none.
cdef PoolJob *pool_take_done(Pool *pool) noexcept nogil
