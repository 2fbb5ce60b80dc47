# One direction of a VMBus channel (vmbus.md section 1). A view is private to one endpoint: it keeps that endpoint's own
# index (RB-42) and never reads it back from shared memory. One thread at a time may use a view; the two ends run
# concurrently in different threads or processes.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from hvcore.linux.atomics cimport load_acquire32
from hvcore.vmbus.abi cimport RingControl

cdef enum RingStatus:
    RING_OK = 0
    RING_EMPTY = 1               # reader: no packet
    RING_FULL = 2                # writer: does not fit now
    RING_CORRUPT = -1            # the peer broke a rule: the channel is dead (RB-43)
    # Writer: can never fit (RB-13: T > S - 16, or length8 > 65535). Reader: larger than the buffer given (PK-3).
    RING_TOO_LARGE = -2

cdef enum RingRole:
    RING_GUEST = 0               # tolerant of unknown flags and types, as vmbus.md 2.2 says for the guest
    RING_HOST = 1                # strict

ctypedef struct RingView:
    RingControl *control         # shared
    uint8_t *linear              # data when its pages follow each other in this process, else NULL
    uint8_t **pages              # data pages in ring order, used when linear is NULL; owned by whoever made the view
    uint32_t size                # S: data bytes, a multiple of 4096, not necessarily a power of two (RB-5)
    int role                     # RingRole of this endpoint
    uint32_t index               # own index incl. what is staged but not yet published
    uint32_t published           # own index as last published
    uint32_t peer                # the peer's index as last loaded and validated
    bint dead                    # set with the first RING_CORRUPT; every later call returns RING_CORRUPT
    const char *fault            # what killed the ring, or NULL

# Setup. `control` points to the control page, `pages[0..size/4096)` to the data pages (consecutive addresses are found
# and used as `linear`). The writer takes In, the reader Out, from the control page, once, validated (RB-7, 1.1: the
# host takes the values found); RING_CORRUPT if they are not valid. The writer sets the feature bit and pending = 0 of
# its ring; neither touches the peer's words.
cdef int ring_open_writer(RingView *ring, RingControl *control, uint8_t **pages, uint32_t size,
                          int role) noexcept nogil
cdef int ring_open_reader(RingView *ring, RingControl *control, uint8_t **pages, uint32_t size,
                          int role) noexcept nogil

# Writer. ring_put stages one packet = descriptor + `header` (the GPA-direct header, or nothing) + payload + padding
# to 8 + trailer (RB-16); it computes data_offset8 and length8. header_length must be a multiple of 8 (the wire layout
# needs it). Nothing is visible to the peer before ring_publish. RING_OK, RING_FULL, RING_TOO_LARGE, RING_CORRUPT.
cdef int ring_put(RingView *ring, uint32_t type, uint32_t flags, uint64_t transaction_id, const void *header,
                  uint32_t header_length, const void *payload, uint32_t payload_length) noexcept nogil
# Publishes all that is staged (1.5 steps 3 to 5): 1 = the peer must be signalled, 0 = not, or RING_CORRUPT.
cdef int ring_publish(RingView *ring) noexcept nogil
# Free bytes for packets incl. trailer (RB-10 free_raw) after everything staged, the peer's index loaded anew; or < 0.
cdef int64_t ring_free(RingView *ring) noexcept nogil
# 1.8 writer steps 1, 2: asks for a signal once free_raw exceeds `wanted`; re-checks; returns 1 when there is room for a
# packet of `wanted` bytes already (the request is then withdrawn), 0 when the writer must wait, RING_TOO_LARGE when no
# reader could ever free that much (wanted >= S, RB-32), or RING_CORRUPT. Call after ring_publish: the reader cannot
# free what it cannot see.
cdef int ring_want(RingView *ring, uint32_t wanted) noexcept nogil
cdef void ring_want_no_more(RingView *ring) noexcept nogil

# Reader. ring_take copies the next packet whole (descriptor first, once, PK-2) into `buffer` and validates the
# descriptor as vmbus.md 2.2 says for this role; it advances the private Out only. *length = length8 * 8. RING_OK,
# RING_EMPTY, RING_CORRUPT, RING_TOO_LARGE (packet larger than capacity: the channel is dead too, PK-3).
cdef int ring_take(RingView *ring, uint8_t *buffer, uint32_t capacity, uint32_t *length) noexcept nogil
# Publishes Out once for the batch (1.6 steps 4 to 7): 1 = a blocked writer must be signalled, 0 = not, or RING_CORRUPT.
cdef int ring_release(RingView *ring) noexcept nogil
# 1.7 begin: mask = 1, full fence.
cdef void ring_mask(RingView *ring) noexcept nogil
# 1.7 end: mask = 0, full fence; 1 = unread data, 0 = empty, or RING_CORRUPT.
cdef int ring_unmask(RingView *ring) noexcept nogil
# Reader: bytes unread, or RING_CORRUPT.
cdef int64_t ring_used(RingView *ring) noexcept nogil
# Kills the ring for a rule above this module's (a packet header of N6, N7, N12); returns RING_CORRUPT.
cdef int ring_kill(RingView *ring, const char *fault) noexcept nogil


cdef inline bint ring_poll(const RingView *ring) noexcept nogil:
    """1: the reader has something to read, or the ring is corrupt (take will tell). One acquire load, for spinning."""
    return ring.dead or load_acquire32(&ring.control.in_) != ring.index
