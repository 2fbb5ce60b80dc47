"""What the figures stand beside: a ring with nothing but its indices, a futex, a call that only releases the GIL.

All of it in shared memory that two threads or two processes have mapped, each side with a loop of its own that does not
hold the GIL. The side that times returns nanoseconds.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, TIMER_ABSTIME, clock_nanosleep, timespec

from hvcore.linux.atomics cimport cpu_relax, load_acquire32, load_acquire64, store_release32, store_release64
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.syscalls cimport futex_wait, futex_wake

cdef enum:
    LARGEST = 8192
    DATA = 4096                  # where a bare ring's packets begin

# A bare ring: two free-running indices on a cache line each, packets of one size, no descriptor, nothing checked. The
# least that carries a copy from one side to the other.
ctypedef struct Bare:
    uint8_t *base
    uint64_t *in_                # packets written
    uint64_t *out                # packets read
    uint64_t slots
    uint64_t size


cdef int bare_open(Bare *ring, Py_buffer *view, uint64_t size) except -1:
    if not 0 < size <= LARGEST or view.len < <Py_ssize_t> (DATA + size):
        raise ValueError(f"{view.len} bytes are no ring of packets of {size}")
    ring.base = <uint8_t *> view.buf + DATA
    ring.in_ = <uint64_t *> view.buf
    ring.out = <uint64_t *> (<uint8_t *> view.buf + 128)
    ring.slots = (view.len - DATA) // size
    ring.size = size
    return 0


def bare_produce(buffer not None, uint64_t count, uint64_t size, uint64_t burst):
    """`count` packets from private memory, the index published after each `burst` and when the ring is full."""
    cdef Py_buffer view
    cdef Bare ring
    cdef uint8_t[8192] body
    cdef uint64_t sent, end, out, published
    cdef uint8_t *slot
    cdef uint8_t *last
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        bare_open(&ring, &view, size)
        memset(body, 1, sizeof(body))
        with nogil:
            sent = published = ring.in_[0]
            slot = ring.base + sent % ring.slots * size
            last = ring.base + (ring.slots - 1) * size
            out = load_acquire64(ring.out)
            end = sent + count
            while sent != end:
                if sent - out == ring.slots:
                    if published != sent:
                        store_release64(ring.in_, sent)
                        published = sent
                    out = load_acquire64(ring.out)
                    if sent - out == ring.slots:
                        cpu_relax()
                    continue
                memcpy(slot, body, size)
                slot = slot + size if slot != last else ring.base
                sent += 1
                if sent - published == burst:
                    store_release64(ring.in_, sent)
                    published = sent
            store_release64(ring.in_, sent)
    finally:
        PyBuffer_Release(&view)


def bare_consume(buffer not None, uint64_t count, uint64_t size, uint64_t burst):
    """`count` packets into private memory; nanoseconds from the first that is seen to the last that is read."""
    cdef Py_buffer view
    cdef Bare ring
    cdef uint8_t[8192] body
    cdef uint64_t read, end, in_, released
    cdef uint8_t *slot
    cdef uint8_t *last
    cdef uint64_t begin = 0
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        bare_open(&ring, &view, size)
        with nogil:
            read = released = ring.out[0]
            slot = ring.base + read % ring.slots * size
            last = ring.base + (ring.slots - 1) * size
            end = read + count
            in_ = load_acquire64(ring.in_)
            while in_ == read:
                cpu_relax()
                in_ = load_acquire64(ring.in_)
            begin = clock_ns()
            while read != end:
                if in_ == read:
                    if released != read:
                        store_release64(ring.out, read)
                        released = read
                    in_ = load_acquire64(ring.in_)
                    if in_ == read:
                        cpu_relax()
                    continue
                memcpy(body, slot, size)
                slot = slot + size if slot != last else ring.base
                read += 1
                if read - released == burst:
                    store_release64(ring.out, read)
                    released = read
            store_release64(ring.out, read)
            begin = clock_ns() - begin
    finally:
        PyBuffer_Release(&view)
    return begin


@cython.final
cdef class Idle:
    """A call that does nothing but give the GIL up and take it again, and one that does not even that."""

    def call(self):
        with nogil:
            pass

    def held(self):
        pass


# A futex round trip: word 0 goes there, word 16 (another cache line) comes back. Each wait blocks: nobody spins.

cdef int64_t word_wait(uint32_t *word, uint32_t seen) noexcept nogil:
    while load_acquire32(word) == seen:
        futex_wait(word, seen, -1)
    return 0


def futex_answer(buffer not None, uint32_t count):
    """The side that answers: woken `count` times, wakes the other each time."""
    cdef Py_buffer view
    cdef uint32_t *words
    cdef uint32_t seen, _i
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    words = <uint32_t *> view.buf
    with nogil:
        seen = load_acquire32(&words[16])        # as many as were answered
        for _i in range(count):
            word_wait(&words[0], seen)
            seen += 1
            store_release32(&words[16], seen)
            futex_wake(&words[16], 1)
    PyBuffer_Release(&view)


def futex_ask(buffer not None, uint64_t idle_ns):
    """One round trip after `idle_ns` of sleep, both sides blocked in between: nanoseconds."""
    cdef Py_buffer view
    cdef uint32_t *words
    cdef uint32_t seen
    cdef uint64_t begin
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    words = <uint32_t *> view.buf
    with nogil:
        rest(idle_ns)
        seen = words[0]
        begin = clock_ns()
        store_release32(&words[0], seen + 1)
        futex_wake(&words[0], 1)
        word_wait(&words[16], seen)
        begin = clock_ns() - begin
    PyBuffer_Release(&view)
    return begin


cdef void rest(uint64_t idle_ns) noexcept nogil:
    cdef timespec until
    cdef uint64_t end = clock_ns() + idle_ns
    until.tv_sec = <long> (end // 1000000000)
    until.tv_nsec = <long> (end % 1000000000)
    while clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0:
        pass
