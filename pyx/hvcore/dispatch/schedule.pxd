# When requests are meant to start. In a closed loop whenever there is room; in an open loop at times that are fixed
# before the first request starts and do not wait for any answer: what a stall delays is counted from when it was due.

from libc.stdint cimport uint64_t

from hvcore.dispatch.random cimport Random

cdef enum ScheduleKind:
    SCHEDULE_CLOSED = 0
    SCHEDULE_CONSTANT = 1
    SCHEDULE_POISSON = 2

ctypedef struct Schedule:
    Random random
    int kind                     # ScheduleKind
    double interval_ns           # mean, between two starts
    uint64_t begin_ns            # CLOCK_MONOTONIC: time 0
    uint64_t index               # of the request that is next
    double after_ns              # Poisson: its time
    uint64_t due_ns              # CLOCK_MONOTONIC: when it is to start

# Time 0 of an open loop; due_ns is then the first request's.
cdef void schedule_begin(Schedule *schedule, uint64_t begin_ns) noexcept nogil
# To the next request.
cdef void schedule_next(Schedule *schedule) noexcept nogil
# How many requests are due from the next one on until end_ns; of random arrivals the expected number.
cdef uint64_t schedule_left(Schedule *schedule, uint64_t end_ns) noexcept nogil
cdef int schedule_setup(Schedule *schedule, rate, str arrivals, uint64_t seed) except -1
