# Words in shared memory. Plain integers reached through a handful of inline functions, so that every access
# names its ordering. Aligned 32- and 64-bit accesses only (RB-39).

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef HV_ATOMICS
    #define HV_ATOMICS
    static inline uint32_t hv_load_acquire32(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline uint64_t hv_load_acquire64(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline uint32_t hv_load_relaxed32(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
    static inline uint64_t hv_load_relaxed64(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
    static inline void hv_store_release32(uint32_t *word, uint32_t value) {
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    }
    static inline void hv_store_release64(uint64_t *word, uint64_t value) {
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    }
    static inline void hv_store_relaxed32(uint32_t *word, uint32_t value) {
        __atomic_store_n(word, value, __ATOMIC_RELAXED);
    }
    static inline void hv_store_relaxed64(uint64_t *word, uint64_t value) {
        __atomic_store_n(word, value, __ATOMIC_RELAXED);
    }
    static inline uint32_t hv_exchange32(uint32_t *word, uint32_t value) {
        return __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST);
    }
    static inline uint64_t hv_exchange64(uint64_t *word, uint64_t value) {
        return __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST);
    }
    /* The word becomes `value` if it is `expected`; whether it did. Release when it did. */
    static inline int hv_replace64(uint64_t *word, uint64_t expected, uint64_t value) {
        return __atomic_compare_exchange_n(word, &expected, value, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
    }
    static inline uint64_t hv_fetch_or64(uint64_t *word, uint64_t bits) {
        return __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
    }
    static inline uint64_t hv_fetch_and64(uint64_t *word, uint64_t bits) {
        return __atomic_fetch_and(word, bits, __ATOMIC_SEQ_CST);
    }
    static inline uint32_t hv_fetch_add32(uint32_t *word, uint32_t n) {
        return __atomic_fetch_add(word, n, __ATOMIC_SEQ_CST);
    }
    /* A counter with one writer: readers in other threads see whole values, the writer pays no locked cycle. */
    static inline void hv_count64(uint64_t *word, uint64_t n) {
        __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
    }
    /* Store -> load order, which neither acquire nor release gives: the Dekker pattern of RB 1.9. */
    static inline void hv_fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void hv_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void hv_cpu_relax(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("isb" ::: "memory");
    #else
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
    #endif
    }
    #endif
    """
    uint32_t load_acquire32 "hv_load_acquire32"(const uint32_t *word) noexcept nogil
    uint64_t load_acquire64 "hv_load_acquire64"(const uint64_t *word) noexcept nogil
    uint32_t load_relaxed32 "hv_load_relaxed32"(const uint32_t *word) noexcept nogil
    uint64_t load_relaxed64 "hv_load_relaxed64"(const uint64_t *word) noexcept nogil
    void store_release32 "hv_store_release32"(uint32_t *word, uint32_t value) noexcept nogil
    void store_release64 "hv_store_release64"(uint64_t *word, uint64_t value) noexcept nogil
    void store_relaxed32 "hv_store_relaxed32"(uint32_t *word, uint32_t value) noexcept nogil
    void store_relaxed64 "hv_store_relaxed64"(uint64_t *word, uint64_t value) noexcept nogil
    uint32_t exchange32 "hv_exchange32"(uint32_t *word, uint32_t value) noexcept nogil
    uint64_t exchange64 "hv_exchange64"(uint64_t *word, uint64_t value) noexcept nogil
    bint replace64 "hv_replace64"(uint64_t *word, uint64_t expected, uint64_t value) noexcept nogil
    uint64_t fetch_or64 "hv_fetch_or64"(uint64_t *word, uint64_t bits) noexcept nogil
    uint64_t fetch_and64 "hv_fetch_and64"(uint64_t *word, uint64_t bits) noexcept nogil
    uint32_t fetch_add32 "hv_fetch_add32"(uint32_t *word, uint32_t n) noexcept nogil
    void count64 "hv_count64"(uint64_t *word, uint64_t n) noexcept nogil
    void fence_full "hv_fence_full"() noexcept nogil
    void fence_acquire "hv_fence_acquire"() noexcept nogil
    void cpu_relax "hv_cpu_relax"() noexcept nogil
