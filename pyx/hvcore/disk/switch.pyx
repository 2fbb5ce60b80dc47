"""A disk whose backend can be exchanged while requests run: what a checkpoint of a running VM needs."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from hvcore.disk.medium cimport pthread_mutex_t
from hvcore.disk.ops cimport (
    DISK_CLOSED, DISK_NOWAIT, DISK_OK, DISK_WOULD_BLOCK, Backend, DiskOps, disk_read, disk_status, disk_write)
from hvcore.linux.atomics cimport exchange32, fetch_add32, load_acquire32
from hvcore.linux.syscalls cimport iovec


cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_broadcast(pthread_cond_t *condition)


cdef int enter(SwitchState *state, uint32_t flags) noexcept nogil:
    while True:
        # Both ends write their own word before they read the other's, and both writes are locked instructions, hence
        # full fences: either the request sees the gate shut, or shut() sees the request inside.
        fetch_add32(&state.inside, 1)
        if load_acquire32(&state.shut) == 0:
            return DISK_OK
        leave(state)
        if flags & DISK_NOWAIT:
            return DISK_WOULD_BLOCK
        pthread_mutex_lock(&state.lock)
        while state.shut:
            pthread_cond_wait(&state.changed, &state.lock)
        pthread_mutex_unlock(&state.lock)


cdef void leave(SwitchState *state) noexcept nogil:
    if fetch_add32(&state.inside, <uint32_t> -1) == 1 and load_acquire32(&state.shut):
        pthread_mutex_lock(&state.lock)
        pthread_cond_broadcast(&state.changed)
        pthread_mutex_unlock(&state.lock)


cdef void shut_gate(SwitchState *state) noexcept nogil:
    """Lets nobody in and waits for all who are inside."""
    pthread_mutex_lock(&state.lock)
    while state.shut:                              # another exchange
        pthread_cond_wait(&state.changed, &state.lock)
    exchange32(&state.shut, 1)
    while load_acquire32(&state.inside):
        pthread_cond_wait(&state.changed, &state.lock)
    pthread_mutex_unlock(&state.lock)


cdef void open_gate(SwitchState *state) noexcept nogil:
    pthread_mutex_lock(&state.lock)
    exchange32(&state.shut, 0)
    pthread_cond_broadcast(&state.changed)
    pthread_mutex_unlock(&state.lock)


cdef int switch_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef SwitchState *state = <SwitchState *> pointer
    cdef int status = enter(state, flags)
    if status == DISK_OK:
        status = disk_read(state.top, offset, iov, count, flags)
        leave(state)
    return status


cdef int switch_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef SwitchState *state = <SwitchState *> pointer
    cdef int status = enter(state, flags)
    if status == DISK_OK:
        status = disk_write(state.top, offset, iov, count, flags)
        leave(state)
    return status


cdef int switch_flush(void *pointer) noexcept nogil:
    cdef SwitchState *state = <SwitchState *> pointer
    enter(state, 0)
    cdef int status = state.top.ops.flush(state.top.state)
    leave(state)
    return status


cdef int switch_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    cdef SwitchState *state = <SwitchState *> pointer
    enter(state, 0)
    cdef int status = state.top.ops.trim(state.top.state, offset, length)
    leave(state)
    return status


cdef int64_t switch_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    cdef SwitchState *state = <SwitchState *> pointer
    enter(state, 0)
    cdef int64_t found = disk_status(state.top, offset, length, mapped)
    leave(state)
    return found


cdef DiskOps OPS
OPS.read = switch_read
OPS.write = switch_write
OPS.flush = switch_flush
OPS.trim = switch_trim
OPS.status = switch_status


# What is left when an exchange closed the backend and brought no other.

cdef int closed_transfer(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    return DISK_CLOSED


cdef int closed_flush(void *pointer) noexcept nogil:
    return DISK_CLOSED


cdef int closed_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    return DISK_CLOSED


cdef int64_t closed_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    return DISK_CLOSED


cdef DiskOps CLOSED
CLOSED.read = closed_transfer
CLOSED.write = closed_transfer
CLOSED.flush = closed_flush
CLOSED.trim = closed_trim
CLOSED.status = closed_status


@cython.final
cdef class SwitchDisk(Backend):
    """The disk that `top` is now; closes it."""

    def __cinit__(self, Backend top not None):
        if top.ref.ops == NULL:
            raise ValueError("the disk is closed")
        pthread_mutex_init(&self.state.lock, NULL)
        pthread_cond_init(&self.state.changed, NULL)
        self.top = top
        self.state.top = &top.ref
        self.ref = top.ref
        self.ref.state = &self.state
        self.ref.ops = &OPS

    def exchange(self, make, *, bint resize=False):
        """Holds up new requests, waits for those under way, and goes on with the backend that make(top) returns.

        It must be as large as the present one (unless resize), with the same sectors, and as writable; else ValueError,
        and it is closed. When make raises, requests go on with the present backend, or fail if make closed it. make may
        not send requests to this disk.
        """
        cdef Backend new
        self.check(0, 0)
        with nogil:
            shut_gate(&self.state)
        try:
            new = make(self.top)
            if new is None or new.ref.ops == NULL:
                raise ValueError("no open disk to go on with")
            if ((new.ref.size_bytes != self.ref.size_bytes and not resize)
                    or new.ref.sector_size != self.ref.sector_size or new.ref.read_only != self.ref.read_only):
                new.close()
                raise ValueError("the disk to go on with has another size, other sectors, or is not as writable")
            self.top = new
            self.state.top = &new.ref
            self.ref.size_bytes = new.ref.size_bytes
        finally:
            if self.top.ref.ops == NULL:
                self.closed.ops = &CLOSED
                self.state.top = &self.closed
            with nogil:
                open_gate(&self.state)

    def extents(self):
        """Those of the present backend."""
        self.check(0, 0)
        return self.top.extents()

    @property
    def parent(self):
        """That of the present backend."""
        return getattr(self.top, "parent", None)

    def close(self):
        if self.ref.ops != NULL:
            Backend.close(self)
            self.top.close()

    def __dealloc__(self):
        pthread_mutex_destroy(&self.state.lock)
        pthread_cond_destroy(&self.state.changed)
