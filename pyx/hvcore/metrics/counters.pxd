# Counters that are always on: one block per writing thread, on cache lines of its own, in any memory, shared or not.
# The writer counts with count64(&block.requests, 1); readers see whole values. All words in this machine's byte order.

from libc.stdint cimport uint8_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <sys/resource.h>
    #ifndef HV_COUNTERS
    #define HV_COUNTERS
    typedef struct {
        uint64_t requests, hand_overs, ring_packets, port_accesses, intercepts, bytes_copied;
        uint64_t doorbells, blocking_waits, media_accesses, errors;
        uint64_t reserved[6];
    } hv_counters;
    _Static_assert(sizeof(hv_counters) == 128, "counters: two cache lines");
    _Static_assert(offsetof(hv_counters, errors) == 72, "counters");
    static inline void hv_thread_switches(uint64_t *voluntary, uint64_t *involuntary) {
        struct rusage usage;
        getrusage(RUSAGE_THREAD, &usage);           /* fails only for a bad argument */
        *voluntary = (uint64_t) usage.ru_nvcsw;
        *involuntary = (uint64_t) usage.ru_nivcsw;
    }
    #endif
    """
    ctypedef struct Counters "hv_counters":
        uint64_t requests            # completed, whatever their status
        uint64_t hand_overs          # from one partition or process to another
        uint64_t ring_packets        # VMBus rings only
        uint64_t port_accesses
        uint64_t intercepts
        uint64_t bytes_copied        # by hvcore in user space
        uint64_t doorbells           # as measured, like the next
        uint64_t blocking_waits
        uint64_t media_accesses      # calls of the storage stack
        uint64_t errors              # requests that failed
    # Context switches of the calling thread since it began: it gave the CPU up, or it was taken away.
    void thread_switches "hv_thread_switches"(uint64_t *voluntary, uint64_t *involuntary) noexcept nogil


cdef inline Counters *counters_at(void *base, uint64_t size_bytes, uint64_t offset) noexcept nogil:
    """The block at `offset`, or NULL when it is not within the buffer or not aligned to 64 bytes."""
    if offset > size_bytes or size_bytes - offset < sizeof(Counters) or <size_t> (<uint8_t *> base + offset) % 64:
        return NULL
    return <Counters *> (<uint8_t *> base + offset)
