"""One direction of a VMBus channel (vmbus.md section 1): the nogil ring of the data path, and `Ring` for Python."""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from hvcore.linux.atomics cimport (
    fence_full, load_acquire32, load_relaxed64, store_relaxed32, store_relaxed64, store_release32)
from hvcore.vmbus.abi cimport (
    PACKET_GPA_DIRECT, PACKET_IN_BAND, PACKET_TRAILER, PAGE_SIZE, RING_FEATURE_PENDING_SEND_SIZE, PacketDescriptor,
    RingControl)
from hvcore.vmbus.packet cimport PACKET_MAX_BYTES, Packet, descriptor_fault, header_fault, packet_from

from hvcore.errors import RingCorrupt, RingFull
from hvcore.vmbus.packet import gpa_direct_header

cdef extern from *:
    """
    /* The canary build turns this one release into a plain store: ThreadSanitizer must see the difference. */
    #ifdef HVCORE_CANARY
    #define hv_ring_store_in(word, value) (*(word) = (value))
    #else
    #define hv_ring_store_in hv_store_release32
    #endif
    """
    void store_in "hv_ring_store_in"(uint32_t *word, uint32_t value) noexcept nogil


cdef int ring_kill(RingView *ring, const char *fault) noexcept nogil:
    if not ring.dead:
        ring.dead = True
        ring.fault = fault
    return RING_CORRUPT


cdef inline bint index_valid(uint32_t index, uint32_t size) noexcept nogil:
    return index < size and index % 8 == 0                                  # RB-7


cdef inline uint32_t index_used(uint32_t in_, uint32_t out, uint32_t size) noexcept nogil:
    """RB-9; both indices are valid."""
    return in_ - out if in_ >= out else in_ - out + size


cdef inline uint32_t index_advance(uint32_t index, uint64_t step, uint32_t size) noexcept nogil:
    """RB-8: compare and subtract, because a size need not be a power of two (RB-5). In 64 bits, step <= size."""
    cdef uint64_t advanced = index + step
    return <uint32_t> (advanced if advanced < size else advanced - size)


cdef inline uint8_t *ring_span(const RingView *ring, uint32_t offset, uint32_t *room) noexcept nogil:
    """Where the byte at `offset` of the data lies, and in *room how many bytes follow it there in one piece."""
    if ring.linear != NULL:
        room[0] = ring.size - offset
        return ring.linear + offset
    room[0] = PAGE_SIZE - offset % PAGE_SIZE
    return ring.pages[offset // PAGE_SIZE] + offset % PAGE_SIZE


cdef inline uint64_t *ring_word(const RingView *ring, uint32_t offset) noexcept nogil:
    """The aligned 8-byte word at `offset`; indices are multiples of 8, so no word wraps or crosses a page (RB-14)."""
    cdef uint32_t room
    return <uint64_t *> ring_span(ring, offset, &room)


cdef uint32_t ring_copy_in(RingView *ring, uint32_t offset, const void *source, uint32_t length) noexcept nogil:
    """Copies in pieces, over the wrap and from page to page; returns the offset behind the last byte."""
    cdef const uint8_t *rest = <const uint8_t *> source
    cdef uint8_t *target
    cdef uint32_t room
    while length:
        target = ring_span(ring, offset, &room)
        room = min(room, length)
        memcpy(target, rest, room)
        rest += room
        length -= room
        offset = index_advance(offset, room, ring.size)
    return offset


cdef void ring_copy_out(const RingView *ring, uint32_t offset, uint8_t *target, uint32_t length) noexcept nogil:
    cdef uint8_t *source
    cdef uint32_t room
    while length:
        source = ring_span(ring, offset, &room)
        room = min(room, length)
        memcpy(target, source, room)
        target += room
        length -= room
        offset = index_advance(offset, room, ring.size)


cdef inline int ring_load_out(RingView *ring) noexcept nogil:
    """Writer: takes the peer's Out anew. Acquire, because bytes that Out frees are overwritten next: those stores must
    not be ordered before the load that allowed them (1.5 step 1)."""
    cdef uint32_t out = load_acquire32(&ring.control.out)
    if not index_valid(out, ring.size):
        return ring_kill(ring, "Out is not an offset of the ring")
    ring.peer = out
    return RING_OK


cdef inline int ring_load_in(RingView *ring) noexcept nogil:
    """Reader: takes the peer's In anew. Acquire, because the packets that In announces are read next (1.6 step 1)."""
    cdef uint32_t in_ = load_acquire32(&ring.control.in_)
    if not index_valid(in_, ring.size):
        return ring_kill(ring, "In is not an offset of the ring")
    ring.peer = in_
    return RING_OK


cdef inline uint32_t ring_room(const RingView *ring) noexcept nogil:
    """Writer: free_raw (RB-10) behind everything staged, by the Out last loaded."""
    return ring.size - index_used(ring.index, ring.peer, ring.size)


cdef int ring_open(RingView *ring, RingControl *control, uint8_t **pages, uint32_t size, int role) noexcept nogil:
    cdef uint32_t page
    memset(ring, 0, sizeof(ring[0]))
    ring.control = control
    ring.pages = pages
    ring.size = size
    ring.role = role
    if size == 0 or size % PAGE_SIZE:                                       # RB-5
        return ring_kill(ring, "the ring's size is not a positive multiple of 4096")
    ring.linear = pages[0]
    for page in range(1, size // PAGE_SIZE):
        if pages[page] != pages[0] + <uint64_t> page * PAGE_SIZE:
            ring.linear = NULL
            break
    return RING_OK


cdef int ring_open_writer(RingView *ring, RingControl *control, uint8_t **pages, uint32_t size,
                          int role) noexcept nogil:
    cdef int status = ring_open(ring, control, pages, size, role)
    if status != RING_OK:
        return status
    # The only time that the own index comes from shared memory (RB-42).
    cdef uint32_t in_ = load_acquire32(&control.in_)
    if not index_valid(in_, size):
        return ring_kill(ring, "In is not an offset of the ring")
    ring.index = ring.published = in_
    status = ring_load_out(ring)
    if status == RING_OK:
        store_relaxed32(&control.feature_bits, RING_FEATURE_PENDING_SEND_SIZE)          # RB-4
        store_relaxed32(&control.pending_send_size, 0)
    return status


cdef int ring_open_reader(RingView *ring, RingControl *control, uint8_t **pages, uint32_t size,
                          int role) noexcept nogil:
    cdef int status = ring_open(ring, control, pages, size, role)
    if status != RING_OK:
        return status
    cdef uint32_t out = load_acquire32(&control.out)
    if not index_valid(out, size):
        return ring_kill(ring, "Out is not an offset of the ring")
    ring.index = ring.published = out
    return ring_load_in(ring)


cdef int ring_put(RingView *ring, uint32_t type, uint32_t flags, uint64_t transaction_id, const void *header,
                  uint32_t header_length, const void *payload, uint32_t payload_length) noexcept nogil:
    cdef uint64_t offset = 16 + <uint64_t> header_length
    cdef uint64_t length = (offset + payload_length + 7) & ~<uint64_t> 7
    cdef uint64_t total = length + PACKET_TRAILER
    cdef uint64_t word
    cdef uint32_t start = ring.index
    cdef uint32_t room
    cdef uint8_t *slot
    if cython.unlikely(ring.dead):
        return RING_CORRUPT
    if cython.unlikely(length > PACKET_MAX_BYTES or total + 16 > ring.size):            # PK-1, RB-13
        return RING_TOO_LARGE
    # RB-11, first by the cached Out: the reader's cache line is touched only when the ring looks full.
    if ring_room(ring) <= total:
        if cython.unlikely(ring_load_out(ring) != RING_OK):
            return RING_CORRUPT
        if ring_room(ring) <= total:
            return RING_FULL

    # The descriptor's four 16-bit fields are one little-endian word. All stores up to ring_publish's release of In are
    # unordered among themselves: the reader may not look here before In says so.
    word = (type & 0xFFFF) | (offset >> 3) << 16 | (length >> 3) << 32 | <uint64_t> (flags & 0xFFFF) << 48
    slot = ring_span(ring, start, &room)
    if cython.likely(total <= room):
        store_relaxed64(<uint64_t *> slot, word)
        store_relaxed64(<uint64_t *> (slot + 8), transaction_id)
        if payload_length % 8:                                              # zeros behind the payload (RB-19)
            store_relaxed64(<uint64_t *> (slot + length - 8), 0)
        if header_length:
            memcpy(slot + 16, header, header_length)
        if payload_length:
            memcpy(slot + offset, payload, payload_length)
        store_relaxed64(<uint64_t *> (slot + length), <uint64_t> start << 32)           # RB-16, RB-18
    else:
        store_relaxed64(<uint64_t *> slot, word)
        store_relaxed64(ring_word(ring, index_advance(start, 8, ring.size)), transaction_id)
        if payload_length % 8:
            store_relaxed64(ring_word(ring, index_advance(start, length - 8, ring.size)), 0)
        ring_copy_in(ring, ring_copy_in(ring, index_advance(start, 16, ring.size), header, header_length),
                     payload, payload_length)
        store_relaxed64(ring_word(ring, index_advance(start, length, ring.size)), <uint64_t> start << 32)
    ring.index = index_advance(start, total, ring.size)
    return RING_OK


cdef int ring_publish(RingView *ring) noexcept nogil:
    cdef uint32_t old = ring.published
    if cython.unlikely(ring.dead):
        return RING_CORRUPT
    if ring.index == old:
        return 0
    # Release: the packets before In (1.5 step 2 to 3).
    store_in(&ring.control.in_, ring.index)
    ring.published = ring.index
    # Full: In before the mask and Out are looked at. The reader's unmask does the same the other way round, so that at
    # least one of the two sees the other's store; without it both may miss and the wake-up is lost (1.9).
    fence_full()
    if load_acquire32(&ring.control.interrupt_mask):
        return 0
    if cython.unlikely(ring_load_out(ring) != RING_OK):
        return RING_CORRUPT
    # Only the edge from empty, seen over the whole batch (RB-20, RB-21).
    return ring.peer == old


cdef int64_t ring_free(RingView *ring) noexcept nogil:
    if ring.dead or ring_load_out(ring) != RING_OK:
        return RING_CORRUPT
    return ring_room(ring)


cdef int ring_want(RingView *ring, uint32_t wanted) noexcept nogil:
    if ring.dead:
        return RING_CORRUPT
    if wanted >= ring.size:                                                 # RB-32
        return RING_TOO_LARGE
    store_relaxed32(&ring.control.pending_send_size, wanted)
    # Full: the request before Out is looked at again. Only the transition is signalled (RB-34); a reader that published
    # Out before it could see the request must be seen here.
    fence_full()
    if ring_load_out(ring) != RING_OK:
        return RING_CORRUPT
    if ring_room(ring) <= wanted:
        return 0
    ring_want_no_more(ring)
    return 1


cdef void ring_want_no_more(RingView *ring) noexcept nogil:
    # Unordered: a reader that still sees the old request sends one signal too many, which is harmless (RB-29).
    store_relaxed32(&ring.control.pending_send_size, 0)


cdef int ring_take(RingView *ring, uint8_t *buffer, uint32_t capacity, uint32_t *length) noexcept nogil:
    cdef PacketDescriptor head
    cdef const char *fault
    cdef const uint8_t *slot
    cdef uint64_t words[2]
    cdef uint32_t start = ring.index
    cdef uint32_t used
    cdef uint32_t size
    cdef uint32_t room
    if cython.unlikely(ring.dead):
        return RING_CORRUPT
    # The cached In first: within a batch the writer's cache line is left alone.
    if ring.peer == start:
        if cython.unlikely(ring_load_in(ring) != RING_OK):
            return RING_CORRUPT
        if ring.peer == start:
            return RING_EMPTY
    used = index_used(ring.peer, start, ring.size)
    if cython.unlikely(used < 24):
        return ring_kill(ring, "less than the smallest packet is in the ring")
    # PK-2: the descriptor is loaded once, as two words that the compiler may not load again (atomic), and only this
    # copy is used from here on.
    slot = ring_span(ring, start, &room)
    words[0] = load_relaxed64(<const uint64_t *> slot)
    words[1] = load_relaxed64(ring_word(ring, index_advance(start, 8, ring.size)))
    memcpy(&head, words, sizeof(head))
    fault = descriptor_fault(&head, ring.role == RING_HOST)
    if cython.unlikely(fault != NULL):
        return ring_kill(ring, fault)
    size = 8 * <uint32_t> head.length8
    if cython.unlikely(size + PACKET_TRAILER > used):                       # N11
        return ring_kill(ring, "the packet is longer than what the writer published")
    if cython.unlikely(size > capacity):                                    # PK-3: never clip
        ring_kill(ring, "the packet is larger than the reader's buffer")
        return RING_TOO_LARGE
    memcpy(buffer, words, sizeof(words))
    if cython.likely(size <= room):
        memcpy(buffer + 16, slot + 16, size - 16)
    else:
        ring_copy_out(ring, index_advance(start, 16, ring.size), buffer + 16, size - 16)
    length[0] = size
    ring.index = index_advance(start, size + PACKET_TRAILER, ring.size)     # RB-17
    return RING_OK


cdef int ring_release(RingView *ring) noexcept nogil:
    cdef uint32_t old = ring.published
    cdef uint32_t pending
    if cython.unlikely(ring.dead):
        return RING_CORRUPT
    if ring.index == old:
        return 0
    # Release: all packet bytes are read before the writer may overwrite them (1.6 step 4).
    store_release32(&ring.control.out, ring.index)
    ring.published = ring.index
    # Full: Out before the writer's request is looked at; ring_want is the other half (1.9).
    fence_full()
    pending = load_acquire32(&ring.control.pending_send_size)
    # Neither the feature bit (RB-4) nor the mask (RB-26) gates this signal.
    if pending == 0:
        return 0
    if cython.unlikely(ring_load_in(ring) != RING_OK):
        return RING_CORRUPT
    # Only the transition (RB-34), and "greater than" (RB-31): the L and D form of 1.8.
    return (ring.size - index_used(ring.peer, old, ring.size) <= pending
            and ring.size - index_used(ring.peer, ring.index, ring.size) > pending)


cdef void ring_mask(RingView *ring) noexcept nogil:
    store_relaxed32(&ring.control.interrupt_mask, 1)
    fence_full()


cdef int ring_unmask(RingView *ring) noexcept nogil:
    if ring.dead:
        return RING_CORRUPT
    store_relaxed32(&ring.control.interrupt_mask, 0)
    # Full: the mask before In is looked at again; ring_publish is the other half (1.7, 1.9).
    fence_full()
    if ring_load_in(ring) != RING_OK:
        return RING_CORRUPT
    return ring.peer != ring.index


cdef int64_t ring_used(RingView *ring) noexcept nogil:
    if ring.dead or ring_load_in(ring) != RING_OK:
        return RING_CORRUPT
    return index_used(ring.peer, ring.index, ring.size)


# no_gc_clear: the collector would drop the exporter without releasing its buffer.
@cython.final
@cython.no_gc_clear
cdef class Ring:
    """One ring in a caller's buffer, as its writer, its reader, or both.

    Made by Ring.create or Ring.attach. `size` is the data bytes S. An end is opened with its first use: its index is
    taken from the control page then and kept privately from there on (RB-42). One thread may send while another
    receives; two threads must not use the same end at once. The buffer stays exported until close().

    RingCorrupt from an end is final: every later call on that end raises it again (RB-43).
    """

    cdef Py_buffer view
    cdef uint8_t **pages         # the control page, then the data pages
    cdef RingView writer
    cdef RingView reader
    cdef uint8_t *packet         # the reader's private copy, as large as the largest packet
    cdef uint32_t capacity
    cdef int strictness
    cdef bint due
    cdef readonly uint32_t size

    def __init__(self):
        raise TypeError("a Ring is made by Ring.create or Ring.attach")

    def __dealloc__(self):
        self.release()

    cdef int release(self) except -1:
        self.writer.control = self.reader.control = NULL
        free(self.packet)
        free(self.pages)
        self.packet = NULL
        self.pages = NULL
        PyBuffer_Release(&self.view)                    # does nothing a second time
        return 0

    @staticmethod
    def create(buffer, *, pages=None, role="host"):
        """Formats a ring in a writable buffer and opens it: pages zero, feature bit set. Arguments as for attach."""
        cdef Ring self = ring_over(buffer, pages, role)
        cdef uint32_t page
        for page in range(self.size // PAGE_SIZE + 1):
            memset(self.pages[page], 0, PAGE_SIZE)                          # VA-25
        store_relaxed32(&(<RingControl *> self.pages[0]).feature_bits, RING_FEATURE_PENDING_SEND_SIZE)
        return self

    @staticmethod
    def attach(buffer, *, pages=None, role="host"):
        """Opens the ring that a writable buffer holds: one control page and at least one data page of 4096 bytes.

        `pages`: page numbers within the buffer, the control page's first, when the ring's pages do not simply follow
        each other, as in guest memory. `role`: "host" rejects unknown packet types and flags, "guest" passes them on
        (vmbus.md 2.2). ValueError: buffer or pages make no ring; the buffer must be 8-byte aligned. RingCorrupt: an
        index on the control page is invalid (RB-7).
        """
        cdef Ring self = ring_over(buffer, pages, role)
        cdef RingControl *control = <RingControl *> self.pages[0]
        for name, index in (("In", load_acquire32(&control.in_)), ("Out", load_acquire32(&control.out))):
            if not index_valid(index, self.size):
                raise RingCorrupt(f"{name} = {index:#x} is not an offset of a ring of {self.size} bytes")
        return self

    def close(self):
        """Gives the buffer back. Idempotent; later calls raise ValueError. No call may be running."""
        self.release()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def closed(self):
        return self.pages == NULL

    @property
    def role(self):
        """"host" or "guest"."""
        return "host" if self.strictness == RING_HOST else "guest"

    cdef RingControl *control(self) except NULL:
        if self.pages == NULL:
            raise ValueError("the ring is closed")
        return <RingControl *> self.pages[0]

    cdef RingView *open_writer(self) except NULL:
        cdef RingControl *control = self.control()
        if self.writer.control == NULL:
            ring_open_writer(&self.writer, control, self.pages + 1, self.size, self.strictness)
        if self.writer.dead:
            raise RingCorrupt(self.writer.fault.decode())
        return &self.writer

    cdef RingView *open_reader(self) except NULL:
        cdef RingControl *control = self.control()
        if self.reader.control == NULL:
            self.capacity = min(self.size, <uint32_t> PACKET_MAX_BYTES)
            if self.packet == NULL:
                self.packet = <uint8_t *> malloc(self.capacity)
                if self.packet == NULL:
                    raise MemoryError
            ring_open_reader(&self.reader, control, self.pages + 1, self.size, self.strictness)
        if self.reader.dead:
            raise RingCorrupt(self.reader.fault.decode())
        return &self.reader

    cdef bint put(self, RingView *ring, object payload, uint64_t transaction_id, unsigned int flags,
                  unsigned int type, bytes header) except -1:
        """Stages one packet; False when it does not fit now."""
        cdef Py_buffer body
        cdef int status
        cdef Py_ssize_t header_length = PyBytes_GET_SIZE(header)
        if type > 0xFFFF or flags > 0xFFFF or header_length % 8 or header_length > PACKET_MAX_BYTES:
            raise ValueError("type and flags are 16 bits; a header is a multiple of 8 bytes and fits a packet")
        PyObject_GetBuffer(payload, &body, PyBUF_SIMPLE)
        try:
            if body.len > PACKET_MAX_BYTES:
                status = RING_TOO_LARGE
            else:
                status = ring_put(ring, type, flags, transaction_id, PyBytes_AS_STRING(header),
                                  <uint32_t> header_length, body.buf, <uint32_t> body.len)
            if status == RING_TOO_LARGE:
                raise ValueError(
                    f"a packet with {header_length} + {body.len} bytes can never fit: the ring takes "
                    f"{min(<uint32_t> PACKET_MAX_BYTES, self.size - 24)} bytes with the descriptor")
        finally:
            PyBuffer_Release(&body)
        if status == RING_CORRUPT:
            raise RingCorrupt(ring.fault.decode())
        return status == RING_OK

    cdef bint publish(self, RingView *ring) except -1:
        cdef int status = ring_publish(ring)
        if status == RING_CORRUPT:
            raise RingCorrupt(ring.fault.decode())
        return status

    def send(self, payload, uint64_t transaction_id=0, unsigned int flags=0, unsigned int type=PACKET_IN_BAND, *,
             bytes header not None=b""):
        """Sends one packet with any bytes-like payload. True: the peer must be signalled (RB-21).

        `header` is the type-specific header (vmbus.md 2.4), a multiple of 8 bytes, sent as it is. RingFull: it does not
        fit now, nothing was sent. ValueError: it can never fit (RB-13).
        """
        cdef RingView *ring = self.open_writer()
        if not self.put(ring, payload, transaction_id, flags, type, header):
            raise RingFull(f"{ring_room(ring)} bytes of the ring are free")
        return self.publish(ring)

    def send_gpa_direct(self, ranges, payload=b"", uint64_t transaction_id=0, unsigned int flags=1):
        """Sends a GPA-direct packet that names guest memory: a sequence of GpaRange, or tuples of its three fields.

        By default with completion requested (PK-4). Otherwise as send; ValueError also for ranges that are not valid.
        """
        return self.send(payload, transaction_id, flags, PACKET_GPA_DIRECT, header=gpa_direct_header(ranges))

    def send_batch(self, packets):
        """Sends packets up to the first that does not fit, published together; returns (number sent, signal).

        `packets`: a sequence of Packet, or of bytes-like payloads to send in band. When an item is not valid, its
        exception is raised and nothing of the batch was sent.
        """
        cdef RingView *ring = self.open_writer()
        cdef Packet packet
        cdef Py_ssize_t sent = 0
        try:
            for item in packets:
                if isinstance(item, Packet):
                    packet = <Packet> item
                    fits = self.put(
                        ring, packet.payload, packet.transaction_id, packet.flags, packet.type, packet.header)
                else:
                    fits = self.put(ring, item, 0, 0, PACKET_IN_BAND, b"")
                if not fits:
                    break
                sent += 1
        except BaseException:
            # Staged packets are invisible to the peer: forgetting them is going back to the index it knows.
            ring.index = ring.published
            raise
        return sent, self.publish(ring)

    cdef Packet take(self, RingView *ring):
        """The next packet, or None."""
        cdef const char *fault
        cdef uint32_t length
        cdef int status = ring_take(ring, self.packet, self.capacity, &length)
        if status == RING_EMPTY:
            return None
        if status == RING_OK:
            fault = header_fault(self.packet, length)
            if fault == NULL:
                return packet_from(self.packet, length)
            ring_kill(ring, fault)
        raise RingCorrupt(ring.fault.decode())

    cdef int publish_out(self, RingView *ring) except -1:
        cdef int status = ring_release(ring)
        if status == RING_CORRUPT:
            raise RingCorrupt(ring.fault.decode())
        self.due |= status
        return 0

    def receive(self):
        """The next Packet, or None when the ring is empty. May set signal_due. RingCorrupt: the peer broke a rule."""
        cdef RingView *ring = self.open_reader()
        cdef Packet packet = self.take(ring)
        if packet is not None:
            self.publish_out(ring)
        return packet

    def receive_batch(self, limit=None):
        """All packets now in the ring, or at most `limit`, as a list; Out is published once (RB-24).

        When the ring is found corrupt behind good packets, these are returned and the next call raises RingCorrupt.
        """
        cdef RingView *ring = self.open_reader()
        cdef Packet packet
        cdef list packets = []
        cdef Py_ssize_t most = -1 if limit is None else limit
        while most != len(packets):
            try:
                packet = self.take(ring)
            except RingCorrupt:
                if not packets:
                    raise
                return packets
            if packet is None:
                break
            packets.append(packet)
        self.publish_out(ring)
        return packets

    @property
    def signal_due(self):
        """Read and cleared: a receive made the room that a blocked writer waits for, who must be signalled (1.8)."""
        due = self.due
        self.due = False
        return bool(due)

    cdef uint32_t occupied(self) except? 0xFFFFFFFF:
        """Used bytes: the own index is the private one where an end is open, the peer's comes from shared memory."""
        cdef RingControl *control = self.control()
        cdef uint32_t in_ = load_acquire32(&control.in_) if self.writer.control == NULL else self.writer.index
        cdef uint32_t out = load_acquire32(&control.out) if self.reader.control == NULL else self.reader.index
        if not index_valid(in_, self.size) or not index_valid(out, self.size):
            raise RingCorrupt(f"In = {in_:#x} or Out = {out:#x} is not an offset of a ring of {self.size} bytes")
        return index_used(in_, out, self.size)

    @property
    def used(self):
        """Bytes of packets in the ring, trailers included (RB-9)."""
        return self.occupied()

    @property
    def free(self):
        """Bytes not in use; a packet needs less than this, trailer included (RB-10 free_raw, RB-11)."""
        return self.size - self.occupied()

    @property
    def interrupt_mask(self):
        """Reader's word: while set, the writer does not signal. After clearing it, receive once more before you wait
        (1.7): a packet that came before the clearing was not signalled."""
        return bool(load_acquire32(&self.control().interrupt_mask))

    @interrupt_mask.setter
    def interrupt_mask(self, bint masked):
        store_relaxed32(&self.control().interrupt_mask, masked)
        # Full: the mask before the In that the next receive loads, see ring_unmask.
        fence_full()

    @property
    def pending_send_size(self):
        """Writer's word: not 0 asks the reader for a signal once `free` exceeds it (RB-31). After setting it, send once
        more before you wait; `want` does both steps."""
        return load_acquire32(&self.control().pending_send_size)

    @pending_send_size.setter
    def pending_send_size(self, uint32_t wanted):
        self.open_writer()
        store_relaxed32(&self.control().pending_send_size, wanted)
        # Full: the request before the Out that the next send loads, see ring_want.
        fence_full()

    def want(self, uint32_t size):
        """Asks for a signal once `free` exceeds `size` bytes (1.8): True when it does already, False: wait for one.

        For a packet, `size` is 16 + header + payload rounded up to 8, + 8 (RB-31); larger avoids a signal per packet
        (RB-33). ValueError when `size` can never be exceeded (RB-32). Set pending_send_size = 0 after the send.
        """
        cdef RingView *ring = self.open_writer()
        cdef int status = ring_want(ring, size)
        if status == RING_TOO_LARGE:
            raise ValueError(f"{size} bytes can never be free in a ring of {self.size}")
        if status == RING_CORRUPT:
            raise RingCorrupt(ring.fault.decode())
        return bool(status)


cdef Ring ring_over(object buffer, object pages, object role):
    """A Ring over a checked buffer and page list, neither end open."""
    cdef Ring self = Ring.__new__(Ring)
    cdef Py_ssize_t count
    cdef Py_ssize_t i
    cdef Py_ssize_t page
    if role not in ("host", "guest"):
        raise ValueError(f"role is 'host' or 'guest', not {role!r}")
    self.strictness = RING_HOST if role == "host" else RING_GUEST
    PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    count = self.view.len // PAGE_SIZE
    if pages is None:
        if self.view.len % PAGE_SIZE:
            raise ValueError(f"a ring's buffer is 4096 + n * 4096 bytes, not {self.view.len}")
        pages = range(count)
    if <uintptr_t> self.view.buf % 8:
        raise ValueError("a ring's buffer must be 8-byte aligned: its words are accessed atomically (RB-39)")
    if not 2 <= len(pages) <= 0x100000:                                     # RB-6
        raise ValueError(f"a ring has one control page and 1 to {0xFFFFF} data pages, not {len(pages)} pages")
    self.pages = <uint8_t **> malloc(len(pages) * sizeof(uint8_t *))
    if self.pages == NULL:
        raise MemoryError
    for i, page in enumerate(pages):
        if not 0 <= page < count:
            raise ValueError(f"page {page} is not within the buffer's {count} pages")
        self.pages[i] = <uint8_t *> self.view.buf + page * PAGE_SIZE
    self.size = <uint32_t> (len(pages) - 1) * PAGE_SIZE
    return self
