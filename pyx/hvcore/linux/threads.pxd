# Native threads: they run C alone, never the interpreter, so they need no thread state and take no interpreter lock.

from libc.stdint cimport int64_t, uint32_t

from hvcore.linux.atomics cimport cpu_relax

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <time.h>
    #ifndef HV_THREADS
    #define HV_THREADS
    typedef struct { pthread_mutex_t mutex; pthread_cond_t changed; } hv_monitor;

    /* CLOCK_MONOTONIC for the timed wait: a clock that is set must not end or stretch it. */
    static inline int hv_monitor_init(hv_monitor *monitor) {
        pthread_condattr_t attributes;
        int error = pthread_mutex_init(&monitor->mutex, NULL);
        if (error) return -error;
        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        error = pthread_cond_init(&monitor->changed, &attributes);
        pthread_condattr_destroy(&attributes);
        return -error;
    }
    static inline void hv_monitor_destroy(hv_monitor *monitor) {
        pthread_cond_destroy(&monitor->changed);
        pthread_mutex_destroy(&monitor->mutex);
    }
    static inline void hv_monitor_lock(hv_monitor *monitor) { pthread_mutex_lock(&monitor->mutex); }
    /* The same, but `wanted` is not 0 while it waits: a holder that only looks for something lets go at once. Awake at
       first, because what is done with a monitor held is short, and being woken is not. */
    static inline void hv_monitor_enter(hv_monitor *monitor, uint32_t *wanted) {
        if (pthread_mutex_trylock(&monitor->mutex) == 0) return;
        __atomic_fetch_add(wanted, 1, __ATOMIC_RELAXED);
        int looks = 128;
        while (looks && pthread_mutex_trylock(&monitor->mutex)) { hv_cpu_relax(); looks--; }
        if (looks == 0) pthread_mutex_lock(&monitor->mutex);
        __atomic_fetch_sub(wanted, 1, __ATOMIC_RELAXED);
    }
    static inline void hv_monitor_unlock(hv_monitor *monitor) { pthread_mutex_unlock(&monitor->mutex); }
    static inline void hv_monitor_wake(hv_monitor *monitor) { pthread_cond_broadcast(&monitor->changed); }
    static inline void hv_monitor_wake_one(hv_monitor *monitor) { pthread_cond_signal(&monitor->changed); }
    /* deadline_ns: CLOCK_MONOTONIC, < 0 for ever. 0, or -ETIMEDOUT. */
    static inline int hv_monitor_wait(hv_monitor *monitor, int64_t deadline_ns) {
        struct timespec limit = { deadline_ns / 1000000000, deadline_ns % 1000000000 };
        if (deadline_ns < 0) return -pthread_cond_wait(&monitor->changed, &monitor->mutex);
        return -pthread_cond_timedwait(&monitor->changed, &monitor->mutex, &limit);
    }
    /* Signals are blocked in the new thread: they belong to the interpreter's main thread. */
    static inline int hv_thread_start(pthread_t *thread, void *(*run)(void *), void *argument) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int error = pthread_create(thread, NULL, run, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return -error;
    }
    static inline void hv_thread_join(pthread_t thread) { pthread_join(thread, NULL); }
    #endif
    """
    ctypedef struct Thread "pthread_t":
        pass
    # A mutex and its condition. The data path holds it while it works, never per packet.
    ctypedef struct Monitor "hv_monitor":
        pass
    int monitor_init "hv_monitor_init"(Monitor *monitor) noexcept nogil
    void monitor_destroy "hv_monitor_destroy"(Monitor *monitor) noexcept nogil
    void monitor_lock "hv_monitor_lock"(Monitor *monitor) noexcept nogil
    void monitor_enter "hv_monitor_enter"(Monitor *monitor, uint32_t *wanted) noexcept nogil
    void monitor_unlock "hv_monitor_unlock"(Monitor *monitor) noexcept nogil
    void monitor_wake "hv_monitor_wake"(Monitor *monitor) noexcept nogil
    void monitor_wake_one "hv_monitor_wake_one"(Monitor *monitor) noexcept nogil
    int monitor_wait "hv_monitor_wait"(Monitor *monitor, int64_t deadline_ns) noexcept nogil
    int thread_start "hv_thread_start"(
        Thread *thread, void *(*run)(void *) noexcept nogil, void *argument) noexcept nogil
    void thread_join "hv_thread_join"(Thread thread) noexcept nogil
