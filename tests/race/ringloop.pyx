"""Both ends of one ring as loops without the GIL, with the whole waiting protocol, and a peer that scribbles.

The two loops are to run in two threads at once; they share the ring and one doorbell per direction.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from hvcore.linux.atomics cimport (
    exchange64, fence_full, fetch_or64, load_acquire32, load_acquire64, store_relaxed64, store_release32)
from hvcore.linux.syscalls cimport futex_wait, futex_wake
from hvcore.vmbus.abi cimport PACKET_IN_BAND, PAGE_SIZE, RingControl
from hvcore.vmbus.ring cimport (
    RING_CORRUPT, RING_EMPTY, RING_FULL, RING_GUEST, RING_HOST, RING_OK, RingView, ring_free, ring_mask,
    ring_open_reader, ring_open_writer, ring_poll, ring_publish, ring_put, ring_release, ring_take, ring_unmask,
    ring_want, ring_want_no_more)

cdef enum:
    LARGEST = 4096               # payload bytes
    WORDS = 514                  # of the largest packet
    LOST_WAKE_UP = -100
    WRONG_BYTES = -101

# Longer than any loop: a wait that ends by it was never woken.
cdef int64_t PATIENCE_NS = 60 * 1000000000


ctypedef struct Bell:
    uint64_t flags
    uint32_t sleeping
    uint32_t pad


ctypedef struct Run:
    uint64_t packets
    uint64_t signals
    uint64_t waits


cdef void bell_ring(Bell *bell) noexcept nogil:
    fetch_or64(&bell.flags, 1)
    # The flag before the look at `sleeping`; bell_wait stores and looks the other way round.
    fence_full()
    if load_acquire32(&bell.sleeping):
        # Changed before the wake: a waiter that has not reached the kernel yet must find the word different.
        store_release32(&bell.sleeping, 0)
        futex_wake(&bell.sleeping, 1)


cdef int bell_wait(Bell *bell, const RingView *reader, RingView *writer, uint32_t wanted) noexcept nogil:
    """Blocks until the bell rings or, looked at once more before that, its end of the ring can go on; 1 = blocked."""
    cdef int status = 0
    cdef bint ready
    store_release32(&bell.sleeping, 1)
    fence_full()
    ready = load_acquire64(&bell.flags) != 0
    if reader != NULL:
        ready = ready or ring_poll(reader)
    else:
        ready = ready or ring_free(writer) > wanted
    if not ready:
        status = futex_wait(&bell.sleeping, 1, PATIENCE_NS)
        status = LOST_WAKE_UP if status == -ETIMEDOUT else 1
    store_release32(&bell.sleeping, 0)
    return status


cdef uint32_t dice(uint64_t *state, uint32_t sides) noexcept nogil:
    """xorshift: 0 .. sides - 1."""
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return <uint32_t> (state[0] >> 32) % sides


cdef int produce_loop(RingView *ring, Bell *own, Bell *peer, uint64_t count, uint32_t largest, uint64_t seed,
                      Run *run) noexcept nogil:
    cdef uint8_t body[LARGEST]
    cdef uint32_t length
    cdef uint32_t wanted
    cdef uint32_t i
    cdef uint32_t burst = 1
    cdef int status
    while run.packets < count:
        length = 1 + dice(&seed, largest)
        wanted = 16 + (length + 7) // 8 * 8 + 8
        for i in range(length):
            body[i] = <uint8_t> (run.packets + i)
        status = ring_put(ring, PACKET_IN_BAND, 0, run.packets, NULL, 0, body, length)
        while status == RING_FULL:
            status = ring_publish(ring)
            if status < 0:
                return status
            if status:
                run.signals += 1
                bell_ring(peer)
            exchange64(&own.flags, 0)
            status = ring_want(ring, wanted)
            if status < 0:
                return status
            if status == 0:
                status = bell_wait(own, NULL, ring, wanted)
                if status < 0:
                    return status
                run.waits += status
            status = ring_put(ring, PACKET_IN_BAND, 0, run.packets, NULL, 0, body, length)
            if status == RING_OK:
                ring_want_no_more(ring)
        if status < 0:
            return status
        run.packets += 1
        burst -= 1
        if burst == 0 or run.packets == count:
            burst = 1 + dice(&seed, 4)
            status = ring_publish(ring)
            if status < 0:
                return status
            if status:
                run.signals += 1
                bell_ring(peer)
    return RING_OK


cdef int consume_loop(RingView *ring, Bell *own, Bell *peer, uint64_t count, uint64_t seed, Run *run) noexcept nogil:
    cdef uint64_t packet[WORDS]
    cdef uint8_t *bytes_ = <uint8_t *> packet
    cdef uint32_t length
    cdef uint32_t burst
    cdef uint32_t i
    cdef int due
    cdef int status
    while True:
        ring_mask(ring)
        exchange64(&own.flags, 0)
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
                bell_ring(peer)
        status = ring_unmask(ring)
        if status < 0 or run.packets == count:
            return status
        if status == 0:
            status = bell_wait(own, ring, NULL, 0)
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
    """A ring's pages in a buffer, and two doorbells in another."""

    cdef Py_buffer ring
    cdef Py_buffer bells
    cdef uint8_t **pages
    cdef uint32_t size

    def __cinit__(self, buffer, pages, bells):
        PyObject_GetBuffer(buffer, &self.ring, PyBUF_SIMPLE | PyBUF_WRITABLE)
        PyObject_GetBuffer(bells, &self.bells, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.size = <uint32_t> (len(pages) - 1) * PAGE_SIZE
        self.pages = <uint8_t **> malloc(len(pages) * sizeof(uint8_t *))
        for i, page in enumerate(pages):
            self.pages[<size_t> i] = <uint8_t *> self.ring.buf + <size_t> page * PAGE_SIZE

    def __dealloc__(self):
        free(self.pages)
        PyBuffer_Release(&self.ring)
        PyBuffer_Release(&self.bells)


def produce(Shared shared not None, uint64_t count, uint32_t largest, uint64_t seed):
    """Sends `count` packets; (status, packets, signals, waits)."""
    cdef RingView ring
    cdef Run run = Run(0, 0, 0)
    cdef Bell *bells = <Bell *> shared.bells.buf
    cdef int status
    with nogil:
        status = ring_open_writer(&ring, <RingControl *> shared.pages[0], shared.pages + 1, shared.size, RING_GUEST)
        if status == RING_OK:
            status = produce_loop(&ring, &bells[0], &bells[1], count, largest, seed, &run)
    return status, run.packets, run.signals, run.waits


def consume(Shared shared not None, uint64_t count, uint64_t seed):
    """Receives and checks `count` packets; (status, packets, signals, waits)."""
    cdef RingView ring
    cdef Run run = Run(0, 0, 0)
    cdef Bell *bells = <Bell *> shared.bells.buf
    cdef int status
    with nogil:
        status = ring_open_reader(&ring, <RingControl *> shared.pages[0], shared.pages + 1, shared.size, RING_HOST)
        if status == RING_OK:
            status = consume_loop(&ring, &bells[1], &bells[0], count, seed, &run)
    return status, run.packets, run.signals, run.waits


def scribble(Shared shared not None, uint64_t seed):
    """Until the victim has finished; how often."""
    cdef Bell *bells = <Bell *> shared.bells.buf
    cdef uint64_t count
    with nogil:
        count = scribble_loop(shared.pages[0], shared.pages + 1, shared.size, &bells[0].flags, seed)
    return count


def victim(Shared shared not None, uint64_t count, uint64_t seed, bint host):
    """(status, packets received, deaths of the reader)."""
    cdef Run run = Run(0, 0, 0)
    cdef Bell *bells = <Bell *> shared.bells.buf
    cdef int status
    with nogil:
        status = victim_loop(<RingControl *> shared.pages[0], shared.pages + 1, shared.size,
                             RING_HOST if host else RING_GUEST, count, seed, &run)
        exchange64(&bells[0].flags, 1)
    return status, run.packets, run.signals
