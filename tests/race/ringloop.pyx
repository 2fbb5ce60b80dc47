"""Both ends of rings as loops without the GIL, with the whole waiting protocol, and a peer that scribbles.

Loops run in threads at once: one of the host, which may produce for several rings, and one of the guest for each ring.
They share the rings, one event page, on whose sleep word all threads of the guest wait, and one doorbell.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from hvcore.linux.atomics cimport exchange64, load_acquire64, store_relaxed64, store_release32
from hvcore.vmbus.abi cimport PACKET_IN_BAND, PAGE_SIZE, RingControl
from hvcore.vmbus.events cimport (
    EventPage, event_guest_clear, event_guest_pending, event_guest_sleeps, event_guest_wait, event_host_clear,
    event_host_pending, event_host_sleeps, event_host_wakes, event_signal_guest, event_signal_host)
from hvcore.vmbus.ring cimport (
    RING_CORRUPT, RING_EMPTY, RING_FULL, RING_GUEST, RING_HOST, RING_OK, RingView, ring_free, ring_mask,
    ring_open_reader, ring_open_writer, ring_poll, ring_publish, ring_put, ring_release, ring_take, ring_unmask,
    ring_want, ring_want_no_more)

cdef extern from "<sys/epoll.h>" nogil:
    struct epoll_event:
        uint32_t events
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef enum:
    LARGEST = 4096               # payload bytes
    WORDS = 514                  # of the largest packet
    LOST_WAKE_UP = -100
    WRONG_BYTES = -101

    RINGS = 4

# Longer than any loop: a wait that ends by it was never woken.
cdef int64_t PATIENCE_NS = 60 * 1000000000


ctypedef struct End:
    EventPage *page
    uint32_t relid
    int role                     # RingRole
    int doorbell
    int epoll                    # of the doorbell, edge-triggered


ctypedef struct Run:
    uint64_t packets
    uint64_t signals
    uint64_t waits


cdef void end_signal(const End *end) noexcept nogil:
    """The peer."""
    if end.role == RING_HOST:
        event_signal_guest(end.page, end.relid)
    else:
        event_signal_host(end.page, end.relid, end.doorbell)


cdef void end_clear(const End *end) noexcept nogil:
    if end.role == RING_HOST:
        event_host_clear(end.page)
    else:
        event_guest_clear(end.page, end.relid)


cdef int end_wait(const End *end, const RingView *reader) noexcept nogil:
    """Blocks until the peer signals; 1 = blocked. A writer (reader is NULL) looks at nothing but its flag once more:
    whoever makes room must raise it."""
    cdef epoll_event event
    cdef uint32_t word = 0
    cdef int status = 0
    cdef bint ready
    if end.role == RING_HOST:
        event_host_sleeps(end.page)
        ready = event_host_pending(end.page)
    else:
        word = event_guest_sleeps(end.page)
        ready = event_guest_pending(end.page, end.relid)
    if reader != NULL:
        ready = ready or ring_poll(reader)
    if not ready:
        if end.role == RING_HOST:
            status = 1 if epoll_wait(end.epoll, &event, 1, PATIENCE_NS // 1000000) == 1 else LOST_WAKE_UP
        else:
            status = LOST_WAKE_UP if event_guest_wait(end.page, word, PATIENCE_NS) == -ETIMEDOUT else 1
    if end.role == RING_HOST:
        event_host_wakes(end.page)
    return status


cdef uint32_t dice(uint64_t *state, uint32_t sides) noexcept nogil:
    """xorshift: 0 .. sides - 1."""
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return <uint32_t> (state[0] >> 32) % sides


cdef int produce_publish(RingView *rings, const End *ends, int n, Run *run) noexcept nogil:
    cdef int i, status
    for i in range(n):
        status = ring_publish(&rings[i])
        if status < 0:
            return status
        if status:
            run.signals += 1
            end_signal(&ends[i])
    return RING_OK


cdef int produce_loop(RingView *rings, const End *ends, int n, uint64_t count, uint32_t largest, uint64_t seed,
                      Run *run) noexcept nogil:
    """`count` packets into each of the n rings, in any order among rings."""
    cdef uint8_t body[LARGEST]
    cdef uint64_t sent[RINGS]
    cdef uint32_t length
    cdef uint32_t wanted
    cdef uint32_t i
    cdef uint32_t burst = 1
    cdef int to
    cdef int status
    for to in range(n):
        sent[to] = 0
    while run.packets < count * n:
        to = dice(&seed, n)
        while sent[to] == count:
            to = (to + 1) % n
        length = 1 + dice(&seed, largest)
        wanted = 16 + (length + 7) // 8 * 8 + 8
        for i in range(length):
            body[i] = <uint8_t> (sent[to] + i)
        status = ring_put(&rings[to], PACKET_IN_BAND, 0, sent[to], NULL, 0, body, length)
        while status == RING_FULL:
            status = produce_publish(rings, ends, n, run)
            if status < 0:
                return status
            end_clear(&ends[to])
            status = ring_want(&rings[to], wanted)
            if status < 0:
                return status
            if status == 0:
                status = end_wait(&ends[to], NULL)
                if status < 0:
                    return status
                run.waits += status
            status = ring_put(&rings[to], PACKET_IN_BAND, 0, sent[to], NULL, 0, body, length)
            if status == RING_OK:
                ring_want_no_more(&rings[to])
        if status < 0:
            return status
        sent[to] += 1
        run.packets += 1
        burst -= 1
        if burst == 0 or run.packets == count * n:
            burst = 1 + dice(&seed, 4)
            status = produce_publish(rings, ends, n, run)
            if status < 0:
                return status
    return RING_OK


cdef int consume_loop(RingView *ring, const End *end, uint64_t count, uint64_t seed, Run *run) noexcept nogil:
    cdef uint64_t packet[WORDS]
    cdef uint8_t *bytes_ = <uint8_t *> packet
    cdef uint32_t length
    cdef uint32_t burst
    cdef uint32_t i
    cdef int due
    cdef int status
    while True:
        end_clear(end)                       # the flag before the ring (EV-1)
        ring_mask(ring)
        status = RING_OK
        while status == RING_OK:
            burst = 1 + dice(&seed, 4)
            while burst:
                status = ring_take(ring, bytes_, sizeof(packet), &length)
                if status != RING_OK:
                    break
                burst -= 1
                if packet[1] != run.packets:
                    return WRONG_BYTES
                # The last 8 bytes may be padding.
                for i in range(length - 16 - 7):
                    if bytes_[16 + i] != <uint8_t> (run.packets + i):
                        return WRONG_BYTES
                run.packets += 1
            if status < 0:
                return status
            due = ring_release(ring)
            if due < 0:
                return due
            if due:
                run.signals += 1
                end_signal(end)
        status = ring_unmask(ring)
        if status < 0 or run.packets == count:
            return status
        if status == 0:
            status = end_wait(end, ring)
            if status < 0:
                return status
            run.waits += status


cdef uint64_t scribble_loop(uint8_t *control, uint8_t **pages, uint32_t size, const uint64_t *stop,
                            uint64_t seed) noexcept nogil:
    """Control words and data as a hostile peer leaves them: offsets of the ring, descriptors and noise; until *stop."""
    cdef uint64_t count = 0
    cdef uint64_t word
    cdef uint32_t at
    while load_acquire64(stop) == 0:
        count += 1
        at = dice(&seed, size // 8) * 8
        # Mostly good descriptors, so that the victim also gets as far as copying while the bytes change.
        word = PACKET_IN_BAND | 2 << 16 | <uint64_t> (2 + dice(&seed, 80)) << 32
        if dice(&seed, 64) == 0:
            word ^= <uint64_t> 1 << dice(&seed, 64)
        store_relaxed64(<uint64_t *> (pages[at // PAGE_SIZE] + at % PAGE_SIZE), word)
        if dice(&seed, 4) == 0:
            store_release32(<uint32_t *> (control + 4 * dice(&seed, 4)), dice(&seed, size) & ~7)
        if dice(&seed, 1024) == 0:
            store_release32(<uint32_t *> (control + 4 * dice(&seed, 4)), <uint32_t> seed)
    return count


cdef int victim_loop(RingControl *control, uint8_t **pages, uint32_t size, int role, uint64_t count, uint64_t seed,
                     Run *run) noexcept nogil:
    """Every call of both ends while a peer scribbles; an end that dies is opened again. Statuses must be in range."""
    cdef RingView writer
    cdef RingView reader
    cdef uint64_t packet[WORDS]
    cdef uint64_t body[512]
    cdef uint32_t length
    cdef uint32_t at
    cdef uint64_t i
    cdef int status
    ring_open_writer(&writer, control, pages, size, role)
    ring_open_reader(&reader, control, pages, size, role)
    # Wherever a scribbled Out points, there is a descriptor: the reader lives long enough to copy.
    for at in range(512):
        body[at] = PACKET_IN_BAND | 2 << 16 | <uint64_t> (2 + at % 40) << 32
    for i in range(count):
        if ring_put(&writer, PACKET_IN_BAND, 0, i, NULL, 0, body, dice(&seed, LARGEST)) > RING_FULL:
            return WRONG_BYTES
        if dice(&seed, 2):
            ring_publish(&writer)
        ring_want(&writer, dice(&seed, size))
        if ring_free(&writer) > size:
            return WRONG_BYTES
        if writer.dead:
            if ring_publish(&writer) != RING_CORRUPT:
                return WRONG_BYTES
            ring_open_writer(&writer, control, pages, size, role)
        status = ring_take(&reader, <uint8_t *> packet, sizeof(packet), &length)
        if status > RING_EMPTY or (status == RING_OK and (length < 16 or length > sizeof(packet))):
            return WRONG_BYTES
        run.packets += status == RING_OK
        ring_release(&reader)
        ring_mask(&reader)
        ring_unmask(&reader)
        if reader.dead:
            run.signals += 1
            if ring_take(&reader, <uint8_t *> packet, sizeof(packet), &length) != RING_CORRUPT:
                return WRONG_BYTES
            ring_open_reader(&reader, control, pages, size, role)
    return RING_OK


cdef class Shared:
    """A ring's pages in a buffer."""

    cdef Py_buffer ring
    cdef uint8_t **pages
    cdef uint32_t size
    cdef uint64_t stop           # the victim has finished

    def __cinit__(self, buffer, pages):
        PyObject_GetBuffer(buffer, &self.ring, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.size = <uint32_t> (len(pages) - 1) * PAGE_SIZE
        self.pages = <uint8_t **> malloc(len(pages) * sizeof(uint8_t *))
        for i, page in enumerate(pages):
            self.pages[<size_t> i] = <uint8_t *> self.ring.buf + <size_t> page * PAGE_SIZE

    def __dealloc__(self):
        free(self.pages)
        PyBuffer_Release(&self.ring)


cdef class Events:
    """An event page in a buffer, the guest's doorbell, and an epoll of it for the host."""

    cdef Py_buffer page
    cdef End end

    def __cinit__(self, buffer, int doorbell, int epoll):
        PyObject_GetBuffer(buffer, &self.page, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.end.page = <EventPage *> self.page.buf
        self.end.doorbell = doorbell
        self.end.epoll = epoll

    def __dealloc__(self):
        PyBuffer_Release(&self.page)


def produce(Events events not None, list rings, uint64_t count, uint32_t largest, uint64_t seed, bint host):
    """Sends `count` packets through each ring, the i-th with relid i; (status, packets, signals, waits)."""
    cdef RingView views[RINGS]
    cdef End ends[RINGS]
    cdef Run run = Run(0, 0, 0)
    cdef Shared shared
    cdef int n = len(rings)
    cdef int i
    cdef int status = RING_OK
    for i in range(n):
        shared = rings[i]
        ends[i] = events.end
        ends[i].role = RING_HOST if host else RING_GUEST
        ends[i].relid = i
        status = status or ring_open_writer(&views[i], <RingControl *> shared.pages[0], shared.pages + 1, shared.size,
                                            ends[i].role)
    with nogil:
        if status == RING_OK:
            status = produce_loop(views, ends, n, count, largest, seed, &run)
    return status, run.packets, run.signals, run.waits


def consume(Events events not None, Shared shared not None, uint32_t relid, uint64_t count, uint64_t seed, bint host):
    """Receives and checks `count` packets; (status, packets, signals, waits)."""
    cdef RingView ring
    cdef End end = events.end
    cdef Run run = Run(0, 0, 0)
    cdef int status
    end.role = RING_HOST if host else RING_GUEST
    end.relid = relid
    with nogil:
        status = ring_open_reader(&ring, <RingControl *> shared.pages[0], shared.pages + 1, shared.size, end.role)
        if status == RING_OK:
            status = consume_loop(&ring, &end, count, seed, &run)
    return status, run.packets, run.signals, run.waits


def scribble(Shared shared not None, uint64_t seed):
    """Until the victim has finished; how often."""
    cdef uint64_t count
    with nogil:
        count = scribble_loop(shared.pages[0], shared.pages + 1, shared.size, &shared.stop, seed)
    return count


def victim(Shared shared not None, uint64_t count, uint64_t seed, bint host):
    """(status, packets received, deaths of the reader)."""
    cdef Run run = Run(0, 0, 0)
    cdef int status
    with nogil:
        status = victim_loop(<RingControl *> shared.pages[0], shared.pages + 1, shared.size,
                             RING_HOST if host else RING_GUEST, count, seed, &run)
        exchange64(&shared.stop, 1)
    return status, run.packets, run.signals
