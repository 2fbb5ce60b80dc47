# Trace ring: where a request was, and when. One writer, any number of readers, in memory that two processes share. The
# writer never waits: it overwrites the oldest event, and the reader finds out. All words in this machine's byte order.

from libc.stdint cimport uint32_t, uint64_t

from hvcore.linux.atomics cimport load_acquire64, load_relaxed32, store_relaxed32, store_relaxed64, store_release64
from hvcore.linux.clock cimport clock_ns

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_TRACE
    #define HV_TRACE
    #define HV_TRACE_MAGIC 0x52545648u                  /* "HVTR" */
    #define HV_TRACE_VERSION 1u
    typedef struct {
        uint32_t magic, version;
        uint32_t capacity;                              /* events, a power of two */
        uint32_t enabled;                               /* 0 = off; written by whoever wants the trace */
        uint64_t head;                                  /* events written since the ring was made */
        uint8_t reserved[40];
    } hv_trace_header;
    typedef struct {
        uint64_t time_ns;                               /* CLOCK_MONOTONIC */
        uint64_t trace_id, key;
        uint32_t hop, channel;
    } hv_trace_event;
    _Static_assert(sizeof(hv_trace_header) == 64, "trace header");
    _Static_assert(offsetof(hv_trace_header, enabled) == 12, "trace header");
    _Static_assert(offsetof(hv_trace_header, head) == 16, "trace header");
    _Static_assert(sizeof(hv_trace_event) == 32, "trace event");
    _Static_assert(offsetof(hv_trace_event, key) == 16, "trace event");
    _Static_assert(offsetof(hv_trace_event, channel) == 28, "trace event");
    static const uint32_t hv_trace_never = 0;
    static inline void hv_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline int hv_unlikely(int condition) { return __builtin_expect(condition, 0); }
    #endif
    """
    ctypedef struct TraceHeader "hv_trace_header":
        uint32_t magic
        uint32_t version
        uint32_t capacity
        uint32_t enabled
        uint64_t head
    ctypedef struct TraceEvent "hv_trace_event":
        uint64_t time_ns
        uint64_t trace_id            # the host's name for the request
        uint64_t key                 # what ties it to a protocol: the VMBus transaction id
        uint32_t hop
        uint32_t channel
    enum:
        TRACE_MAGIC "HV_TRACE_MAGIC"
        TRACE_VERSION "HV_TRACE_VERSION"
    const uint32_t trace_never "hv_trace_never"
    void fence_release "hv_fence_release"() noexcept nogil
    int unlikely "hv_unlikely"(int condition) noexcept nogil

cdef enum TraceStatus:
    TRACE_OK = 0
    TRACE_SMALL = -1                 # the buffer is too small or not aligned to 8 bytes
    TRACE_FORMAT = -2                # magic, version or capacity are not those of a ring in this buffer
    TRACE_BACKWARD = -3              # reader: the writer's sequence went back


# The writer's view, private to it. Nothing of it is read back from shared memory except `enabled`.
cdef struct TraceRing:
    const uint32_t *enabled
    TraceHeader *header
    TraceEvent *events
    uint32_t mask                    # capacity - 1
    uint64_t head


cdef inline void trace_off(TraceRing *ring) noexcept nogil:
    """A view without a ring: trace_stamp does nothing, at the same cost as on a ring that is off."""
    ring.enabled = &trace_never
    ring.header = NULL
    ring.events = NULL
    ring.mask = 0
    ring.head = 0


cdef inline void trace_write(TraceRing *ring, uint64_t trace_id, uint64_t key, uint32_t hop,
                             uint32_t channel) noexcept nogil:
    cdef TraceEvent *event = &ring.events[ring.head & ring.mask]
    # Orders the last publication of head before the stores below: a reader that sees any word of this event then also
    # sees that head, and knows that the event which was here is being overwritten. A release store alone orders only
    # what comes before it. Costs nothing on x86.
    fence_release()
    store_relaxed64(&event.time_ns, clock_ns())
    store_relaxed64(&event.trace_id, trace_id)
    store_relaxed64(&event.key, key)
    store_relaxed32(&event.hop, hop)
    store_relaxed32(&event.channel, channel)
    ring.head += 1
    # Release: who sees the new head sees the event whole.
    store_release64(&ring.header.head, ring.head)


cdef inline void trace_stamp(TraceRing *ring, uint64_t trace_id, uint64_t key, uint32_t hop,
                             uint32_t channel) noexcept nogil:
    """Notes that the request passes `hop` now. One load and one branch when tracing is off."""
    if unlikely(load_relaxed32(ring.enabled) != 0):
        trace_write(ring, trace_id, key, hop, channel)


# Events that fit `size_bytes`, as a power of two; 0 when not even two do.
cdef uint32_t trace_capacity(uint64_t size_bytes) noexcept nogil
# Formats an empty ring, off, and opens it for writing. TRACE_OK or TRACE_SMALL.
cdef int trace_create(TraceRing *ring, void *base, uint64_t size_bytes) noexcept nogil
# Opens a formatted ring for writing, behind the events it has. TRACE_OK, TRACE_SMALL, TRACE_FORMAT.
cdef int trace_open(TraceRing *ring, void *base, uint64_t size_bytes) noexcept nogil


cdef struct TraceCursor:
    TraceHeader *header
    const TraceEvent *events
    uint32_t capacity
    uint64_t next                    # sequence of the next event to collect
    uint64_t lost                    # events overwritten before they could be collected

# Opens a formatted ring for reading from the oldest event it still has. TRACE_OK, TRACE_SMALL, TRACE_FORMAT.
cdef int trace_read_open(TraceCursor *cursor, void *base, uint64_t size_bytes) noexcept nogil
# Copies the events since the last call, oldest first, to `out`, which has room for cursor.capacity of them; none is
# torn. *count of them start at out[*first]. TRACE_OK or TRACE_BACKWARD (nothing was read).
cdef int trace_collect(TraceCursor *cursor, TraceEvent *out, uint32_t *first, uint32_t *count) noexcept nogil
