# What a load did in each second. Only the interval at hand has a full histogram; when it is over it goes into a row of
# the series with a coarser one, so the hot path records once and allocates nothing. Rows are allocated beforehand: when
# they run out, two make one from then on.

from libc.stdint cimport uint32_t, uint64_t

from hvcore.metrics.histogram cimport Histogram

cdef enum:
    SERIES_ROWS = 3600
    SERIES_BUCKETS = 561         # of a row: four of the histogram's in one, 16 steps to each power of two

ctypedef struct SeriesRow:
    uint64_t requests
    uint64_t bytes
    uint64_t errors
    uint32_t[561] buckets        # latencies

ctypedef struct Series:
    SeriesRow *rows              # NULL: totals only
    uint32_t capacity            # even
    uint32_t row                 # the interval at hand
    uint64_t begin_ns            # CLOCK_MONOTONIC, of the first interval
    uint64_t interval_ns
    uint64_t end_ns              # of the interval at hand
    uint64_t until_ns            # of the series, once it has turned
    # since then
    uint64_t requests
    uint64_t bytes
    uint64_t errors
    Histogram latency
    # of all intervals that are over
    uint64_t total_requests
    uint64_t total_bytes
    uint64_t total_errors
    Histogram *total

# rows may be NULL; else `capacity` of them, zeroed. total: whose latencies are added up.
cdef void series_begin(Series *series, SeriesRow *rows, uint32_t capacity, uint64_t interval_ns, uint64_t begin_ns,
                       Histogram *total) noexcept nogil
# Closes the interval at hand and opens the one that holds now_ns. Also at the end.
cdef void series_turn(Series *series, uint64_t now_ns) noexcept nogil


cdef class LoadSeries:
    cdef Series series
    cdef object total            # LatencyHistogram
