# What a path offers to the load generator: something that takes requests one by one and says when each is done. The
# generator asks no more of it, so that every path is measured by the same loop.
#
# Threads. Each target is driven by one thread at a time: enter(), then any number of start() and wait(), then leave().
# load_finished() is called between enter() and leave() only: within start() where the request is done at once, within
# wait() else, by this thread or by another that then holds what enter() took. Nothing here may call the interpreter.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    LOAD_DEPTH_MAX = 256

cdef enum LoadOperation:
    LOAD_READ = 0
    LOAD_WRITE = 1
    LOAD_FLUSH = 2               # offset and length are 0
    LOAD_TRIM = 3                # no data of the request moves: the room at `data` is the target's
    LOAD_OPERATIONS = 4

# How a request ended.
cdef enum LoadOutcome:
    LOAD_DONE = 0
    LOAD_READ_ERROR = 1          # the medium could not be read
    LOAD_WRITE_ERROR = 2         # the medium could not be written or flushed
    LOAD_NO_SPACE = 3            # of the image's file system
    LOAD_PROTECTED = 4           # the disk is read-only
    LOAD_RANGE = 5               # not within the disk
    LOAD_UNSUPPORTED = 6         # the disk has no such command
    LOAD_ABORTED = 7             # by a reset, or because the worker or the disk went away
    LOAD_SHORT = 8               # said to be done, and moved another number of bytes
    LOAD_FAILED = 9              # anything else
    LOAD_OUTCOMES = 10

# What start() and wait() return.
cdef enum LoadStatus:
    LOAD_OK = 0
    LOAD_FULL = 1                # start(): no room now, the request is offered again after a wait()
    LOAD_INTERRUPTED = 2         # wait(): a signal; the interpreter's handlers run, then the load goes on
    LOAD_GONE = -1               # the host or the device is gone: nothing in flight will be finished any more
    LOAD_CORRUPT = -2            # the peer broke a rule of the protocol

ctypedef struct LoadRequest:
    # set by the generator before start()
    void (*finished)(LoadRequest *request, int outcome, uint32_t detail) noexcept nogil
    void *load                   # the generator's
    uint64_t intended_ns         # CLOCK_MONOTONIC: when the schedule wanted it started; latency counts from here
    uint64_t started_ns          # when it was
    uint64_t offset              # bytes; a multiple of the sector size
    uint64_t generation          # of what is written, where blocks are stamped
    uint8_t *data                # room for the workload's largest request; within LoadTarget.memory
    uint32_t length              # bytes; a multiple of the sector size
    uint32_t index               # 0 to depth - 1: its number in the queue, for what a target keeps per request
    uint8_t operation            # LoadOperation
    # the target's, from start() to load_finished()
    uint64_t tag

ctypedef struct LoadTarget:
    void *state
    uint64_t size_bytes          # of the disk
    uint32_t sector_size
    uint32_t depth               # requests in flight it can take, at most LOAD_DEPTH_MAX
    uint32_t max_transfer        # bytes of one request; 0: any
    uint8_t *memory              # where the data of requests must lie (guest memory); NULL: anywhere
    uint64_t memory_bytes
    # LOAD_OK: taken, load_finished() follows or was called already. LOAD_FULL, or < 0. It may keep what it took to
    # itself until wait().
    int (*start)(LoadTarget *target, LoadRequest *request) noexcept nogil
    # Makes the peer see what was started and waits until a request is finished, or until deadline_ns (CLOCK_MONOTONIC;
    # < 0: no deadline), also when none is in flight. LOAD_OK (also early, and at the deadline), LOAD_INTERRUPTED or
    # < 0.
    int (*wait)(LoadTarget *target, int64_t deadline_ns) noexcept nogil
    # Around each stretch of the above; NULL where nothing has to be taken.
    void (*enter)(LoadTarget *target) noexcept nogil
    void (*leave)(LoadTarget *target) noexcept nogil
    # Outside of enter() and leave(): no request in flight is finished any more, its memory may still be written by the
    # host until the target is closed. NULL where a request never outlives start().
    void (*abandon)(LoadTarget *target) noexcept nogil


cdef inline void load_finished(LoadRequest *request, int outcome, uint32_t detail) noexcept nogil:
    """The request is done, its slot free. detail: the target's own status of it (SRB status, ATA error, DiskStatus)."""
    request.finished(request, outcome, detail)
