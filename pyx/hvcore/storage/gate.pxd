# Quality of service of one disk: its maxima hold requests back, its minima are watched. Rates are in normalised
# operations of 8 KiB and in bytes, per second; 0 = no limit.
#
# A maximum is a virtual clock (generic cell rate algorithm): `due_ns` is when the next request may go; each request
# that goes moves it on by what it costs at the limit's rate. What the division leaves stays in `rest`, so that nothing
# drifts. The clock may lag the present by GATE_BURST_NS: a caller whose timer came late makes up for it, an idle disk
# saves no more than that. In any second go at most 1 + GATE_BURST_NS / 1 s times the limit and one request, however
# large that request is: it goes when its turn has come, and those behind it wait for what it cost.
#
# A minimum promises nothing by itself; it is measured once a second, and tells by `floor_ns` when its disk should be
# served before others.
#
# One thread at a time for one Gate, but for gate_urgent. The caller says what time it is (CLOCK_MONOTONIC, ns).

from libc.stdint cimport uint32_t, uint64_t

from hvcore.linux.atomics cimport load_relaxed64
from hvcore.linux.clock cimport clock_ns
from hvcore.metrics.counters cimport Counters

cdef extern from *:
    """
    #include <stdint.h>
    #ifndef HV_GATE
    #define HV_GATE
    #define HV_GATE_NEVER (1ull << 62)                  /* 146 years: no time plus a burst overflows */
    static inline int hv_gate_unlikely(int condition) { return __builtin_expect(condition, 0); }
    /* value * factor / divisor, exact, at most HV_GATE_NEVER. divisor is not 0. */
    static inline uint64_t hv_gate_scale(uint64_t value, uint64_t factor, uint64_t divisor) {
        unsigned __int128 result = (unsigned __int128) value * factor / divisor;
        return result < HV_GATE_NEVER ? (uint64_t) result : HV_GATE_NEVER;
    }
    /* Nanoseconds that `cost` takes at `rate` per second; *rest carries what is less than one, in 1 / rate ns. */
    static inline uint64_t hv_gate_time(uint64_t cost, uint64_t rate, uint64_t *rest) {
        unsigned __int128 total = (unsigned __int128) cost * 1000000000u + *rest;
        unsigned __int128 result = total / rate;
        *rest = (uint64_t) (total - result * rate);
        return result < HV_GATE_NEVER ? (uint64_t) result : HV_GATE_NEVER;
    }
    #endif
    """
    int gate_unlikely "hv_gate_unlikely"(int condition) noexcept nogil
    uint64_t gate_scale "hv_gate_scale"(uint64_t value, uint64_t factor, uint64_t divisor) noexcept nogil
    uint64_t gate_time "hv_gate_time"(uint64_t cost, uint64_t rate, uint64_t *rest) noexcept nogil
    enum:
        GATE_NEVER "HV_GATE_NEVER"

cdef enum:
    GATE_BURST_NS = 20000000     # how far a maximum's clock may lag: 2 % of a second
    GATE_WINDOW_NS = 1000000000  # over which a minimum is measured
    GATE_BUSY_PERCENT = 90       # of the window: a disk that had work so long demanded its minimum
    GATE_MET_PERCENT = 95        # of the minimum: what is enforced within 5 % is measured within 5 %

cdef enum GateStatus:
    GATE_QUIET = 0               # the window changed nothing
    GATE_MISSED = 1              # the disk had demand and got less than its minimum: news
    GATE_MET = 2                 # it is met again, or nobody demands it any more: news

# The limits as they are set, per second; 0 = none.
ctypedef struct GateLimits:
    uint64_t max_iops
    uint64_t max_bandwidth       # bytes
    uint64_t min_iops
    uint64_t min_bandwidth

# A virtual clock of one rate.
ctypedef struct GateRate:
    uint64_t rate                # per second; 0 = none
    uint64_t due_ns
    uint64_t rest                # of a nanosecond, in 1 / rate

# One request, embedded in its owner's struct. Zeros before its first use.
ctypedef struct GateItem:
    GateItem *next
    uint64_t bytes
    uint64_t since_ns            # when it began to wait
    bint charged                 # it is in flight, and the gate knows

# What a window showed. Rates are per second.
ctypedef struct GateWindow:
    uint64_t wanted_iops
    uint64_t got_iops
    uint64_t wanted_bandwidth
    uint64_t got_bandwidth
    uint64_t duration_ns
    uint32_t busy_percent        # of the window: something waited or was in flight

ctypedef struct Gate:
    bint limited                 # any of the four is set
    bint watched                 # one of the minima is
    bint missed                  # as last reported
    uint32_t waiting             # items in the queue
    uint32_t in_flight           # items that went and did not come back
    GateRate max_iops
    GateRate max_bandwidth
    GateRate min_iops
    GateRate min_bandwidth
    uint64_t floor_ns            # the earlier due_ns of the minima, for other threads; GATE_NEVER without any
    GateItem *head
    GateItem *tail
    Counters *counters           # throttled, throttle_wait_ns
    uint64_t window_ns           # start of the present window
    uint64_t units               # completed in it
    uint64_t bytes
    uint64_t busy_ns             # of it, until busy_since_ns
    uint64_t busy_since_ns       # while something waits or is in flight

# No limits.
cdef void gate_init(Gate *gate, Counters *counters) noexcept nogil
# Sets all four limits, in force at once: what requests that went have used up is kept, in units and bytes. Afterwards
# whoever waits must be asked for again with gate_next.
cdef void gate_set(Gate *gate, const GateLimits *limits, uint64_t now_ns) noexcept nogil
# 0: a request of so many bytes goes now, and was charged. Else nothing was charged; to be asked again after so many ns.
cdef uint64_t gate_admit(Gate *gate, uint64_t bytes, uint64_t now_ns) noexcept nogil
# True: the request goes now. False: it waits in the queue, behind those that wait already.
cdef bint gate_enter(Gate *gate, GateItem *item, uint64_t bytes, uint64_t now_ns) noexcept nogil
# The next request whose turn has come, out of the queue; or NULL and in *wait_ns when to ask again (0: nobody waits).
cdef GateItem *gate_next(Gate *gate, uint64_t now_ns, uint64_t *wait_ns) noexcept nogil
# A request that went is completed, however it ended. done: whether it did its work.
cdef void gate_leave(Gate *gate, GateItem *item, bint done, uint64_t now_ns) noexcept nogil
# Takes a request out of the queue without letting it go: its channel closes, or it is aborted. False: it is not there.
cdef bint gate_remove(Gate *gate, GateItem *item, uint64_t now_ns) noexcept nogil
# When gate_window is to be called next; GATE_NEVER while there is nothing to measure: an idle disk needs no timer.
cdef uint64_t gate_window_due(const Gate *gate) noexcept nogil
# Ends the window and begins the next. A GateStatus, and the figures.
cdef int gate_window(Gate *gate, uint64_t now_ns, GateWindow *window) noexcept nogil


# What the data path calls: one predictable branch where nothing is limited.

cdef inline bint gate_pass(Gate *gate, GateItem *item, uint64_t bytes) noexcept nogil:
    """True: the request goes now. False: it waits in the gate's queue."""
    if gate_unlikely(gate.limited):
        return gate_enter(gate, item, bytes, clock_ns())
    item.charged = False
    return True


cdef inline void gate_done(Gate *gate, GateItem *item, bint done) noexcept nogil:
    """The request is completed."""
    if gate_unlikely(item.charged):
        gate_leave(gate, item, done, clock_ns())


cdef inline bint gate_urgent(const Gate *gate, uint64_t now_ns) noexcept nogil:
    """Whether the disk is behind its minimum: it should be served before others. From any thread."""
    return load_relaxed64(&gate.floor_ns) <= now_ns
