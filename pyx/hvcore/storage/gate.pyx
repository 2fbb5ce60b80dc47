"""Quality of service of a disk: maxima that hold requests back, minima that are watched."""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint64_t
from libc.string cimport memset

from hvcore.linux.atomics cimport count64, store_relaxed64
from hvcore.metrics.counters cimport Counters, counters_dict, io_units

BURST_NS = GATE_BURST_NS
WINDOW_NS = GATE_WINDOW_NS
BUSY_PERCENT = GATE_BUSY_PERCENT
MET_PERCENT = GATE_MET_PERCENT
LIMIT_MAX = 1 << 40              # per second


# A rate's clock.

cdef inline void rate_set(GateRate *clock, uint64_t rate, uint64_t now_ns) noexcept nogil:
    if clock.rate and rate and clock.due_ns > now_ns:
        # What was used up ahead of time, in units, at the new rate.
        clock.due_ns = min(<uint64_t> GATE_NEVER, now_ns + gate_scale(clock.due_ns - now_ns, clock.rate, rate))
    elif not clock.rate or not rate:
        clock.due_ns = now_ns
    # Less than a nanosecond, once a change.
    clock.rest = 0
    clock.rate = rate


cdef inline uint64_t rate_wait(const GateRate *clock, uint64_t now_ns) noexcept nogil:
    return clock.due_ns - now_ns if clock.rate and clock.due_ns > now_ns else 0


cdef inline void rate_charge(GateRate *clock, uint64_t cost, uint64_t lag_ns, uint64_t now_ns) noexcept nogil:
    if not clock.rate:
        return
    if clock.due_ns + lag_ns < now_ns:
        clock.due_ns = now_ns - lag_ns
        clock.rest = 0
    clock.due_ns = min(<uint64_t> GATE_NEVER, clock.due_ns + gate_time(cost, clock.rate, &clock.rest))


# Maxima.

cdef void gate_init(Gate *gate, Counters *counters) noexcept nogil:
    memset(gate, 0, sizeof(Gate))
    gate.counters = counters
    gate.floor_ns = GATE_NEVER


cdef void gate_set(Gate *gate, const GateLimits *limits, uint64_t now_ns) noexcept nogil:
    cdef bint watched = gate.watched
    rate_set(&gate.max_iops, limits.max_iops, now_ns)
    rate_set(&gate.max_bandwidth, limits.max_bandwidth, now_ns)
    rate_set(&gate.min_iops, limits.min_iops, now_ns)
    rate_set(&gate.min_bandwidth, limits.min_bandwidth, now_ns)
    gate.watched = limits.min_iops != 0 or limits.min_bandwidth != 0
    gate.limited = gate.watched or limits.max_iops != 0 or limits.max_bandwidth != 0
    gate_floor(gate)
    if gate.watched and not watched:
        gate_open_window(gate, now_ns)


cdef uint64_t gate_admit(Gate *gate, uint64_t bytes, uint64_t now_ns) noexcept nogil:
    cdef uint64_t wait = max(rate_wait(&gate.max_iops, now_ns), rate_wait(&gate.max_bandwidth, now_ns))
    if wait == 0:
        rate_charge(&gate.max_iops, io_units(bytes), GATE_BURST_NS, now_ns)
        rate_charge(&gate.max_bandwidth, bytes, GATE_BURST_NS, now_ns)
    return wait


# The queue.

cdef bint gate_enter(Gate *gate, GateItem *item, uint64_t bytes, uint64_t now_ns) noexcept nogil:
    if gate.waiting == 0 and gate.in_flight == 0:
        gate_busy(gate, now_ns)
    item.next = NULL
    item.bytes = bytes
    # Behind those that wait, even where its turn has come: a late timer must not let it overtake them.
    if gate.waiting == 0 and gate_admit(gate, bytes, now_ns) == 0:
        item.charged = True
        gate.in_flight += 1
        return True
    item.charged = False
    item.since_ns = now_ns
    if gate.tail == NULL:
        gate.head = item
    else:
        gate.tail.next = item
    gate.tail = item
    gate.waiting += 1
    count64(&gate.counters.throttled, 1)
    return False


cdef void gate_unlink(Gate *gate, GateItem *before, GateItem *item, uint64_t now_ns) noexcept nogil:
    """before: the item in front of it, or NULL."""
    if before == NULL:
        gate.head = item.next
    else:
        before.next = item.next
    if gate.tail == item:
        gate.tail = before
    item.next = NULL
    gate.waiting -= 1
    if now_ns > item.since_ns:
        count64(&gate.counters.throttle_wait_ns, now_ns - item.since_ns)


cdef GateItem *gate_next(Gate *gate, uint64_t now_ns, uint64_t *wait_ns) noexcept nogil:
    cdef GateItem *item = gate.head
    wait_ns[0] = 0
    if item == NULL:
        return NULL
    wait_ns[0] = gate_admit(gate, item.bytes, now_ns)
    if wait_ns[0]:
        return NULL
    gate_unlink(gate, NULL, item, now_ns)
    item.charged = True
    gate.in_flight += 1
    return item


cdef bint gate_remove(Gate *gate, GateItem *item, uint64_t now_ns) noexcept nogil:
    cdef GateItem *before = NULL
    cdef GateItem *each = gate.head
    while each != NULL and each != item:
        before = each
        each = each.next
    if each == NULL:
        return False
    gate_unlink(gate, before, item, now_ns)
    if gate.waiting == 0 and gate.in_flight == 0:
        gate_idle(gate, now_ns)
    return True


cdef void gate_leave(Gate *gate, GateItem *item, bint done, uint64_t now_ns) noexcept nogil:
    item.charged = False
    gate.in_flight -= 1
    if done:
        gate.units += io_units(item.bytes)
        gate.bytes += item.bytes
        # As far behind as a window is long: what was missed longer ago is lost.
        rate_charge(&gate.min_iops, io_units(item.bytes), GATE_WINDOW_NS, now_ns)
        rate_charge(&gate.min_bandwidth, item.bytes, GATE_WINDOW_NS, now_ns)
        gate_floor(gate)
    if gate.waiting == 0 and gate.in_flight == 0:
        gate_idle(gate, now_ns)


# Minima.

cdef void gate_floor(Gate *gate) noexcept nogil:
    cdef uint64_t floor_ns = GATE_NEVER
    if gate.min_iops.rate:
        floor_ns = gate.min_iops.due_ns
    if gate.min_bandwidth.rate:
        floor_ns = min(floor_ns, gate.min_bandwidth.due_ns)
    # Relaxed: a thread that reads it only takes a hint.
    store_relaxed64(&gate.floor_ns, floor_ns)


cdef void gate_busy(Gate *gate, uint64_t now_ns) noexcept nogil:
    """The first request after a time without any. An idle disk did not fall behind."""
    gate.busy_since_ns = now_ns
    if gate.watched:
        # The last window ended long ago; nobody measured it, for there was nothing.
        if gate_window_due(gate) == GATE_NEVER and now_ns >= gate.window_ns + GATE_WINDOW_NS:
            gate_open_window(gate, now_ns)
        gate.min_iops.due_ns = max(gate.min_iops.due_ns, now_ns)
        gate.min_bandwidth.due_ns = max(gate.min_bandwidth.due_ns, now_ns)
        gate_floor(gate)


cdef void gate_idle(Gate *gate, uint64_t now_ns) noexcept nogil:
    if now_ns > gate.busy_since_ns:
        gate.busy_ns += now_ns - gate.busy_since_ns


cdef void gate_open_window(Gate *gate, uint64_t now_ns) noexcept nogil:
    gate.window_ns = now_ns
    gate.units = 0
    gate.bytes = 0
    gate.busy_ns = 0
    gate.busy_since_ns = now_ns


cdef inline bint short_of(uint64_t got, uint64_t wanted) noexcept nogil:
    return gate_scale(got, 100, GATE_MET_PERCENT) < wanted


cdef uint64_t gate_window_due(const Gate *gate) noexcept nogil:
    if gate.missed and not gate.watched:
        return 0
    if gate.watched and (gate.waiting or gate.in_flight or gate.busy_ns or gate.units or gate.missed):
        return gate.window_ns + GATE_WINDOW_NS
    return GATE_NEVER


cdef int gate_window(Gate *gate, uint64_t now_ns, GateWindow *window) noexcept nogil:
    cdef uint64_t duration = now_ns - gate.window_ns if now_ns > gate.window_ns else 0
    cdef bint missed
    memset(window, 0, sizeof(GateWindow))
    if not gate.watched:
        if not gate.missed:
            return GATE_QUIET
        gate.missed = False
        return GATE_MET
    if duration == 0:
        return GATE_QUIET
    if gate.waiting or gate.in_flight:
        gate_idle(gate, now_ns)
    window.duration_ns = duration
    window.wanted_iops = gate.min_iops.rate
    window.wanted_bandwidth = gate.min_bandwidth.rate
    window.got_iops = gate_scale(gate.units, 1000000000, duration)
    window.got_bandwidth = gate_scale(gate.bytes, 1000000000, duration)
    window.busy_percent = <uint32_t> gate_scale(min(gate.busy_ns, duration), 100, duration)
    missed = window.busy_percent >= GATE_BUSY_PERCENT and (
        short_of(window.got_iops, window.wanted_iops) or short_of(window.got_bandwidth, window.wanted_bandwidth))
    gate_open_window(gate, now_ns)
    if missed == gate.missed:
        return GATE_QUIET
    gate.missed = missed
    return GATE_MISSED if missed else GATE_MET


def check_limits(max_iops=0, max_bandwidth=0, min_iops=0, min_bandwidth=0):
    """ValueError when the limits, all per second and 0 for none, cannot be."""
    limits = {"max_iops": max_iops, "max_bandwidth": max_bandwidth, "min_iops": min_iops,
              "min_bandwidth": min_bandwidth}
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LIMIT_MAX:
            raise ValueError(f"{name} is {value!r}: it must be a whole number from 0 (no limit) to {LIMIT_MAX}")
    for what in ("iops", "bandwidth"):
        least, most = limits[f"min_{what}"], limits[f"max_{what}"]
        if most and least > most:
            raise ValueError(f"min_{what} {least} is above max_{what} {most}")


@cython.final
cdef class DiskGate:
    """A gate with a clock of the caller's, requests by number, and counters of its own: the data path's gate as Python
    drives it, for models and for tests. One thread at a time.

    Times are ns and must not go back. Requests are numbered 0 to `requests` - 1.
    """

    cdef Gate gate
    cdef Counters block
    cdef GateItem *items
    cdef uint64_t count

    def __cinit__(self, uint64_t requests=1024):
        memset(&self.block, 0, sizeof(Counters))
        gate_init(&self.gate, &self.block)
        self.items = <GateItem *> PyMem_Calloc(requests, sizeof(GateItem))
        if self.items == NULL:
            raise MemoryError
        self.count = requests

    def __dealloc__(self):
        PyMem_Free(self.items)

    cdef GateItem *item(self, uint64_t number) except NULL:
        if number >= self.count:
            raise IndexError(f"request {number} of {self.count}")
        return &self.items[number]

    cdef bint waits(self, GateItem *item):
        cdef GateItem *each = self.gate.head
        while each != NULL and each != item:
            each = each.next
        return each != NULL

    def set(self, uint64_t now_ns, max_iops=0, max_bandwidth=0, min_iops=0, min_bandwidth=0):
        """ValueError: see check_limits."""
        cdef GateLimits limits
        check_limits(max_iops, max_bandwidth, min_iops, min_bandwidth)
        limits.max_iops, limits.max_bandwidth = max_iops, max_bandwidth
        limits.min_iops, limits.min_bandwidth = min_iops, min_bandwidth
        gate_set(&self.gate, &limits, now_ns)

    def admit(self, uint64_t size_bytes, uint64_t now_ns):
        """0: charged; else ns to wait, and nothing was charged."""
        return gate_admit(&self.gate, size_bytes, now_ns)

    def enter(self, uint64_t number, uint64_t size_bytes, uint64_t now_ns):
        """Whether the request goes; else it waits."""
        cdef GateItem *item = self.item(number)
        if item.charged or self.waits(item):
            raise ValueError(f"request {number} is under way")
        return gate_enter(&self.gate, item, size_bytes, now_ns)

    def next(self, uint64_t now_ns):
        """(the request that goes now or None, ns after which to ask again or 0)."""
        cdef uint64_t wait = 0
        cdef GateItem *item = gate_next(&self.gate, now_ns, &wait)
        return (None if item == NULL else item - self.items), wait

    def leave(self, uint64_t number, uint64_t now_ns, bint done=True):
        cdef GateItem *item = self.item(number)
        if not item.charged:
            raise ValueError(f"request {number} is not in flight")
        gate_leave(&self.gate, item, done, now_ns)

    def remove(self, uint64_t number, uint64_t now_ns):
        """Whether it waited."""
        return gate_remove(&self.gate, self.item(number), now_ns)

    def window(self, uint64_t now_ns):
        """("quiet", "missed" or "met", figures)."""
        cdef GateWindow window
        cdef int status = gate_window(&self.gate, now_ns, &window)
        return ("quiet", "missed", "met")[status], dict(window)

    @property
    def window_due(self):
        """When window() is to be called next, or None."""
        due = gate_window_due(&self.gate)
        return None if due == GATE_NEVER else due

    def urgent(self, uint64_t now_ns):
        return gate_urgent(&self.gate, now_ns)

    @property
    def limited(self):
        return self.gate.limited

    @property
    def waiting(self):
        return self.gate.waiting

    @property
    def in_flight(self):
        return self.gate.in_flight

    def counters(self):
        return counters_dict(&self.block)
