"""A disk written as a Python class."""

import atexit
import errno
from functools import partial
from weakref import ref

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from hvcore.disk.ops cimport (DISK_CLOSED, DISK_NO_SPACE, DISK_NOWAIT, DISK_OK, DISK_RANGE, DISK_READ_ERROR,
                              DISK_READ_ONLY, DISK_UNSUPPORTED, DISK_WOULD_BLOCK, DISK_WRITE_ERROR, Backend, DiskOps,
                              iovec_span)
from hvcore.disk.span cimport Span, span_begin, span_fill, span_next
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport (Thread, monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait,
                                   monitor_wake)

from hvcore.errors import DiskError

cdef extern from "<pthread.h>" nogil:
    Thread pthread_self()
    int pthread_equal(Thread one, Thread other)

cdef enum PythonOperation:
    PYTHON_READ = 0
    PYTHON_WRITE = 1
    PYTHON_FLUSH = 2
    PYTHON_TRIM = 3

cdef enum:
    KINDS_MAX = 64               # of failures that are told apart
    PYTHON_REENTERED = 1         # of python_enter: this thread is inside already

NAMES = ("read", "write", "flush", "trim")
END_NS = 5_000_000_000           # how long the interpreter's end waits for calls under way


cdef int python_enter(PythonState *state) noexcept nogil:
    cdef int status = DISK_OK
    monitor_lock(&state.monitor)
    if state.busy and pthread_equal(state.owner, pthread_self()):
        status = PYTHON_REENTERED
    else:
        while state.busy and not state.closed:
            monitor_wait(&state.monitor, -1)
        if state.closed:
            status = DISK_CLOSED
        else:
            state.inside += 1
            if not state.concurrent:
                state.busy = True
                state.owner = pthread_self()
    monitor_unlock(&state.monitor)
    return status


cdef void python_leave(PythonState *state) noexcept nogil:
    monitor_lock(&state.monitor)
    state.inside -= 1
    state.busy = False
    monitor_wake(&state.monitor)
    monitor_unlock(&state.monitor)


cdef void python_end(PythonState *state, int64_t deadline) noexcept nogil:
    """Nobody enters any more; waits for those inside."""
    monitor_lock(&state.monitor)
    state.closed = True
    monitor_wake(&state.monitor)
    while state.inside and monitor_wait(&state.monitor, deadline) == 0:
        pass
    monitor_unlock(&state.monitor)


cdef int python_serve(
        PythonState *state, int operation, uint64_t offset, uint64_t length, const iovec *iov) noexcept nogil:
    cdef int status = python_enter(state)
    if status == PYTHON_REENTERED:
        # A class whose method asks its own disk would wait for itself.
        return python_call(state, operation, offset, length, iov, True)
    if status == DISK_OK:
        status = python_call(state, operation, offset, length, iov, False)
        python_leave(state)
    return status


# The one place where a native thread calls the interpreter (tests/packaging/test_purity.py knows it by name). It is
# reached only where a request may block, in a thread that holds no lock but this disk's turn, and a disk that is no
# Python object has no way here. The thread gets a thread state of its own for the call; nothing can escape the call, as
# every exception ends as a DiskStatus.
cdef int python_call(PythonState *state, int operation, uint64_t offset, uint64_t length, const iovec *iov,
                     bint reentered) noexcept with gil:
    cdef PythonDisk disk = <PythonDisk> state.disk
    try:
        if reentered:
            raise RuntimeError("called from inside the disk's own class")
        disk.serve(operation, offset, length, iov)
        return DISK_OK
    except BaseException as error:
        return disk.failed(operation, offset, length, error)


cdef int python_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef PythonState *state = <PythonState *> pointer
    cdef int64_t total = iovec_span(state.size, offset, iov, count)
    if total <= 0:
        return <int> total
    if flags & DISK_NOWAIT:
        return DISK_WOULD_BLOCK
    return python_serve(state, PYTHON_READ, offset, total, iov)


cdef int python_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef PythonState *state = <PythonState *> pointer
    cdef int64_t total
    if state.read_only:
        return DISK_READ_ONLY
    total = iovec_span(state.size, offset, iov, count)
    if total <= 0:
        return <int> total
    if flags & DISK_NOWAIT:
        return DISK_WOULD_BLOCK
    return python_serve(state, PYTHON_WRITE, offset, total, iov)


cdef int python_flush(void *pointer) noexcept nogil:
    cdef PythonState *state = <PythonState *> pointer
    if state.read_only:
        return DISK_READ_ONLY
    return python_serve(state, PYTHON_FLUSH, 0, 0, NULL)


cdef int python_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    cdef PythonState *state = <PythonState *> pointer
    if state.read_only:
        return DISK_READ_ONLY
    if not state.can_trim:
        return DISK_UNSUPPORTED
    if offset > state.size or state.size - offset < length:
        return DISK_RANGE
    if length == 0:
        return DISK_OK
    return python_serve(state, PYTHON_TRIM, offset, length, NULL)


cdef DiskOps OPS
OPS.read = python_read
OPS.write = python_write
OPS.flush = python_flush
OPS.trim = python_trim

cdef dict CODES = {
    errno.ENOSPC: DISK_NO_SPACE,
    errno.EDQUOT: DISK_NO_SPACE,
    errno.EFBIG: DISK_NO_SPACE,
    errno.EROFS: DISK_READ_ONLY,
    errno.EOPNOTSUPP: DISK_UNSUPPORTED,
}


def place_of(error):
    """Where an exception was raised: "file:line"."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def method_of(target, name, bint needed):
    method = getattr(target, name, None)
    if method is None and not needed:
        return None
    if not callable(method):
        raise TypeError(f"{type(target).__name__} has no method {name}()")
    return method


def finish(disk):
    """At the interpreter's end: no native thread may be on its way into it."""
    cdef PythonDisk found = disk()
    cdef int64_t deadline
    if found is not None:
        deadline = <int64_t> clock_ns() + <int64_t> END_NS
        with nogil:
            python_end(&found.state, deadline)


@cython.final
cdef class PythonDisk(Backend):
    """`size` bytes that an object keeps.

    target: has read(offset, length) -> a buffer of exactly `length` bytes, or readinto(offset, buffer), which fills a
    memoryview of the disk's own; and unless read_only write(offset, data: bytes) and flush(); trim(offset, length) if
    it can (the range may be forgotten); close(), called once by close(). All are whole sectors within the disk. What
    readinto and write return is None or the number of bytes; fewer is an error. Methods are looked up once, here:
    TypeError for one that is missing.

    They are called from any thread, one at a time; concurrent: several at once. A method may not ask this disk.

    An exception ends the request: an OSError with ENOSPC, EROFS or EOPNOTSUPP as what that says, any other as a read or
    write error. `failures` counts them by kind (operation and exception); report is called with one line at the first
    of each kind, in the thread that had it; what it raises is dropped.
    """

    def __cinit__(self, target, uint64_t size, *, uint32_t sector_size=512, bint read_only=False,
                  bint concurrent=False, report=None):
        if sector_size != 512 and sector_size != 4096:
            raise ValueError(f"the sector size is 512 or 4096, not {sector_size}")
        if size == 0 or size > 1 << 62 or size % sector_size:
            raise ValueError(f"the size is a positive multiple of the sector size {sector_size}, not {size}")
        self.call_readinto = method_of(target, "readinto", False)
        self.call_read = method_of(target, "read", self.call_readinto is None)
        self.call_write = None if read_only else method_of(target, "write", True)
        self.call_flush = None if read_only else method_of(target, "flush", True)
        self.call_trim = None if read_only else method_of(target, "trim", False)
        if monitor_init(&self.state.monitor):
            raise MemoryError("no lock can be made")
        self.ready = True
        self.target = target
        self.name = type(target).__qualname__
        self.report = report
        self.failures = {}
        self.state.disk = <void *> self
        self.state.size = size
        self.state.read_only = read_only
        self.state.can_trim = self.call_trim is not None
        self.state.concurrent = concurrent
        self.ref.state = &self.state
        self.ref.size_bytes = size
        self.ref.sector_size = self.ref.physical_sector_size = sector_size
        self.ref.read_only = read_only
        self.ref.can_trim = self.state.can_trim
        self.ref.ops = &OPS
        self.ending = partial(finish, ref(self))
        atexit.register(self.ending)

    cdef int serve(self, int operation, uint64_t offset, uint64_t length, const iovec *iov) except -1:
        """One request, with the interpreter lock."""
        cdef Span span
        cdef Py_buffer view
        cdef bytes data
        cdef bytearray filled
        cdef uint8_t *at
        cdef uint8_t *piece = NULL
        cdef uint64_t left, part
        span_begin(&span, iov)
        if operation == PYTHON_READ and self.call_readinto is not None:
            # Not the guest's pages: the object may keep the buffer.
            filled = bytearray(length)
            self.moved("readinto", self.call_readinto(offset, memoryview(filled)), length)
            span_fill(&span, <const uint8_t *> <char *> filled, length)
        elif operation == PYTHON_READ:
            result = self.call_read(offset, length)
            if not PyObject_CheckBuffer(result):
                raise TypeError(f"read() returned {type(result).__name__}, not bytes")
            PyObject_GetBuffer(result, &view, PyBUF_SIMPLE)
            try:
                if <uint64_t> view.len != length:
                    raise ValueError(f"read() returned {view.len} bytes, not {length}")
                span_fill(&span, <const uint8_t *> view.buf, length)
            finally:
                PyBuffer_Release(&view)
        elif operation == PYTHON_WRITE:
            # A copy: a guest may change its pages meanwhile, and an object may keep what it is given.
            data = PyBytes_FromStringAndSize(NULL, length)
            at = <uint8_t *> PyBytes_AS_STRING(data)
            left = length
            while left:
                part = span_next(&span, left, &piece)
                memcpy(at, piece, part)
                at += part
                left -= part
            self.moved("write", self.call_write(offset, data), length)
        elif operation == PYTHON_FLUSH:
            self.call_flush()
        else:
            self.call_trim(offset, length)
        return 0

    cdef int moved(self, str method, result, uint64_t length) except -1:
        if result is None:
            return 0
        if not isinstance(result, int):
            raise TypeError(f"{method}() returned {type(result).__name__}, not None or a number of bytes")
        if result != length:
            raise ValueError(f"{method}() moved {result} bytes, not {length}")
        return 0

    cdef int failed(self, int operation, uint64_t offset, uint64_t length, error) noexcept:
        """Notes an exception; the DiskStatus that it becomes. What goes wrong here is dropped: nobody could hear it."""
        cdef int status = DISK_READ_ERROR if operation == PYTHON_READ else DISK_WRITE_ERROR
        try:
            if isinstance(error, OSError):
                status = CODES.get(error.errno, status)
            kind = f"{NAMES[operation]}: {type(error).__qualname__}"
            if kind not in self.failures and len(self.failures) >= KINDS_MAX:
                kind = "others"
            known = kind in self.failures
            self.failures[kind] = self.failures.get(kind, 0) + 1
            if not known and self.report is not None:
                what = f"({offset}, {length})" if operation != PYTHON_FLUSH else "()"
                place = place_of(error)
                self.report(f"{self.name}.{NAMES[operation]}{what}: {type(error).__qualname__}: {error}"
                            + (f" ({place})" if place else ""))
        except BaseException:
            pass
        return status

    def close(self):
        """Waits for calls under way, then closes the object. Idempotent. DiskError: the object's close() failed."""
        if self.ref.ops == NULL:
            return
        Backend.close(self)
        with nogil:
            python_end(&self.state, -1)
        atexit.unregister(self.ending)
        close = getattr(self.target, "close", None)
        if close is not None:
            try:
                close()
            except Exception as error:
                raise DiskError(f"{self.name}.close(): {type(error).__qualname__}: {error}") from error

    def __dealloc__(self):
        if self.ready:
            monitor_destroy(&self.state.monitor)
