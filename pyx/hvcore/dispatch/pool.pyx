"""Native threads for disk calls that may block (see pool.pxd)."""

import os

cimport cython
from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.linux.atomics cimport exchange64, load_relaxed32, load_relaxed64, replace64
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.syscalls cimport eventfd_ring
from hvcore.linux.threads cimport (
    monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait, monitor_wake, monitor_wake_one,
    thread_join, thread_start)

cdef enum PoolThreadState:
    THREAD_NONE = 0
    THREAD_RUNS = 1
    THREAD_ENDED = 2             # to be joined

cdef enum:
    LINGER_NS = 2000000000       # of a thread beyond the base that has nothing to do


cdef inline bint pool_before(const PoolSource *one, const PoolSource *other) noexcept nogil:
    """Whether `one`, which comes later in the ring, has its turn before `other`."""
    cdef uint32_t urgent = load_relaxed32(&one.urgent)
    if urgent != load_relaxed32(&other.urgent):
        return urgent != 0
    return one.running < other.running


cdef PoolSource *pool_next(Pool *pool) noexcept nogil:
    """[monitor] The source whose turn it is, out of the ring; NULL when nothing may be started."""
    cdef PoolSource *before = pool.turn
    cdef PoolSource *best = NULL             # the one before it in the ring
    cdef PoolSource *source
    # The threads beyond the base are for disks that have none: a disk that hangs must not fill them all.
    cdef bint full = pool.threads - pool.idle >= pool.base
    if before == NULL:
        return NULL
    while True:
        source = before.next
        if not (full and source.running) and (best == NULL or pool_before(source, best.next)):
            best = before
        if source == pool.turn:
            break
        before = source
    if best == NULL:
        return NULL
    source = best.next
    if source == best:
        pool.turn = NULL
    else:
        best.next = source.next
        if source == pool.turn:
            pool.turn = best
    return source


cdef void pool_enter_ring(Pool *pool, PoolSource *source) noexcept nogil:
    """[monitor] As the last in turn."""
    if pool.turn == NULL:
        source.next = source
    else:
        source.next = pool.turn.next
        pool.turn.next = source
    pool.turn = source


cdef void pool_grow(Pool *pool) noexcept nogil:
    """[monitor] One thread more. Where there can be none the job waits for one of those there are."""
    cdef PoolThread *place
    cdef int i
    if pool.stopping:
        return
    for i in range(POOL_THREADS_MAX):
        place = &pool.thread[i]
        if place.state == THREAD_RUNS:
            continue
        if place.state == THREAD_ENDED:
            thread_join(place.thread)
            place.state = THREAD_NONE
        place.pool = pool
        if thread_start(&place.thread, pool_thread, place) == 0:
            place.state = THREAD_RUNS
            pool.threads += 1
            pool.idle += 1       # it is on its way to its first job
        return


cdef bint pool_starved(Pool *pool) noexcept nogil:
    """[monitor] Whether a source waits that has nothing running, and no thread is free for it."""
    cdef PoolSource *source = pool.turn
    cdef int free = pool.idle
    if source == NULL:
        return False
    while True:
        if source.running == 0:
            free -= 1
            if free < 0:
                return True
        source = source.next
        if source == pool.turn:
            return False


cdef void pool_hand_back(PoolHome *home, PoolJob *job) noexcept nogil:
    cdef uint64_t head
    while True:
        head = load_relaxed64(<uint64_t *> &home.done)
        job.next = <PoolJob *> head
        # Release: the owner that takes the list finds the job's result. It takes all or nothing, so a head that left
        # and came back is no harm.
        if replace64(<uint64_t *> &home.done, head, <uint64_t> job):
            return


cdef void *pool_thread(void *argument) noexcept nogil:
    cdef PoolThread *self = <PoolThread *> argument
    cdef Pool *pool = self.pool
    cdef PoolSource *source
    cdef PoolHome *home
    cdef PoolJob *job
    cdef bint late = False
    monitor_lock(&pool.monitor)
    while True:
        source = pool_next(pool)
        if source == NULL:
            if pool.stopping or (late and pool.threads > pool.base):
                break
            if pool.threads > pool.base:
                late = monitor_wait(&pool.monitor, <int64_t> clock_ns() + LINGER_NS) != 0
            else:
                monitor_wait(&pool.monitor, -1)
            continue
        late = False
        pool.idle -= 1
        job = source.first
        source.first = job.next
        source.running += 1
        pool.waiting -= 1
        if source.first == NULL:
            source.last = NULL
        else:
            pool_enter_ring(pool, source)
        home = source.home
        if pool_starved(pool):
            pool_grow(pool)
        monitor_unlock(&pool.monitor)
        job.run(job)
        pool_hand_back(home, job)
        eventfd_ring(home.doorbell)
        monitor_lock(&pool.monitor)
        source.running -= 1      # the last touch: it holds source and home
        pool.idle += 1
        if pool.leaving:
            monitor_wake(&pool.monitor)
    pool.idle -= 1
    pool.threads -= 1
    self.state = THREAD_ENDED
    monitor_unlock(&pool.monitor)
    return NULL


cdef int pool_start(Pool *pool, int threads) noexcept nogil:
    cdef int status, started = 0
    memset(pool, 0, sizeof(Pool))
    status = monitor_init(&pool.monitor)
    if status < 0:
        return status
    pool.base = threads
    monitor_lock(&pool.monitor)
    while started < threads and status == 0:
        pool_grow(pool)
        started += 1
        if pool.threads < started:
            status = -EAGAIN
    monitor_unlock(&pool.monitor)
    if status < 0:
        pool_stop(pool)
    return status


cdef void pool_stop(Pool *pool) noexcept nogil:
    cdef int i
    monitor_lock(&pool.monitor)
    pool.stopping = True
    monitor_wake(&pool.monitor)
    monitor_unlock(&pool.monitor)
    for i in range(POOL_THREADS_MAX):
        # Nobody starts a thread any more, and only that changes a place from NONE.
        if pool.thread[i].state != THREAD_NONE:
            thread_join(pool.thread[i].thread)
    monitor_destroy(&pool.monitor)


cdef void pool_source(PoolSource *source, PoolHome *home) noexcept nogil:
    memset(source, 0, sizeof(PoolSource))
    source.home = home


cdef void pool_submit(Pool *pool, PoolSource *source, PoolJob *job) noexcept nogil:
    job.next = NULL
    monitor_lock(&pool.monitor)
    if source.last == NULL:
        source.first = job
        pool_enter_ring(pool, source)
    else:
        source.last.next = job
    source.last = job
    pool.waiting += 1
    if pool_starved(pool):
        pool_grow(pool)
    if pool.leaving:             # a single signal might go to one of those
        monitor_wake(&pool.monitor)
    else:
        monitor_wake_one(&pool.monitor)
    monitor_unlock(&pool.monitor)


cdef bint pool_has_done(PoolHome *home) noexcept nogil:
    return load_relaxed64(<uint64_t *> &home.done) != 0


cdef PoolJob *pool_take_done(PoolHome *home) noexcept nogil:
    if not pool_has_done(home):
        return NULL
    # Acquire, with the push's release: the jobs' results are there.
    return <PoolJob *> exchange64(<uint64_t *> &home.done, 0)


cdef void pool_leave(Pool *pool, PoolSource *source) noexcept nogil:
    monitor_lock(&pool.monitor)
    pool.leaving += 1
    while source.running or source.first != NULL:
        monitor_wait(&pool.monitor, -1)
    pool.leaving -= 1
    monitor_unlock(&pool.monitor)


@cython.final
cdef class MediaPool:
    """The threads of one host for disk calls that may block, shared by all its VMs; `threads` of them stay.

    Closed after everything that uses it. inspect(): threads alive, of those idle, and jobs waiting.
    """

    def __cinit__(self, int threads=4):
        cdef int status
        if not 1 <= threads <= POOL_THREADS_MAX:
            raise ValueError(f"threads {threads} is not between 1 and {POOL_THREADS_MAX}")
        with nogil:
            status = pool_start(&self.pool, threads)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        self.running = True

    def inspect(self):
        cdef int threads, idle
        cdef uint32_t waiting
        if not self.running:
            return {"threads": 0, "idle": 0, "waiting": 0}
        with nogil:
            monitor_lock(&self.pool.monitor)
            threads, idle, waiting = self.pool.threads, self.pool.idle, self.pool.waiting
            monitor_unlock(&self.pool.monitor)
        return {"threads": threads, "idle": idle, "waiting": waiting}

    def close(self):
        """Waits for the jobs that were submitted, and ends the threads. Idempotent."""
        if self.running:
            self.running = False
            with nogil:
                pool_stop(&self.pool)

    def __dealloc__(self):
        self.close()
