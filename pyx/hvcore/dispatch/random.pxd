# Random numbers of the load generator: xoshiro256** (Blackman and Vigna), seeded by SplitMix64 as its authors advise.
# The same seed gives the same numbers on every machine; streams of one seed differ by their number.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #ifndef HV_RANDOM
    #define HV_RANDOM
    typedef struct { uint64_t s[4]; } hv_random;

    static inline uint64_t hv_splitmix(uint64_t *state) {
        uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        return z ^ z >> 31;
    }
    static inline void hv_random_seed(hv_random *random, uint64_t seed, uint64_t stream) {
        uint64_t state = seed;
        state = hv_splitmix(&state) ^ stream;
        for (int i = 0; i < 4; i++) random->s[i] = hv_splitmix(&state);
    }
    static inline uint64_t hv_random_word(hv_random *random) {
        uint64_t *s = random->s, by5 = s[1] * 5, result = (by5 << 7 | by5 >> 57) * 9, t = s[1] << 17;
        s[2] ^= s[0]; s[3] ^= s[1]; s[1] ^= s[2]; s[0] ^= s[3]; s[2] ^= t;
        s[3] = s[3] << 45 | s[3] >> 19;
        return result;
    }
    /* Below n > 0, each value as likely as the next: the upper half of a product, and a new word in the few cases that
       would favour some (Lemire). */
    static inline uint64_t hv_random_below(hv_random *random, uint64_t n) {
        unsigned __int128 product = (unsigned __int128) hv_random_word(random) * n;
        if (__builtin_expect((uint64_t) product < n, 0)) {
            uint64_t least = (0 - n) % n;
            while ((uint64_t) product < least) product = (unsigned __int128) hv_random_word(random) * n;
        }
        return (uint64_t) (product >> 64);
    }
    /* 0 <= result < 1, 53 bits. */
    static inline double hv_random_unit(hv_random *random) {
        return (double) (hv_random_word(random) >> 11) * 0x1p-53;
    }
    static inline uint64_t hv_multiply_modulo(uint64_t a, uint64_t b, uint64_t n) {
        return a <= UINT32_MAX && b <= UINT32_MAX ? a * b % n : (uint64_t) ((unsigned __int128) a * b % n);
    }
    #endif
    """
    ctypedef struct Random "hv_random":
        uint64_t s[4]
    void random_seed "hv_random_seed"(Random *random, uint64_t seed, uint64_t stream) noexcept nogil
    uint64_t random_word "hv_random_word"(Random *random) noexcept nogil
    uint64_t random_below "hv_random_below"(Random *random, uint64_t n) noexcept nogil
    double random_unit "hv_random_unit"(Random *random) noexcept nogil
    uint64_t multiply_modulo "hv_multiply_modulo"(uint64_t a, uint64_t b, uint64_t n) noexcept nogil
