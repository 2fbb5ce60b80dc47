# Structured events: which request was slow or failed, which disk missed its minimum. One writer (a VM's data thread),
# any number of readers, in memory that processes may share. The writer never waits: it overwrites the oldest event, and
# each reader counts what it lost. The protocol is that of the trace ring, hvcore/metrics/trace.pxd, with its orderings.
#
# A good request costs one compare: the caller has no latency unless requests are stamped (latency_begin), and a failed
# request is known to be one. Each kind has a rate of its own, so that a disk that fails every request neither floods
# the ring nor hides other kinds: what is held back is counted, in total and in the next event of that kind.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.linux.atomics cimport load_relaxed64

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_EVENTS
    #define HV_EVENTS
    #define HV_EVENTS_MAGIC 0x56455648u                 /* "HVEV" */
    #define HV_EVENTS_VERSION 1u
    #define HV_EVENT_KINDS 8
    typedef struct {
        uint32_t magic, version;
        uint32_t capacity;                              /* events, a power of two */
        uint32_t reserved;
        uint64_t head;                                  /* events written since the log was made */
        uint64_t slow_ns;                               /* 0 = off; written by whoever wants to know */
        uint64_t reserved2[4];
        uint64_t suppressed[HV_EVENT_KINDS];            /* held back by the rate of their kind */
    } hv_event_header;
    typedef struct {
        uint64_t time_ns;                               /* CLOCK_MONOTONIC */
        uint64_t trace_id, transaction_id, lba, length, latency_ns;
        uint32_t kind, suppressed;
        uint8_t opcode, srb_status, scsi_status, sense_key, asc, ascq, busy_percent, reserved;
    } hv_event;
    _Static_assert(sizeof(hv_event_header) == 128, "event header: two cache lines");
    _Static_assert(offsetof(hv_event_header, suppressed) == 64, "event header");
    _Static_assert(sizeof(hv_event) == 64, "event: one cache line");
    _Static_assert(offsetof(hv_event, kind) == 48, "event");
    _Static_assert(offsetof(hv_event, opcode) == 56, "event");
    static const uint64_t hv_events_never = 0;
    #endif
    """
    ctypedef struct EventHeader "hv_event_header":
        uint32_t magic
        uint32_t version
        uint32_t capacity
        uint64_t head
        uint64_t slow_ns
        uint64_t suppressed[8]
    ctypedef struct Event "hv_event":
        uint64_t time_ns
        uint64_t trace_id            # VM, disk and request, as in the trace
        uint64_t transaction_id      # the guest's; of a minimum: normalised operations per second that it asks for
        uint64_t lba                 # of a minimum: operations per second that there were
        uint64_t length              # bytes of the medium; of a minimum: bytes per second that it asks for
        uint64_t latency_ns          # 0: not measured; of a minimum: bytes per second that there were
        uint32_t kind                # EventKind
        uint32_t suppressed          # events of this kind that were held back just before
        uint8_t opcode               # first byte of the CDB
        uint8_t srb_status
        uint8_t scsi_status
        uint8_t sense_key
        uint8_t asc
        uint8_t ascq
        uint8_t busy_percent         # of a minimum's window
    enum:
        EVENTS_MAGIC "HV_EVENTS_MAGIC"
        EVENTS_VERSION "HV_EVENTS_VERSION"
        EVENT_KINDS "HV_EVENT_KINDS"
    const uint64_t events_never "hv_events_never"

cdef enum EventKind:
    EVENT_SLOW = 1               # a request took slow_ns or longer
    EVENT_FAILED = 2             # a request ended with an error
    EVENT_THROTTLED = 3          # a request waited at a maximum for slow_ns or longer
    EVENT_MINIMUM_MISSED = 4
    EVENT_MINIMUM_MET = 5        # again, or nothing is demanded any more

cdef enum:
    EVENT_WORDS = 8              # 64-bit words of one event
    EVENTS_PER_SECOND = 50       # of one kind
    EVENTS_AT_ONCE = 50          # of one kind, after a time without any

cdef enum EventsStatus:
    EVENTS_OK = 0
    EVENTS_SMALL = -1            # the buffer is too small or not aligned to 8 bytes
    EVENTS_FORMAT = -2           # magic, version or capacity are not those of a log in this buffer
    EVENTS_BACKWARD = -3         # reader: the writer's sequence went back

# The writer's view, private to it. Nothing of it is read back from shared memory except slow_ns.
ctypedef struct EventLog:
    const uint64_t *slow_ns
    EventHeader *header          # NULL: no log, nothing is written
    Event *events
    uint32_t mask                # capacity - 1
    uint64_t head
    uint64_t due_ns[8]           # by kind: when the next may be written, on a clock that may lag
    uint32_t suppressed[8]       # since the last one of the kind

# A reader's view.
ctypedef struct EventCursor:
    EventHeader *header
    const Event *events
    uint32_t capacity
    uint64_t next                # sequence of the next event to collect
    uint64_t lost                # events overwritten before they could be collected

# Formats an empty log that reports no slow requests, and opens it for writing. EVENTS_OK or EVENTS_SMALL.
cdef int events_create(EventLog *log, void *base, uint64_t size_bytes) noexcept nogil
# Writes an event, unless its kind has had its share: the caller fills all but `suppressed`, time_ns included. Whether
# it was written.
cdef bint events_write(EventLog *log, Event *event) noexcept nogil
# Writes what a window of a disk's minimum has shown; rates are per second.
cdef bint events_minimum(EventLog *log, bint missed, uint64_t time_ns, uint64_t trace_id, uint64_t wanted_iops,
                         uint64_t got_iops, uint64_t wanted_bandwidth, uint64_t got_bandwidth,
                         uint32_t busy_percent) noexcept nogil
# Opens a log for reading from the oldest event it still has. EVENTS_OK, EVENTS_SMALL, EVENTS_FORMAT.
cdef int events_read_open(EventCursor *cursor, void *base, uint64_t size_bytes) noexcept nogil
# Copies the events since the last call, oldest first, to `out`, which has room for cursor.capacity of them; none is
# torn. *count of them start at out[*first]. EVENTS_OK or EVENTS_BACKWARD (nothing was read).
cdef int events_collect(EventCursor *cursor, Event *out, uint32_t *first, uint32_t *count) noexcept nogil


cdef inline void events_off(EventLog *log) noexcept nogil:
    """A view without a log."""
    log.slow_ns = &events_never
    log.header = NULL


cdef inline uint64_t events_slow_ns(const EventLog *log) noexcept nogil:
    """What is slow now; 0: nothing is. Relaxed: a new threshold may come a request late."""
    return load_relaxed64(log.slow_ns)


cdef inline bint events_slow(const EventLog *log, uint64_t latency_ns) noexcept nogil:
    """Whether a request of this latency (0: not measured) is to be reported. The good path's one compare."""
    # Less one: 0 turns into the greatest there is.
    return latency_ns != 0 and latency_ns - 1 >= events_slow_ns(log) - 1
