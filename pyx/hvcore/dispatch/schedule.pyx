"""Start times of an open loop: constant or Poisson arrivals at a rate."""

import math

cimport cython
from libc.math cimport ceil, log1p
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from hvcore.dispatch.random cimport random_seed, random_unit

ARRIVALS = ("constant", "poisson")
RATE_MAX = 1e8                   # per second: ten nanoseconds apart


cdef void schedule_place(Schedule *schedule) noexcept nogil:
    """From the index where intervals are constant: no rounding adds up."""
    cdef double after = schedule.after_ns
    if schedule.kind == SCHEDULE_CONSTANT:
        after = <double> schedule.index * schedule.interval_ns
    schedule.due_ns = schedule.begin_ns + <uint64_t> after


cdef void schedule_draw(Schedule *schedule) noexcept nogil:
    """Poisson: independent exponential intervals."""
    schedule.after_ns -= log1p(-random_unit(&schedule.random)) * schedule.interval_ns


cdef void schedule_begin(Schedule *schedule, uint64_t begin_ns) noexcept nogil:
    schedule.begin_ns = begin_ns
    schedule.index = 0
    schedule.after_ns = 0
    if schedule.kind == SCHEDULE_POISSON:
        schedule_draw(schedule)
    schedule_place(schedule)


cdef void schedule_next(Schedule *schedule) noexcept nogil:
    schedule.index += 1
    if schedule.kind == SCHEDULE_POISSON:
        schedule_draw(schedule)
    schedule_place(schedule)


cdef uint64_t schedule_left(Schedule *schedule, uint64_t end_ns) noexcept nogil:
    if schedule.kind == SCHEDULE_CLOSED or schedule.due_ns >= end_ns:
        return 0
    return <uint64_t> ceil(<double> (end_ns - schedule.due_ns) / schedule.interval_ns)


cdef int schedule_setup(Schedule *schedule, rate, str arrivals, uint64_t seed) except -1:
    memset(schedule, 0, sizeof(Schedule))
    if arrivals not in ARRIVALS:
        raise ValueError(f"arrivals are {' or '.join(ARRIVALS)}, not {arrivals!r}")
    if rate is None:
        return 0
    if not (math.isfinite(rate) and 0 < rate <= RATE_MAX):
        raise ValueError(f"a rate of {rate} requests per second is not above 0 and at most {RATE_MAX:,.0f}")
    schedule.kind = SCHEDULE_CONSTANT if arrivals == "constant" else SCHEDULE_POISSON
    schedule.interval_ns = 1e9 / rate
    random_seed(&schedule.random, seed, 1)
    return 0


@cython.final
cdef class Arrivals:
    """The start times of an open loop, without a disk: for looking at them."""
    cdef Schedule schedule

    def __init__(self, double rate, str arrivals="constant", uint64_t seed=1):
        schedule_setup(&self.schedule, rate, arrivals, seed)
        schedule_begin(&self.schedule, 0)

    def take(self, uint32_t count):
        """The next `count` times, in ns from the first moment on."""
        found = []
        for _ in range(count):
            found.append(self.schedule.due_ns)
            schedule_next(&self.schedule)
        return found

    def left(self, uint64_t end_ns):
        """How many times before `end_ns` are still to come; of random arrivals the expected number."""
        return schedule_left(&self.schedule, end_ns)
