"""Event logs: what went wrong or slowly, in a single-writer ring in memory that may be shared."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.linux.atomics cimport (
    count64, fence_acquire, load_acquire64, load_relaxed32, load_relaxed64, store_relaxed64, store_release64)
from hvcore.linux.clock cimport clock_ns
from hvcore.metrics.trace cimport fence_release
from hvcore.errors import ProtocolError

HEADER_BYTES = sizeof(EventHeader)
EVENT_BYTES = sizeof(Event)
PER_SECOND = EVENTS_PER_SECOND
AT_ONCE = EVENTS_AT_ONCE
KINDS = {"slow": EVENT_SLOW, "failed": EVENT_FAILED, "throttled": EVENT_THROTTLED,
         "minimum missed": EVENT_MINIMUM_MISSED, "minimum met": EVENT_MINIMUM_MET}


# Formats.

cdef uint32_t events_capacity(uint64_t size_bytes) noexcept nogil:
    """Events that fit, as a power of two; 0 when not even two do."""
    cdef uint64_t capacity = 1
    if size_bytes < sizeof(EventHeader) + 2 * sizeof(Event):
        return 0
    size_bytes = (size_bytes - sizeof(EventHeader)) // sizeof(Event)
    while capacity * 2 <= size_bytes and capacity < <uint64_t> 1 << 31:
        capacity *= 2
    return <uint32_t> capacity


cdef int check_place(const void *base, uint64_t size_bytes) noexcept nogil:
    return EVENTS_SMALL if events_capacity(size_bytes) == 0 or <size_t> base & 7 else EVENTS_OK


cdef int events_create(EventLog *log, void *base, uint64_t size_bytes) noexcept nogil:
    cdef EventHeader *header = <EventHeader *> base
    if check_place(base, size_bytes) != EVENTS_OK:
        return EVENTS_SMALL
    memset(header, 0, sizeof(EventHeader))
    header.magic = EVENTS_MAGIC
    header.version = EVENTS_VERSION
    header.capacity = events_capacity(size_bytes)
    memset(log, 0, sizeof(EventLog))
    log.slow_ns = &header.slow_ns
    log.header = header
    log.events = <Event *> (header + 1)
    log.mask = header.capacity - 1
    return EVENTS_OK


cdef int events_read_open(EventCursor *cursor, void *base, uint64_t size_bytes) noexcept nogil:
    cdef EventHeader *header = <EventHeader *> base
    if check_place(base, size_bytes) != EVENTS_OK:
        return EVENTS_SMALL
    # The capacity follows from the buffer's own size; the header only has to agree.
    if load_relaxed32(&header.magic) != EVENTS_MAGIC or load_relaxed32(&header.version) != EVENTS_VERSION:
        return EVENTS_FORMAT
    if load_relaxed32(&header.capacity) != events_capacity(size_bytes):
        return EVENTS_FORMAT
    cursor.header = header
    cursor.events = <const Event *> (header + 1)
    cursor.capacity = events_capacity(size_bytes)
    cursor.next = 0
    cursor.lost = 0
    return EVENTS_OK


# Writing.

cdef inline bint has_share(EventLog *log, uint32_t kind, uint64_t now_ns) noexcept nogil:
    """A virtual clock that moves on with each event and may lag by as many as come at once."""
    cdef uint64_t step = 1000000000 // EVENTS_PER_SECOND
    cdef uint64_t due = log.due_ns[kind]
    if due > now_ns:
        return False
    if due + (EVENTS_AT_ONCE - 1) * step < now_ns:
        due = now_ns - (EVENTS_AT_ONCE - 1) * step
    log.due_ns[kind] = due + step
    return True


cdef bint events_write(EventLog *log, Event *event) noexcept nogil:
    cdef uint32_t kind = event.kind & (EVENT_KINDS - 1)
    cdef uint64_t *place
    cdef const uint64_t *words = <const uint64_t *> event
    cdef int i
    if log.header == NULL:
        return False
    if not has_share(log, kind, event.time_ns):
        log.suppressed[kind] += 1
        count64(&log.header.suppressed[kind], 1)
        return False
    event.suppressed = log.suppressed[kind]
    log.suppressed[kind] = 0
    place = <uint64_t *> &log.events[log.head & log.mask]
    # Orders the last publication of head before the stores below: a reader that sees any word of this event then also
    # sees that head, and knows that the event which was here is being overwritten.
    fence_release()
    for i in range(EVENT_WORDS):
        store_relaxed64(&place[i], words[i])
    log.head += 1
    # Release: who sees the new head sees the event whole.
    store_release64(&log.header.head, log.head)
    return True


cdef bint events_minimum(EventLog *log, bint missed, uint64_t time_ns, uint64_t trace_id, uint64_t wanted_iops,
                         uint64_t got_iops, uint64_t wanted_bandwidth, uint64_t got_bandwidth,
                         uint32_t busy_percent) noexcept nogil:
    cdef Event event
    memset(&event, 0, sizeof(Event))
    event.kind = EVENT_MINIMUM_MISSED if missed else EVENT_MINIMUM_MET
    event.time_ns = time_ns
    event.trace_id = trace_id
    event.transaction_id = wanted_iops
    event.lba = got_iops
    event.length = wanted_bandwidth
    event.latency_ns = got_bandwidth
    event.busy_percent = <uint8_t> min(busy_percent, <uint32_t> 100)
    return events_write(log, &event)


# Reading.

cdef inline uint64_t oldest(const EventCursor *cursor, uint64_t head) noexcept nogil:
    """The oldest event that nobody is overwriting when the sequence is `head`: the writer may already be at work on
    event `head`, in the place of event head - capacity."""
    return head - cursor.capacity + 1 if head >= cursor.capacity else 0


cdef int events_collect(EventCursor *cursor, Event *out, uint32_t *first, uint32_t *count) noexcept nogil:
    # Acquire: the events before this head are visible whole.
    cdef uint64_t head = load_acquire64(&cursor.header.head)
    cdef uint64_t begin, intact, i
    cdef const uint64_t *place
    cdef uint64_t *copy
    cdef int word
    first[0] = 0
    count[0] = 0
    if head < cursor.next:
        return EVENTS_BACKWARD
    begin = max(oldest(cursor, head), cursor.next)
    for i in range(begin, head):
        place = <const uint64_t *> &cursor.events[i & (cursor.capacity - 1)]
        copy = <uint64_t *> &out[i - begin]
        for word in range(EVENT_WORDS):
            copy[word] = load_relaxed64(&place[word])
    # Acquire fence against the writer's release fence: if a word copied above came from a later event s, then the head
    # loaded below is at least s, and the event is dropped.
    fence_acquire()
    intact = oldest(cursor, load_relaxed64(&cursor.header.head))
    # A hostile head only makes events vanish: what is kept lies between begin and head in any case.
    intact = min(max(intact, begin), head)
    cursor.lost += intact - cursor.next
    cursor.next = head
    first[0] = <uint32_t> (intact - begin)
    count[0] = <uint32_t> (head - intact)
    return EVENTS_OK


# Python.

cdef dict decoded(const Event *event):
    names = {number: name for name, number in KINDS.items()}
    found = {
        "kind": names.get(event.kind, f"kind {event.kind}"),
        "time_ns": event.time_ns,
        "vm": event.trace_id >> 48,
        "disk": event.trace_id >> 40 & 0xff,
        "suppressed": event.suppressed,
    }
    if event.kind == EVENT_MINIMUM_MISSED or event.kind == EVENT_MINIMUM_MET:
        found["wanted_iops"], found["got_iops"] = event.transaction_id, event.lba
        found["wanted_bandwidth"], found["got_bandwidth"] = event.length, event.latency_ns
        found["busy_percent"] = event.busy_percent
        return found
    found["trace_id"], found["transaction_id"] = event.trace_id, event.transaction_id
    found["opcode"], found["lba"], found["length"] = event.opcode, event.lba, event.length
    found["latency_ns"] = event.latency_ns or None
    found["srb_status"], found["scsi_status"] = event.srb_status, event.scsi_status
    found["sense_key"], found["asc"], found["ascq"] = event.sense_key, event.asc, event.ascq
    return found


cdef int check(int status, Py_ssize_t size_bytes) except -1:
    if status == EVENTS_SMALL:
        raise ValueError(
            f"an event log needs {sizeof(EventHeader) + 2 * sizeof(Event)} bytes or more, aligned to 8: "
            f"the buffer has {size_bytes}")
    if status == EVENTS_FORMAT:
        raise ProtocolError(f"no event log of version {EVENTS_VERSION} that fills {size_bytes} bytes")
    return 0


@cython.final
cdef class EventWriter:
    """The one writer of an event log, which it formats in a writable buffer and keeps alive. One thread at a time."""

    cdef EventLog log
    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.held = True
        check(events_create(&self.log, self.view.buf, self.view.len), self.view.len)

    @property
    def capacity(self):
        """Events. A reader can get the last capacity - 1 of them."""
        return self.log.mask + 1

    @property
    def slow_ns(self):
        """What is slow now; 0: nothing is."""
        return events_slow_ns(&self.log)

    def slow(self, uint64_t latency_ns):
        """Whether a request of this latency would be reported as slow."""
        return events_slow(&self.log, latency_ns)

    def write(self, str kind, uint64_t trace_id=0, *, time_ns=None, uint64_t transaction_id=0, uint64_t lba=0,
              uint64_t length=0, uint64_t latency_ns=0, uint8_t opcode=0, uint8_t srb_status=0, uint8_t scsi_status=0,
              uint8_t sense_key=0, uint8_t asc=0, uint8_t ascq=0):
        """Writes an event of a request with the time of now, if the rate of its kind allows; whether it did."""
        cdef Event event
        memset(&event, 0, sizeof(Event))
        event.time_ns = clock_ns() if time_ns is None else time_ns
        event.kind = KINDS[kind]
        event.trace_id, event.transaction_id = trace_id, transaction_id
        event.lba, event.length, event.latency_ns = lba, length, latency_ns
        event.opcode, event.srb_status, event.scsi_status = opcode, srb_status, scsi_status
        event.sense_key, event.asc, event.ascq = sense_key, asc, ascq
        return events_write(&self.log, &event)

    def write_minimum(self, bint missed, uint64_t trace_id=0, *, uint64_t wanted_iops=0, uint64_t got_iops=0,
                      uint64_t wanted_bandwidth=0, uint64_t got_bandwidth=0, uint32_t busy_percent=100):
        """Writes that a minimum was missed or is met again, with the time of now; whether it did."""
        return events_minimum(&self.log, missed, clock_ns(), trace_id, wanted_iops, got_iops, wanted_bandwidth,
                              got_bandwidth, busy_percent)

    def write_run(self, uint64_t trace_id, uint64_t count):
        """`count` failed requests without the GIL, to measure and to race: far apart by their own clock, so that none
        is held back; every number of theirs follows the trace id, which counts up."""
        cdef Event event
        cdef uint64_t i
        with nogil:
            memset(&event, 0, sizeof(Event))
            event.kind = EVENT_FAILED
            for i in range(trace_id, trace_id + count):
                event.time_ns = (i + 1) * 1000000000
                event.trace_id = event.transaction_id = event.lba = event.length = event.latency_ns = i
                event.opcode = event.srb_status = event.scsi_status = <uint8_t> i
                event.sense_key = event.asc = event.ascq = <uint8_t> i
                events_write(&self.log, &event)

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


@cython.final
cdef class EventReader:
    """A reader of an event log in a writable buffer (to set what is slow), which it keeps alive.

    ProtocolError when the buffer holds no log of its own size. Nothing in the buffer is trusted: a hostile writer can
    make events wrong or vanish, never reach beyond the buffer. One thread at a time; any number of readers.
    """

    cdef EventCursor cursor
    cdef Event *copies
    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.held = True
        check(events_read_open(&self.cursor, self.view.buf, self.view.len), self.view.len)
        self.copies = <Event *> PyMem_Malloc(self.cursor.capacity * sizeof(Event))
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
    def slow_ns(self):
        """A request that takes so long or longer is reported; 0: none is. Settable while the writer is at work."""
        return load_relaxed64(&self.cursor.header.slow_ns)

    @slow_ns.setter
    def slow_ns(self, uint64_t ns):
        store_relaxed64(&self.cursor.header.slow_ns, ns)

    @property
    def suppressed(self):
        """Events held back by the rate of their kind since the log was made, by kind."""
        return {name: load_relaxed64(&self.cursor.header.suppressed[<int> number]) for name, number in KINDS.items()}

    def collect(self):
        """The events since the last call, whole, oldest first, at most the last capacity - 1 of them, as dicts:

        kind, time_ns (CLOCK_MONOTONIC), vm and disk (numbers, as in a trace id), suppressed (events of the kind held
        back just before this one); of a request: trace_id, transaction_id, opcode, lba, length (bytes), latency_ns
        (None: not measured), srb_status, scsi_status, sense_key, asc, ascq; of a minimum: wanted_iops, got_iops,
        wanted_bandwidth, got_bandwidth (per second), busy_percent. ProtocolError when the writer's sequence went back.
        """
        cdef uint32_t first, count, i
        cdef int status
        with nogil:
            status = events_collect(&self.cursor, self.copies, &first, &count)
        if status == EVENTS_BACKWARD:
            raise ProtocolError(f"the event log went back behind event {self.cursor.next}")
        return [decoded(&self.copies[first + i]) for i in range(count)]

    def __dealloc__(self):
        PyMem_Free(self.copies)
        if self.held:
            PyBuffer_Release(&self.view)
