"""Native threads for disk calls that may block (see pool.pxd)."""

from libc.string cimport memset

from hvcore.linux.atomics cimport load_acquire32, store_release32
from hvcore.linux.syscalls cimport eventfd_ring
from hvcore.linux.threads cimport (
    monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait, monitor_wake, monitor_wake_one,
    thread_join, thread_start)


cdef void *pool_thread(void *argument) noexcept nogil:
    cdef Pool *pool = <Pool *> argument
    cdef PoolJob *job
    monitor_lock(&pool.monitor)
    while True:
        while pool.first == NULL and not pool.stopping:
            monitor_wait(&pool.monitor, -1)
        job = pool.first
        if job == NULL:
            break
        pool.first = job.next
        if pool.first == NULL:
            pool.last = NULL
        monitor_unlock(&pool.monitor)
        job.run(job)
        monitor_lock(&pool.monitor)
        job.next = pool.done
        pool.done = job
        # Release: an owner that sees the count finds the job's result when it takes the list.
        store_release32(&pool.done_count, pool.done_count + 1)
        eventfd_ring(pool.doorbell)
    monitor_unlock(&pool.monitor)
    return NULL


cdef int pool_start(Pool *pool, int threads, int doorbell) noexcept nogil:
    cdef int status, i
    memset(pool, 0, sizeof(Pool))
    pool.doorbell = doorbell
    status = monitor_init(&pool.monitor)
    if status < 0:
        return status
    for i in range(min(threads, POOL_THREADS_MAX)):
        status = thread_start(&pool.threads[i], pool_thread, pool)
        if status < 0:
            pool_stop(pool)
            return status
        pool.thread_count += 1
    return 0


cdef void pool_stop(Pool *pool) noexcept nogil:
    cdef int i
    monitor_lock(&pool.monitor)
    pool.stopping = True
    monitor_wake(&pool.monitor)
    monitor_unlock(&pool.monitor)
    for i in range(pool.thread_count):
        thread_join(pool.threads[i])
    monitor_destroy(&pool.monitor)


cdef void pool_submit(Pool *pool, PoolJob *job) noexcept nogil:
    job.next = NULL
    monitor_lock(&pool.monitor)
    if pool.last == NULL:
        pool.first = job
    else:
        pool.last.next = job
    pool.last = job
    monitor_wake_one(&pool.monitor)
    monitor_unlock(&pool.monitor)


cdef PoolJob *pool_take_done(Pool *pool) noexcept nogil:
    cdef PoolJob *jobs
    if load_acquire32(&pool.done_count) == 0:
        return NULL
    monitor_lock(&pool.monitor)
    jobs = pool.done
    pool.done = NULL
    store_release32(&pool.done_count, 0)
    monitor_unlock(&pool.monitor)
    return jobs
