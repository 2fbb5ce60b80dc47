# Known content of a disk, by which a wrong block is found.
#
# Pattern: the 64-bit word at byte offset o is o * K + seed, little-endian. A block that is written gets a generation g,
# a number that no other write has: its words are o * K + seed + g * L. Generation 0 is the pattern itself. From a word
# and its offset g can be told again (L is odd, so it has an inverse): whether a wrong block is an older one is known.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #ifndef HV_PATTERN
    #define HV_PATTERN
    #define HV_PATTERN_K UINT64_C(0x9E3779B97F4A7C15)
    #define HV_PATTERN_L UINT64_C(0xD6E8FEB86659FD93)
    #define HV_PATTERN_L_INVERSE UINT64_C(0xCFEE444D8B59A89B)
    _Static_assert(HV_PATTERN_L * HV_PATTERN_L_INVERSE == 1, "pattern: inverse modulo 2**64");
    /* Plain loops of independent words, so that the compiler vectorises them. seed: with the generation in it. */
    static inline void hv_pattern_fill(uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) {
        for (uint64_t i = 0; i < length; i += 8) {
            uint64_t word = (offset + i) * HV_PATTERN_K + seed;
            memcpy(data + i, &word, 8);
        }
    }
    static inline int hv_pattern_holds(const uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) {
        uint64_t difference = 0;
        for (uint64_t i = 0; i < length; i += 8) {
            uint64_t word;
            memcpy(&word, data + i, 8);
            difference |= word ^ ((offset + i) * HV_PATTERN_K + seed);
        }
        return difference == 0;
    }
    static inline uint64_t hv_generation_seed(uint64_t seed, uint64_t generation) {
        return seed + generation * HV_PATTERN_L;
    }
    /* The generation of the word at data; nonsense when it is none of ours. */
    static inline uint64_t hv_pattern_generation(const uint8_t *data, uint64_t offset, uint64_t seed) {
        uint64_t word;
        memcpy(&word, data, 8);
        return (word - offset * HV_PATTERN_K - seed) * HV_PATTERN_L_INVERSE;
    }
    #endif
    """
    void pattern_fill "hv_pattern_fill"(uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) noexcept nogil
    bint pattern_holds "hv_pattern_holds"(
        const uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) noexcept nogil
    uint64_t generation_seed "hv_generation_seed"(uint64_t seed, uint64_t generation) noexcept nogil
    uint64_t pattern_generation "hv_pattern_generation"(
        const uint8_t *data, uint64_t offset, uint64_t seed) noexcept nogil

# What is wrong with what a read brought; ordered by gravity.
cdef enum Fault:
    FAULT_NONE = 0
    FAULT_STALE = 1              # an older generation: the last write of the block was lost
    FAULT_TORN = 2               # of the last write a part is there, and of older ones the rest
    FAULT_WRONG = 3              # nothing that was ever written there

# What the disk holds, by unit: the smallest block size, which offsets and lengths are multiples of. Requests of one
# load never overlap where one of them writes: the one that would waits. One load at a time.
ctypedef struct Content:
    # Of each unit: the generation of the write whose content it holds (48 bits; all ones: nothing is known, because a
    # write failed or it was trimmed), and above it its users: reads in flight, or all ones for a write.
    uint64_t *units
    uint64_t first               # byte of the disk
    uint64_t count
    uint32_t unit                # bytes
    bint known                   # generation 0 is the pattern; else nothing is known of what was never written
    uint64_t seed
    uint64_t generation          # of the last write

# May the request start? True: its units are its own until content_release().
cdef bint content_claim(Content *content, uint64_t offset, uint32_t length, bint write) noexcept nogil
# generation: what the units hold from now on, of a write or a trim.
cdef void content_release(
    Content *content, uint64_t offset, uint32_t length, bint write, uint64_t generation) noexcept nogil
# The request was never made: its units hold what they held.
cdef void content_drop(Content *content, uint64_t offset, uint32_t length, bint write) noexcept nogil
# A claimed range against what was read; Fault. wrong_offset: the first byte of the first wrong unit. checked: bytes.
cdef int content_check(Content *content, const uint8_t *data, uint64_t offset, uint32_t length,
                       uint64_t *wrong_offset, uint64_t *checked) noexcept nogil

cdef enum:
    GENERATION_BITS = 48


cdef inline uint64_t generation_unknown() noexcept nogil:
    return (<uint64_t> 1 << GENERATION_BITS) - 1


cdef class KnownContent:
    cdef Content content
