# CLOCK_MONOTONIC in nanoseconds: comparable between the processes of one machine.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <time.h>
    #ifndef HV_CLOCK
    #define HV_CLOCK
    static inline uint64_t hv_clock_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
    }
    /* As of the last timer tick, 1 to 10 ms ago (4 where HZ is 250); cheaper, for it reads no hardware counter. */
    static inline uint64_t hv_clock_coarse_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
        return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
    }
    #endif
    """
    uint64_t clock_ns "hv_clock_ns"() noexcept nogil
    uint64_t clock_coarse_ns "hv_clock_coarse_ns"() noexcept nogil
