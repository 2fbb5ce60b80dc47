# Latency histogram: log-linear, 64 steps to each power of two, so that a value is known to better than one part in 64
# whatever its size. A struct of plain words: zeroed is empty, and histograms of several threads are added afterwards.
# One thread at a time.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #ifndef HV_HISTOGRAM
    #define HV_HISTOGRAM
    #define HV_HISTOGRAM_LIMIT (UINT64_C(1) << 40)
    #define HV_HISTOGRAM_BUCKETS 2241u
    typedef struct {
        uint64_t count, sum, min, max;
        uint64_t buckets[HV_HISTOGRAM_BUCKETS];
    } hv_histogram;
    _Static_assert(sizeof(hv_histogram) == 8 * (4 + HV_HISTOGRAM_BUCKETS), "histogram");
    static inline uint32_t hv_log2(uint64_t value) { return 63u - (uint32_t) __builtin_clzll(value); }
    #endif
    """
    ctypedef struct Histogram "hv_histogram":
        uint64_t count
        uint64_t sum                 # ns
        uint64_t min                 # ns; 0 while empty
        uint64_t max                 # ns
        uint64_t *buckets
    uint32_t HISTOGRAM_BUCKETS "HV_HISTOGRAM_BUCKETS"
    uint64_t HISTOGRAM_LIMIT "HV_HISTOGRAM_LIMIT"        # ns, 18 minutes: longer counts as this long
    uint32_t value_log2 "hv_log2"(uint64_t value) noexcept nogil

cdef enum HistogramStatus:
    HISTOGRAM_OK = 0
    HISTOGRAM_OVERFLOW = -1          # the counts together do not fit 64 bits


cdef inline uint32_t histogram_bucket(uint64_t ns) noexcept nogil:
    """The bucket of a value up to HISTOGRAM_LIMIT. Below 128 each has its own; then the width doubles every 64."""
    if ns < 64:
        return <uint32_t> ns
    cdef uint32_t shift = value_log2(ns) - 6
    return shift * 64 + <uint32_t> (ns >> shift)


cdef inline uint32_t histogram_shift(uint32_t bucket) noexcept nogil:
    return 0 if bucket < 128 else bucket // 64 - 1


cdef inline uint64_t histogram_low(uint32_t bucket) noexcept nogil:
    """The smallest value of the bucket; it holds 1 << histogram_shift(bucket) of them."""
    cdef uint32_t shift = histogram_shift(bucket)
    return <uint64_t> (bucket - shift * 64) << shift


cdef inline void histogram_record(Histogram *h, uint64_t ns) noexcept nogil:
    # Saturated, also in the sum: it then overflows only after 2**24 values of 18 minutes.
    if ns > HISTOGRAM_LIMIT:
        ns = HISTOGRAM_LIMIT
    if h.count == 0 or ns < h.min:
        h.min = ns
    if ns > h.max:
        h.max = ns
    h.count += 1
    h.sum += ns
    h.buckets[histogram_bucket(ns)] += 1


# Adds `other`; HISTOGRAM_OVERFLOW leaves `h` as it was.
cdef int histogram_merge(Histogram *h, const Histogram *other) noexcept nogil
# The value in ns that q percent of the values do not exceed (nearest rank), to 1/128 of itself; q <= 0 is the minimum,
# q >= 100 the maximum, both exact. 0 when empty.
cdef uint64_t histogram_percentile(const Histogram *h, double q) noexcept nogil


cdef class LatencyHistogram:
    cdef Histogram data
