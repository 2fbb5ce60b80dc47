"""What the data path adds to each request for its limits, counters and events, in loops without the GIL."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from hvcore.linux.clock cimport clock_coarse_ns, clock_ns
from hvcore.metrics.counters cimport (
    IO_READ, Counters, LatencyStamp, Sampler, counters_io, latency_begin, latency_end)
from hvcore.metrics.events cimport EVENT_FAILED, Event, EventLog, events_create, events_slow, events_write
from hvcore.storage.gate cimport Gate, GateItem, GateLimits, gate_done, gate_init, gate_pass, gate_set

PARTS = ("clock", "coarse clock", "gate without limits", "gate with both maxima", "gate with all limits", "counters",
         "sampled latency", "latency of every request", "failed request held back", "failed request written")

cdef struct State:
    Counters counters
    Gate gate
    GateItem item
    Sampler sampler
    LatencyStamp stamp
    EventLog log
    uint64_t memory[1 << 15]


cdef uint64_t work(State *state, int part, uint64_t count) noexcept nogil:
    """How much was odd: it keeps the compiler from leaving the work out."""
    cdef uint64_t i, odd = 0
    cdef Event event
    memset(&event, 0, sizeof(Event))
    event.kind = EVENT_FAILED
    for i in range(count):
        if part == 0:
            odd += clock_ns() & 1
        elif part == 1:
            odd += clock_coarse_ns() & 1
        elif part <= 4:
            odd += not gate_pass(&state.gate, &state.item, 4096)
            gate_done(&state.gate, &state.item, True)
        elif part == 5:
            counters_io(&state.counters, IO_READ, 4096)
        elif part <= 7:
            latency_begin(&state.stamp, &state.sampler, part == 7)
            odd += events_slow(&state.log, latency_end(&state.stamp, &state.counters))
        else:
            event.time_ns = 1000000000 if part == 8 else (i + 1) * 1000000000
            odd += events_write(&state.log, &event)
    return odd


def measure(str part, uint64_t count):
    """Nanoseconds for each of `count` requests."""
    cdef State state
    cdef GateLimits limits
    cdef int number = PARTS.index(part)
    cdef uint64_t begin, end, odd
    memset(&state, 0, sizeof(State))
    memset(&limits, 0, sizeof(GateLimits))
    gate_init(&state.gate, &state.counters)
    events_create(&state.log, state.memory, sizeof(state.memory))
    # So high that nothing waits: the arithmetic is the same.
    if number == 3 or number == 4:
        limits.max_iops = limits.max_bandwidth = <uint64_t> 1 << 40
    if number == 4:
        limits.min_iops = limits.min_bandwidth = 1000
    gate_set(&state.gate, &limits, clock_ns())
    with nogil:
        begin = clock_ns()
        odd = work(&state, number, count)
        end = clock_ns()
    if odd > count:
        raise AssertionError
    return <double> (end - begin) / count
