# Counters that are always on: one block per writing thread, on cache lines of its own, in any memory, shared or not.
# The writer counts with count64(&block.requests, 1); readers see whole values. All words in this machine's byte order.
#
# Latency is sampled: a clock read at both ends of every request would cost more than all counters together. The first
# request is stamped and then one in 64 on average, after gaps drawn at random from 1 to 127: what a request is has no
# part in whether it is stamped, and no period in the guest's requests can meet the samples' own. So the mean of the
# samples is an unbiased estimate of the mean of all.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.linux.atomics cimport count64, load_relaxed64, store_relaxed64
from hvcore.linux.clock cimport clock_coarse_ns, clock_ns

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <sys/resource.h>
    #ifndef HV_COUNTERS
    #define HV_COUNTERS
    typedef struct {
        uint64_t requests, hand_overs, ring_packets, port_accesses, intercepts, bytes_copied, doorbells, blocking_waits;
        uint64_t media_accesses, errors, read_operations, write_operations, read_bytes, write_bytes, io_units;
        uint64_t queue_length;
        uint64_t flushes, unmaps, throttled, throttle_wait_ns, latency_ns, latency_samples, latency_max_ns;
        uint64_t interrupts_received, interrupts_sent, reserved[7];
    } hv_counters;
    _Static_assert(sizeof(hv_counters) == 256, "counters: four cache lines");
    _Static_assert(offsetof(hv_counters, media_accesses) == 64, "counters: the second line");
    _Static_assert(offsetof(hv_counters, flushes) == 128, "counters: the third line");
    static inline int hv_counters_unlikely(int condition) { return __builtin_expect(condition, 0); }
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
        uint64_t read_operations     # completed well, like the next five
        uint64_t write_operations
        uint64_t read_bytes
        uint64_t write_bytes
        uint64_t io_units            # of 8 KiB: io_units() of each request of the medium
        uint64_t queue_length        # now: requests of the medium that wait or are in flight
        uint64_t flushes
        uint64_t unmaps
        uint64_t throttled           # requests that had to wait for the quality of service
        uint64_t throttle_wait_ns    # all their waiting
        uint64_t latency_ns          # sum over the samples, from the end of such a wait to the completion
        uint64_t latency_samples
        uint64_t latency_max_ns      # greatest sample
        uint64_t interrupts_received  # the guest's event flag was found set
        uint64_t interrupts_sent     # doorbells for the guest, of all doorbells
    # Context switches of the calling thread since it began: it gave the CPU up, or it was taken away.
    void thread_switches "hv_thread_switches"(uint64_t *voluntary, uint64_t *involuntary) noexcept nogil
    int counters_unlikely "hv_counters_unlikely"(int condition) noexcept nogil

cdef enum:
    IO_UNIT_BYTES = 8192
    SAMPLE_GAP_MAX = 127         # gaps between samples: 1 to 127, each as likely, 64 on average

cdef enum IoKind:                # what a request of the medium was, for counters_io
    IO_OTHER = 0
    IO_READ = 1
    IO_WRITE = 2
    IO_FLUSH = 3
    IO_UNMAP = 4

# When the next request is stamped. Private to the writer of the counters; zeros are a valid start.
ctypedef struct Sampler:
    uint64_t random
    uint32_t left                # requests until the next sample

# One request's place for its latency.
ctypedef struct LatencyStamp:
    uint64_t since_ns            # 0: not stamped
    bint sampled                 # by the fine clock, for the counters; else by the coarse one, for slow requests only


# The block as Python reads it, by name. Each value is whole; nothing is stopped.
cdef dict counters_dict(const Counters *block)


cdef inline Counters *counters_at(void *base, uint64_t size_bytes, uint64_t offset) noexcept nogil:
    """The block at `offset`, or NULL when it is not within the buffer or not aligned to 64 bytes."""
    if offset > size_bytes or size_bytes - offset < sizeof(Counters) or <size_t> (<uint8_t *> base + offset) % 64:
        return NULL
    return <Counters *> (<uint8_t *> base + offset)


cdef inline uint64_t io_units(uint64_t bytes) noexcept nogil:
    """A request's normalised size: in units of 8 KiB, a part of one counts whole, no data counts one."""
    return (bytes - 1) // IO_UNIT_BYTES + 1 if bytes else 1


cdef inline void counters_io(Counters *counters, int kind, uint64_t bytes) noexcept nogil:
    """A request of the medium was completed well. bytes: what counts as its size, nothing for a flush or an unmap."""
    count64(&counters.io_units, io_units(bytes))
    if kind == IO_READ:
        count64(&counters.read_operations, 1)
        count64(&counters.read_bytes, bytes)
    elif kind == IO_WRITE:
        count64(&counters.write_operations, 1)
        count64(&counters.write_bytes, bytes)
    elif kind == IO_FLUSH:
        count64(&counters.flushes, 1)
    elif kind == IO_UNMAP:
        count64(&counters.unmaps, 1)


cdef inline bint sample_due(Sampler *sampler) noexcept nogil:
    """Whether this request is a sample. A decrement and a branch when it is not."""
    if not counters_unlikely(sampler.left <= 1):
        sampler.left -= 1
        return False
    # The upper bits of a linear congruential generator (Knuth's multiplier) are random enough for gaps.
    sampler.random = sampler.random * <uint64_t> 6364136223846793005 + <uint64_t> 1442695040888963407
    sampler.left = <uint32_t> (sampler.random >> 33) % SAMPLE_GAP_MAX + 1
    return True


cdef inline void latency_begin(LatencyStamp *stamp, Sampler *sampler, bint slow) noexcept nogil:
    """The request goes to work. slow: whether slow requests are reported, so that every request needs a time."""
    stamp.since_ns = 0
    if sample_due(sampler):
        stamp.sampled = True
        stamp.since_ns = clock_ns()
    elif counters_unlikely(slow):
        stamp.sampled = False
        stamp.since_ns = clock_coarse_ns()


cdef inline void latency_count(Counters *counters, uint64_t ns) noexcept nogil:
    count64(&counters.latency_ns, ns)
    count64(&counters.latency_samples, 1)
    if ns > counters.latency_max_ns:
        store_relaxed64(&counters.latency_max_ns, ns)


cdef inline uint64_t latency_end(LatencyStamp *stamp, Counters *counters) noexcept nogil:
    """The request is completed: its latency in ns, counted if it was a sample; 0 when it has no stamp."""
    cdef uint64_t now
    if not counters_unlikely(stamp.since_ns != 0):
        return 0
    now = clock_ns() if stamp.sampled else clock_coarse_ns()
    now = now - stamp.since_ns if now > stamp.since_ns else 0
    if stamp.sampled:
        latency_count(counters, now)
    stamp.since_ns = 0
    return now
