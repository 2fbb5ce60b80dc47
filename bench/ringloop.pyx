"""Loops around the ring without the GIL, and the floor beneath them: one cache line passed between two threads.

Peers spin; run the two ends of a loop in two threads, each on a CPU of its own. The side that times does so from the
first packet it sees to the last, and returns nanoseconds: what it takes to start a thread is in no figure.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from hvcore.linux.atomics cimport cpu_relax, load_acquire32, store_release32
from hvcore.linux.clock cimport clock_ns
from hvcore.vmbus.abi cimport PACKET_IN_BAND, PAGE_SIZE, RingControl
from hvcore.vmbus.ring cimport (
    RING_EMPTY, RING_FULL, RING_HOST, RingView, ring_open_reader, ring_open_writer, ring_poll, ring_publish, ring_put,
    ring_release, ring_take)

cdef enum:
    LARGEST = 8192


cdef class Ends:
    """Writer and reader of a fresh ring with consecutive pages in a buffer, and a private packet for each."""

    cdef Py_buffer view
    cdef uint8_t **pages
    cdef RingView writer
    cdef RingView reader
    cdef uint8_t body[LARGEST]
    cdef uint8_t packet[LARGEST]

    def __cinit__(self, buffer):
        cdef uint32_t page
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        memset(self.view.buf, 0, self.view.len)
        cdef uint32_t count = <uint32_t> (self.view.len // PAGE_SIZE)
        self.pages = <uint8_t **> malloc(count * sizeof(uint8_t *))
        for page in range(count):
            self.pages[page] = <uint8_t *> self.view.buf + page * PAGE_SIZE
        cdef RingControl *control = <RingControl *> self.pages[0]
        ring_open_writer(&self.writer, control, self.pages + 1, (count - 1) * PAGE_SIZE, RING_HOST)
        ring_open_reader(&self.reader, control, self.pages + 1, (count - 1) * PAGE_SIZE, RING_HOST)

    def __dealloc__(self):
        free(self.pages)
        PyBuffer_Release(&self.view)

    cdef int send(self, uint32_t size) noexcept nogil:
        """One packet, published; waits for room."""
        cdef int status = ring_put(&self.writer, PACKET_IN_BAND, 0, 1, NULL, 0, self.body, size)
        while status == RING_FULL:
            cpu_relax()
            status = ring_put(&self.writer, PACKET_IN_BAND, 0, 1, NULL, 0, self.body, size)
        return status if status else ring_publish(&self.writer)

    cdef int receive(self) noexcept nogil:
        """One packet, released; waits for it."""
        cdef uint32_t length
        while not ring_poll(&self.reader):
            cpu_relax()
        cdef int status = ring_take(&self.reader, self.packet, LARGEST, &length)
        return status if status else ring_release(&self.reader)


def local(Ends ring not None, uint64_t count, uint32_t size):
    """Sends and receives `count` packets one by one in this thread: the instructions alone."""
    cdef uint64_t _
    cdef uint64_t begin
    cdef int status = 0
    with nogil:
        begin = clock_ns()
        for _ in range(count):
            status |= ring.send(size)
            status |= ring.receive()
        begin = clock_ns() - begin
    assert status >= 0
    return begin


def produce(Ends ring not None, uint64_t count, uint32_t size, uint64_t burst):
    """`count` packets, `burst` of them per publication."""
    cdef uint64_t i
    cdef uint64_t staged = 0
    cdef int status = 0
    with nogil:
        for i in range(count):
            while ring_put(&ring.writer, PACKET_IN_BAND, 0, i, NULL, 0, ring.body, size) == RING_FULL:
                status |= ring_publish(&ring.writer)
                cpu_relax()
            staged += 1
            if staged == burst:
                staged = 0
                status |= ring_publish(&ring.writer)
        status |= ring_publish(&ring.writer)
    assert status >= 0


def consume(Ends ring not None, uint64_t count, uint64_t burst):
    """`count` packets; Out is published after `burst` packets, or when the ring is empty."""
    cdef uint64_t taken = 0
    cdef uint64_t held = 0
    cdef uint32_t length
    cdef uint64_t begin
    cdef int got
    cdef int status = 0
    with nogil:
        while not ring_poll(&ring.reader):
            cpu_relax()
        begin = clock_ns()
        while taken < count and status >= 0:
            got = ring_take(&ring.reader, ring.packet, LARGEST, &length)
            if got == RING_EMPTY:
                status |= ring_release(&ring.reader)
                held = 0
                while not ring_poll(&ring.reader):
                    cpu_relax()
                continue
            status |= got
            taken += 1
            held += 1
            if held == burst:
                held = 0
                status |= ring_release(&ring.reader)
        status |= ring_release(&ring.reader)
        begin = clock_ns() - begin
    assert status >= 0
    return begin


def ping(Ends there not None, Ends back not None, uint64_t count, uint32_t size):
    """`count` round trips, and one before the clock starts, seen from the side that begins."""
    cdef uint64_t _
    cdef uint64_t begin
    cdef int status = 0
    with nogil:
        status |= there.send(size)
        status |= back.receive()
        begin = clock_ns()
        for _ in range(count):
            status |= there.send(size)
            status |= back.receive()
        begin = clock_ns() - begin
    assert status >= 0
    return begin


def pong(Ends there not None, Ends back not None, uint64_t count, uint32_t size):
    cdef uint64_t _
    cdef int status = 0
    with nogil:
        for _ in range(count + 1):
            status |= there.receive()
            status |= back.send(size)
    assert status >= 0


def line_pass(buffer, uint32_t count, bint first):
    """`count` round trips of one cache line, and one before: each side waits for its number and writes the next."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    cdef uint32_t *word = <uint32_t *> view.buf
    cdef uint32_t i
    cdef uint32_t mine = 0 if first else 1
    cdef uint64_t begin = 0
    with nogil:
        for i in range(count + 1):
            while load_acquire32(word) != 2 * i + mine:
                cpu_relax()
            if i == 1:
                begin = clock_ns()
            store_release32(word, 2 * i + mine + 1)
        while load_acquire32(word) != 2 * count + 2:
            cpu_relax()
        begin = clock_ns() - begin
    PyBuffer_Release(&view)
    return begin
