"""Trace rings: single-writer event rings in shared memory."""

from collections import namedtuple
import struct

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from hvcore.linux.atomics cimport fence_acquire, load_relaxed64
from hvcore.errors import ProtocolError

HEADER_BYTES = sizeof(TraceHeader)
EVENT_BYTES = sizeof(TraceEvent)
EVENT_FORMAT = "=QQQII"
Event = namedtuple("Event", "time_ns trace_id key hop channel")


cdef uint32_t trace_capacity(uint64_t size_bytes) noexcept nogil:
    cdef uint64_t capacity = 1
    if size_bytes < sizeof(TraceHeader) + 2 * sizeof(TraceEvent):
        return 0
    size_bytes = (size_bytes - sizeof(TraceHeader)) // sizeof(TraceEvent)
    while capacity * 2 <= size_bytes and capacity < <uint64_t> 1 << 31:
        capacity *= 2
    return <uint32_t> capacity


cdef int check_place(const void *base, uint64_t size_bytes) noexcept nogil:
    return TRACE_SMALL if trace_capacity(size_bytes) == 0 or <size_t> base & 7 else TRACE_OK


cdef int check_format(const TraceHeader *header, uint64_t size_bytes) noexcept nogil:
    """The capacity follows from the buffer's own size; the header only has to agree."""
    if load_relaxed32(&header.magic) != TRACE_MAGIC or load_relaxed32(&header.version) != TRACE_VERSION:
        return TRACE_FORMAT
    return TRACE_OK if load_relaxed32(&header.capacity) == trace_capacity(size_bytes) else TRACE_FORMAT


cdef void bind(TraceRing *ring, void *base, uint64_t size_bytes) noexcept nogil:
    ring.header = <TraceHeader *> base
    ring.enabled = &ring.header.enabled
    ring.events = <TraceEvent *> (ring.header + 1)
    ring.mask = trace_capacity(size_bytes) - 1
    ring.head = load_relaxed64(&ring.header.head)


cdef int trace_create(TraceRing *ring, void *base, uint64_t size_bytes) noexcept nogil:
    cdef TraceHeader *header = <TraceHeader *> base
    if check_place(base, size_bytes) != TRACE_OK:
        return TRACE_SMALL
    memset(header, 0, sizeof(TraceHeader))
    header.magic = TRACE_MAGIC
    header.version = TRACE_VERSION
    header.capacity = trace_capacity(size_bytes)
    bind(ring, base, size_bytes)
    return TRACE_OK


cdef int trace_open(TraceRing *ring, void *base, uint64_t size_bytes) noexcept nogil:
    if check_place(base, size_bytes) != TRACE_OK:
        return TRACE_SMALL
    if check_format(<TraceHeader *> base, size_bytes) != TRACE_OK:
        return TRACE_FORMAT
    bind(ring, base, size_bytes)
    return TRACE_OK


cdef int trace_read_open(TraceCursor *cursor, void *base, uint64_t size_bytes) noexcept nogil:
    if check_place(base, size_bytes) != TRACE_OK:
        return TRACE_SMALL
    if check_format(<TraceHeader *> base, size_bytes) != TRACE_OK:
        return TRACE_FORMAT
    cursor.header = <TraceHeader *> base
    cursor.events = <const TraceEvent *> (cursor.header + 1)
    cursor.capacity = trace_capacity(size_bytes)
    cursor.next = 0
    cursor.lost = 0
    return TRACE_OK


cdef inline uint64_t oldest(const TraceCursor *cursor, uint64_t head) noexcept nogil:
    """The oldest event that nobody is overwriting when the sequence is `head`: the writer may already be at work on
    event `head`, in the place of event head - capacity."""
    return head - cursor.capacity + 1 if head >= cursor.capacity else 0


cdef int trace_collect(TraceCursor *cursor, TraceEvent *out, uint32_t *first, uint32_t *count) noexcept nogil:
    # Acquire: the events before this head are visible whole.
    cdef uint64_t head = load_acquire64(&cursor.header.head)
    cdef uint64_t begin, i, intact
    cdef const TraceEvent *event
    cdef TraceEvent *copy
    first[0] = 0
    count[0] = 0
    if head < cursor.next:
        return TRACE_BACKWARD
    begin = oldest(cursor, head)
    if begin < cursor.next:
        begin = cursor.next
    for i in range(begin, head):
        event = &cursor.events[i & (cursor.capacity - 1)]
        copy = &out[i - begin]
        copy.time_ns = load_relaxed64(&event.time_ns)
        copy.trace_id = load_relaxed64(&event.trace_id)
        copy.key = load_relaxed64(&event.key)
        copy.hop = load_relaxed32(&event.hop)
        copy.channel = load_relaxed32(&event.channel)
    # Acquire fence against the writer's release fence: if a word copied above came from a later event s, then the head
    # loaded below is at least s, and the event is dropped.
    fence_acquire()
    intact = oldest(cursor, load_relaxed64(&cursor.header.head))
    # A hostile head only makes events vanish: what is kept lies between begin and head in any case.
    if intact < begin:
        intact = begin
    elif intact > head:
        intact = head
    cursor.lost += intact - cursor.next
    cursor.next = head
    first[0] = <uint32_t> (intact - begin)
    count[0] = <uint32_t> (head - intact)
    return TRACE_OK


def decode(events):
    """The Event tuples in what TraceReader.collect() returned."""
    return [Event(*fields) for fields in struct.iter_unpack(EVENT_FORMAT, events)]


cdef int check(int status, Py_ssize_t size_bytes) except -1:
    if status == TRACE_SMALL:
        raise ValueError(
            f"a trace ring needs {sizeof(TraceHeader) + 2 * sizeof(TraceEvent)} bytes or more, aligned to 8: "
            f"the buffer has {size_bytes}")
    if status == TRACE_FORMAT:
        raise ProtocolError(f"no trace ring of version {TRACE_VERSION} that fills {size_bytes} bytes")
    return 0


@cython.final
cdef class TraceWriter:
    """The one writer of a trace ring in a writable buffer, which it keeps alive.

    create(buffer) formats the ring, attach(buffer) goes on in one that exists (ProtocolError when there is none). One
    thread at a time.
    """

    cdef TraceRing ring
    cdef Py_buffer view
    cdef bint held

    def __cinit__(self):
        trace_off(&self.ring)

    @staticmethod
    def create(buffer):
        """Formats the largest ring that fits the buffer; it is off."""
        cdef TraceWriter self = TraceWriter.__new__(TraceWriter)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.held = True
        check(trace_create(&self.ring, self.view.buf, self.view.len), self.view.len)
        return self

    @staticmethod
    def attach(buffer):
        """Goes on writing in a ring that create() made in this buffer."""
        cdef TraceWriter self = TraceWriter.__new__(TraceWriter)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.held = True
        check(trace_open(&self.ring, self.view.buf, self.view.len), self.view.len)
        return self

    @property
    def capacity(self):
        """Events. A reader can get the last capacity - 1 of them."""
        return self.ring.mask + 1

    def enable(self, bint on):
        """Turns tracing on or off, for this writer."""
        store_relaxed32(&self.ring.header.enabled, on)

    def stamp(self, uint64_t trace_id, uint64_t key=0, uint32_t hop=0, uint32_t channel=0):
        """Writes one event with the time of now, if tracing is on."""
        trace_stamp(&self.ring, trace_id, key, hop, channel)

    def stamp_run(self, uint64_t trace_id, uint64_t count):
        """`count` stamps without the GIL, to measure and to race: key, hop and channel follow the trace id, which
        counts up."""
        cdef uint64_t i
        with nogil:
            for i in range(trace_id, trace_id + count):
                trace_stamp(&self.ring, i, i, <uint32_t> i, <uint32_t> i)

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


@cython.final
cdef class TraceReader:
    """A reader of a trace ring in a writable buffer (to turn tracing on), which it keeps alive.

    ProtocolError when the buffer holds no ring of its own size. Nothing in the buffer is trusted: a hostile writer can
    make events wrong or vanish, never reach beyond the buffer. One thread at a time; any number of readers.
    """

    cdef TraceCursor cursor
    cdef TraceEvent *copies
    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.held = True
        check(trace_read_open(&self.cursor, self.view.buf, self.view.len), self.view.len)
        self.copies = <TraceEvent *> PyMem_Malloc(self.cursor.capacity * sizeof(TraceEvent))
        if self.copies == NULL:
            raise MemoryError

    @property
    def capacity(self):
        return self.cursor.capacity

    @property
    def lost(self):
        """Events that were overwritten before a collect() came for them, since this reader was made."""
        return self.cursor.lost

    @property
    def enabled(self):
        return load_relaxed32(&self.cursor.header.enabled) != 0

    def enable(self, bint on):
        """Turns tracing on or off, for the writer."""
        store_relaxed32(&self.cursor.header.enabled, on)

    def collect(self):
        """The events since the last call, whole, oldest first, as bytes in EVENT_FORMAT for decode(); at most the last
        capacity - 1. ProtocolError when the writer's sequence went back."""
        cdef uint32_t first, count
        cdef int status
        with nogil:
            status = trace_collect(&self.cursor, self.copies, &first, &count)
        if status == TRACE_BACKWARD:
            raise ProtocolError(f"the trace ring went back behind event {self.cursor.next}")
        return PyBytes_FromStringAndSize(<char *> (self.copies + first), count * sizeof(TraceEvent))

    def __dealloc__(self):
        PyMem_Free(self.copies)
        if self.held:
            PyBuffer_Release(&self.view)
