"""The load generator: one loop for every path, all without the interpreter.

Closed loop: `depth` requests are kept in flight, latency counts from the start of each. Open loop: requests are due at
times fixed beforehand, and latency counts from then, whether or not there was room to start: a stall is seen by every
request that it delayed. Targets (request.pxd) start requests and say when they are done; several of them run in a
native thread each.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.exc cimport PyErr_CheckSignals
from cython cimport final
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import math

from hvcore.dispatch.pattern import FAULTS, fill_pattern
from hvcore.dispatch.workload import OPERATIONS, complete
from hvcore.errors import Error, GuestGone, RingCorrupt

from hvcore.dispatch.pattern cimport (
    FAULT_NONE, FAULT_WRONG, Content, KnownContent, content_check, content_claim, content_drop, content_release,
    generation_unknown, generation_seed, pattern_fill, pattern_holds)
from hvcore.dispatch.schedule cimport (
    SCHEDULE_CLOSED, Schedule, schedule_begin, schedule_left, schedule_next, schedule_setup)
from hvcore.dispatch.series cimport LoadSeries, Series, series_begin, series_turn
from hvcore.dispatch.workload cimport Workload, workload_next, workload_setup
from hvcore.linux.atomics cimport load_acquire32, load_relaxed32, store_release32
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.threads cimport (
    Monitor, Thread, monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait, monitor_wake,
    thread_join, thread_start)
from hvcore.metrics.histogram cimport Histogram, LatencyHistogram, histogram_record

cdef enum:
    PUMP_MAX = 1024              # requests of a target that finishes them at once, before anything else is looked at
    SLICE_NS = 100_000_000       # after which the interpreter may look for signals

cdef enum LoadVerify:
    VERIFY_NOTHING = 0
    VERIFY_PATTERN = 1           # reads bring the pattern, writes write it
    VERIFY_CONTENT = 2           # blocks carry the generation of their last write

OUTCOMES = ("done", "read error", "write error", "no space", "write protected", "out of range", "not supported",
            "aborted", "short transfer", "failed")       # by LoadOutcome
DEPTH_MAX = LOAD_DEPTH_MAX

ctypedef struct OperationCount:
    uint64_t requests
    uint64_t bytes
    uint64_t errors
    Histogram latency            # of a mixed workload; else all is in the total

ctypedef struct Load:
    LoadTarget *target
    Workload work
    Schedule schedule
    Series series
    Content *content             # VERIFY_CONTENT
    int verify                   # LoadVerify
    uint64_t seed                # of the pattern
    bint mixed                   # more than one operation
    const uint32_t *stop         # not 0: leave
    bint slices                  # wait in slices: nobody else can end a wait
    # limits
    uint64_t requests_left
    uint64_t count_from_ns       # requests that were due earlier are warm-up
    uint64_t end_ns              # no request starts from here on
    # state
    bint over                    # nothing more starts
    bint spent                   # the pump stopped for its limit only
    bint claimed                 # of pending
    uint64_t now_ns              # a recent time
    uint32_t in_flight
    uint32_t idle_count
    LoadRequest *pending         # drawn, and not started yet
    uint64_t behind              # due before the end and not started
    # counts
    uint64_t warm_requests
    uint64_t warm_errors
    uint64_t verified            # bytes
    uint64_t[4] faults           # wrong reads by Fault
    uint64_t fault_offset        # of the first
    int fault                    # of the first
    uint64_t[10] outcomes        # of counted requests
    int outcome                  # of the first error
    uint32_t detail
    uint64_t error_offset
    int error_operation
    Histogram lag                # open loop: from due to started
    OperationCount[4] operations
    LoadRequest[256] requests
    uint32_t[256] idle           # stack


# When requests end.

cdef void load_operation(Load *load, LoadRequest *request, uint64_t latency, int outcome) noexcept nogil:
    cdef OperationCount *operation = &load.operations[request.operation]
    histogram_record(&operation.latency, latency)
    operation.requests += 1
    operation.bytes += request.length
    if outcome != LOAD_DONE:
        operation.errors += 1


cdef void load_failed(Load *load, LoadRequest *request, int outcome, uint32_t detail) noexcept nogil:
    if not 0 < outcome < LOAD_OUTCOMES:
        outcome = LOAD_FAILED
    if load.outcome == LOAD_DONE:
        load.outcome = outcome
        load.detail = detail
        load.error_offset = request.offset
        load.error_operation = request.operation
    if request.intended_ns >= load.count_from_ns:
        load.outcomes[outcome] += 1
    else:
        load.warm_errors += 1


cdef void load_checked(Load *load, LoadRequest *request) noexcept nogil:
    """A read that is done, against what it must have brought."""
    cdef int fault = FAULT_NONE
    cdef uint64_t wrong = request.offset
    if load.verify == VERIFY_CONTENT:
        fault = content_check(load.content, request.data, request.offset, request.length, &wrong, &load.verified)
    elif pattern_holds(request.data, request.offset, request.length, load.seed):
        load.verified += request.length
    else:
        fault = FAULT_WRONG
    if fault:
        if load.fault == FAULT_NONE:
            load.fault = fault
            load.fault_offset = wrong
        load.faults[fault] += 1


cdef void load_release(Load *load, LoadRequest *request, bint done) noexcept nogil:
    """The request's blocks are free for others, and hold what it wrote."""
    if request.operation == LOAD_READ:
        content_release(load.content, request.offset, request.length, False, 0)
    elif request.operation != LOAD_FLUSH:
        done = done and request.operation == LOAD_WRITE
        content_release(load.content, request.offset, request.length, True,
                        request.generation if done else generation_unknown())


cdef void load_done(LoadRequest *request, int outcome, uint32_t detail) noexcept nogil:
    cdef Load *load = <Load *> request.load
    cdef uint64_t now = clock_ns()
    load.now_ns = now
    load.in_flight -= 1
    if request.intended_ns >= load.count_from_ns:
        if now >= load.series.end_ns:
            series_turn(&load.series, now)
        histogram_record(&load.series.latency, now - request.intended_ns)
        load.series.requests += 1
        if request.operation <= LOAD_WRITE:
            load.series.bytes += request.length
        if load.mixed:
            load_operation(load, request, now - request.intended_ns, outcome)
        if outcome != LOAD_DONE:
            load.series.errors += 1
    else:
        load.warm_requests += 1
    if outcome != LOAD_DONE:
        load_failed(load, request, outcome, detail)
    elif load.verify and request.operation == LOAD_READ:
        load_checked(load, request)
    if load.content != NULL:
        load_release(load, request, outcome == LOAD_DONE)
    load.idle[load.idle_count] = request.index
    load.idle_count += 1


# Starting them.

cdef bint load_prepare(Load *load, LoadRequest *request) noexcept nogil:
    """Makes the request's blocks its own and fills what it writes. False: a request in flight has them."""
    cdef bint write = request.operation == LOAD_WRITE
    if load.verify == VERIFY_CONTENT and request.operation != LOAD_FLUSH:
        if not content_claim(load.content, request.offset, request.length, request.operation != LOAD_READ):
            return False
        if write:
            load.content.generation += 1
            request.generation = load.content.generation
            pattern_fill(request.data, request.offset, request.length,
                         generation_seed(load.seed, load.content.generation))
    elif write:
        pattern_fill(request.data, request.offset, request.length, load.seed)
    return True


cdef void load_drop(Load *load) noexcept nogil:
    """The pending request is not started any more."""
    cdef LoadRequest *request = load.pending
    if load.claimed and load.content != NULL and request.operation != LOAD_FLUSH:
        content_drop(load.content, request.offset, request.length, request.operation != LOAD_READ)
    if load.schedule.kind != SCHEDULE_CLOSED:
        load.behind += 1
    load.pending = NULL
    load.claimed = False
    load.idle[load.idle_count] = request.index
    load.idle_count += 1


cdef int load_pump(Load *load, int64_t *until) noexcept nogil:
    """Starts what can start now. `until`: when the next request is due, -1 when a request has to end first."""
    cdef LoadRequest *request
    cdef LoadTarget *target = load.target
    cdef bint open = load.schedule.kind != SCHEDULE_CLOSED
    cdef uint64_t intended, begun = load.now_ns
    cdef int status
    cdef int budget = PUMP_MAX
    until[0] = -1
    load.spent = False
    while True:
        request = load.pending
        if load.now_ns >= load.end_ns:
            load.over = True
            if request != NULL:
                load_drop(load)
        if request == NULL:
            if load.idle_count == 0 or load.over:
                return LOAD_OK
            if load.requests_left == 0 or (open and load.schedule.due_ns >= load.end_ns):
                load.over = True
                return LOAD_OK
            if budget == 0 or load.now_ns - begun > SLICE_NS:
                load.spent = True
                return LOAD_OK
            if open and load.schedule.due_ns > load.now_ns:
                load.now_ns = clock_ns()
                if load.schedule.due_ns > load.now_ns:
                    until[0] = <int64_t> load.schedule.due_ns
                    return LOAD_OK
            request = &load.requests[load.idle[load.idle_count - 1]]
            load.idle_count -= 1
            workload_next(&load.work, request)
            if open:
                request.intended_ns = load.schedule.due_ns
                schedule_next(&load.schedule)
        elif load.over:
            return LOAD_OK
        if load.verify and not load.claimed:
            if not load_prepare(load, request):
                load.pending = request
                return LOAD_OK
        load.now_ns = clock_ns()
        request.started_ns = load.now_ns
        if not open:
            request.intended_ns = load.now_ns
        intended = request.intended_ns
        load.pending = NULL
        load.claimed = False
        load.in_flight += 1
        status = target.start(target, request)
        if status != LOAD_OK:
            load.in_flight -= 1
            load.pending = request
            load.claimed = True
            # A target that is full for others' sake may have nothing of ours in flight.
            until[0] = <int64_t> load.end_ns if load.end_ns != <uint64_t> -1 else -1
            return status if status < 0 else LOAD_OK
        budget -= 1
        if intended >= load.count_from_ns:
            load.requests_left -= 1
            if open:
                histogram_record(&load.lag, request.started_ns - intended)


cdef int load_run(Load *load) noexcept nogil:
    """LOAD_OK: all is done. LOAD_INTERRUPTED: call again. Else the target's end."""
    cdef LoadTarget *target = load.target
    cdef int64_t until
    cdef uint64_t entered
    cdef int status
    if target.enter != NULL:
        target.enter(target)
    load.now_ns = entered = clock_ns()
    while True:
        status = load_pump(load, &until)
        if status < 0 or (load.over and load.in_flight == 0):
            break
        # A wait that never blocks never sees a signal.
        if load.now_ns - entered > SLICE_NS or load_relaxed32(load.stop):
            status = LOAD_INTERRUPTED
            break
        if not load.spent:
            if load.slices and (until < 0 or <uint64_t> until > load.now_ns + SLICE_NS):
                until = <int64_t> (load.now_ns + SLICE_NS)
            status = target.wait(target, until)
            if status != LOAD_OK:
                break
        load.now_ns = clock_ns()
    if target.leave != NULL:
        target.leave(target)
    return status


# Several at once.

ctypedef struct LoadThread:
    Load *load
    Thread thread
    int status
    Monitor *monitor
    uint32_t *running


cdef void *load_thread(void *argument) noexcept nogil:
    cdef LoadThread *thread = <LoadThread *> argument
    cdef int status = LOAD_INTERRUPTED
    while status == LOAD_INTERRUPTED and not load_acquire32(thread.load.stop):
        status = load_run(thread.load)
    monitor_lock(thread.monitor)
    thread.status = status
    thread.running[0] -= 1
    monitor_wake(thread.monitor)
    monitor_unlock(thread.monitor)
    return NULL


cdef int check_status(int status) except -1:
    if status == LOAD_GONE:
        raise GuestGone("the host has ended the channel")
    if status == LOAD_CORRUPT:
        raise RingCorrupt("the host broke a rule of the channel's ring")
    if status < 0:
        raise Error(f"the load ended with status {status}")
    return 0


cdef int run_one(Load *load) except -1:
    """In the caller's thread."""
    cdef int status = LOAD_INTERRUPTED
    while status == LOAD_INTERRUPTED:
        with nogil:
            status = load_run(load)
        if status == LOAD_INTERRUPTED:
            PyErr_CheckSignals()
    return check_status(status)


cdef int run_several(list runs, uint32_t *stop) except -1:
    cdef LoadThread *threads = <LoadThread *> calloc(len(runs), sizeof(LoadThread))
    cdef Monitor monitor
    cdef uint32_t running = 0, started = 0, left, i
    cdef uint32_t count = <uint32_t> len(runs)
    cdef int error
    if threads == NULL:
        raise MemoryError
    error = monitor_init(&monitor)
    if error:
        free(threads)
        raise OSError(-error, "no monitor for the load's threads")
    try:
        for i in range(count):
            threads[i].load = (<LoadRun> runs[i]).load
            threads[i].load.slices = True
            threads[i].monitor = &monitor
            threads[i].running = &running
            with nogil:
                monitor_lock(&monitor)
                running += 1
                error = thread_start(&threads[i].thread, load_thread, &threads[i])
                if error:
                    running -= 1
                monitor_unlock(&monitor)
            if error:
                raise OSError(-error, "no thread for each disk of the load")
            started += 1
        left = started
        while left:
            with nogil:
                monitor_lock(&monitor)
                if running:
                    monitor_wait(&monitor, <int64_t> clock_ns() + SLICE_NS)
                for i in range(count):
                    if threads[i].status < 0:            # one that fails ends the others
                        store_release32(stop, 1)
                left = running
                monitor_unlock(&monitor)
            PyErr_CheckSignals()
    finally:
        store_release32(stop, 1)
        with nogil:
            for i in range(started):
                thread_join(threads[i].thread)
            monitor_destroy(&monitor)
        failed = [threads[i].status for i in range(count) if threads[i].status < 0]
        free(threads)
    return check_status(failed[0] if failed else LOAD_OK)


# The face.

cdef class Requester:
    cdef int hold(self, object buffer) except -1:
        return 0

    cpdef str describe(self, uint32_t detail):
        return f"status {detail:#x}"

    @property
    def size(self):
        """Bytes of the disk."""
        return self.target.size_bytes

    @property
    def sector_size(self):
        """Bytes."""
        return self.target.sector_size

    @property
    def depth(self):
        """Requests in flight that it can take."""
        return self.target.depth


@final
cdef class LoadRun:
    """One load of one target, for run_loads(); once.

    depth: requests in flight, of an open loop the most. rate: requests per second of an open loop; None: closed.
    arrivals: "constant" or "poisson". pattern_seed: reads are compared with the pattern of that seed, and writes write
    it. content: a KnownContent of the workload's range and smallest block size; reads are compared with the last write
    of each block. buffer: depth times the largest block size, in guest memory where the target needs that; None: memory
    of this process. series: keep a LoadSeries by the second. workload: see hvcore.dispatch.workload.Requests.

    ValueError names what does not fit.
    """
    cdef Load *load
    cdef Requester requester
    cdef KnownContent content
    cdef LoadSeries series
    cdef LatencyHistogram total
    cdef Py_buffer view
    cdef bint viewed
    cdef bint used
    cdef object buffer
    cdef uint64_t ended_ns

    def __cinit__(self):
        self.load = <Load *> calloc(1, sizeof(Load))
        if self.load == NULL:
            raise MemoryError

    def __init__(self, Requester requester not None, *, uint32_t depth=1, buffer=None, rate=None,
                 str arrivals="constant", pattern_seed=None, KnownContent content=None, bint series=False, **workload):
        cdef Load *load = self.load
        cdef LoadTarget *target = &requester.target
        cdef uint32_t i
        if self.viewed:
            raise ValueError("a load is made once")
        parameters = complete(workload)
        workload_setup(&load.work, parameters, target.size_bytes, target.sector_size)
        schedule_setup(&load.schedule, rate, arrivals, parameters["seed"])
        cdef uint32_t deepest = min(target.depth, <uint32_t> LOAD_DEPTH_MAX)
        if not 1 <= depth <= deepest:
            raise ValueError(f"queue depth {depth} is not between 1 and {deepest}")
        if target.max_transfer and load.work.largest > target.max_transfer:
            raise ValueError(
                f"blocks of {load.work.largest} bytes are more than one request moves ({target.max_transfer})")
        self.set_verify(parameters, pattern_seed, content)
        self.requester, self.buffer = requester, buffer
        if buffer is None:
            self.buffer = bytearray(depth * load.work.largest)
        PyObject_GetBuffer(self.buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.viewed = True
        data = <uint8_t *> self.view.buf
        if <uint64_t> self.view.len < <uint64_t> depth * load.work.largest:
            raise ValueError(f"the buffer of {self.view.len} bytes does not hold {depth} blocks of "
                             f"{load.work.largest} bytes")
        if target.memory != NULL and (
                data < target.memory or data + self.view.len > target.memory + target.memory_bytes):
            raise ValueError("the buffer is not guest memory")
        if load.verify == VERIFY_NOTHING and parameters["operations"].get("write"):
            fill_pattern(memoryview(self.buffer)[:self.view.len // 8 * 8], 0, parameters["seed"])
        load.target = target
        load.idle_count = depth
        for i in range(depth):
            load.idle[i] = depth - 1 - i
            load.requests[i].index = i
            load.requests[i].load = load
            load.requests[i].finished = load_done
            load.requests[i].data = data + <uint64_t> i * load.work.largest
        self.series = LoadSeries(rows=series)
        self.total = self.series.total

    cdef int set_verify(self, dict parameters, pattern_seed, KnownContent content) except -1:
        cdef Load *load = self.load
        load.mixed = load.work.operation < 0
        if content is not None:
            if pattern_seed is not None:
                raise ValueError("the content's own pattern seed is what blocks are compared with")
            end = content.content.first + content.content.count * content.content.unit
            if (content.content.unit != load.work.step or load.work.first < content.content.first
                    or load.work.first + load.work.bytes > end
                    or (load.work.first - content.content.first) % content.content.unit):
                raise ValueError("the known content is not of this range and smallest block size")
            self.content = content
            load.content = &content.content
            load.verify = VERIFY_CONTENT
            load.seed = content.content.seed
        elif pattern_seed is not None:
            if parameters["operations"].get("trim"):
                raise ValueError("what is trimmed does not hold the pattern any more: give known content instead")
            load.verify = VERIFY_PATTERN
            load.seed = pattern_seed
        return 0

    def __dealloc__(self):
        if self.viewed:
            PyBuffer_Release(&self.view)
        free(self.load)

    cdef int begin(self, uint64_t begin_ns, uint64_t count_from_ns, uint64_t end_ns, requests,
                   const uint32_t *stop) except -1:
        cdef Load *load = self.load
        cdef LatencyHistogram total = self.total
        if self.used:
            raise ValueError("a load runs once")
        if self.requester.busy:
            raise ValueError("the target is busy with another load")
        self.used = self.requester.busy = True
        load.stop = stop
        load.requests_left = <uint64_t> -1 if requests is None else requests
        load.count_from_ns = count_from_ns
        load.end_ns = end_ns
        series_begin(&load.series, self.series.series.rows, self.series.series.capacity,
                     self.series.series.interval_ns, count_from_ns, &total.data)
        schedule_begin(&load.schedule, begin_ns)
        return 0

    cdef int finish(self, bint whole) except -1:
        """After the run; whole: nothing of it is in flight any more."""
        cdef Load *load = self.load
        self.requester.busy = False
        if not whole:
            if load.target.abandon != NULL:
                load.target.abandon(load.target)
            self.requester.hold(self.buffer)
            if self.content is not None:
                self.content.settle()
        self.ended_ns = max(clock_ns(), load.count_from_ns)
        if load.schedule.kind != SCHEDULE_CLOSED and load.end_ns != <uint64_t> -1:
            # The rate holds up to the end, also when nothing was due for the last part of it.
            load.behind += schedule_left(&load.schedule, load.end_ns) if load.requests_left else 0
            if load.requests_left:
                self.ended_ns = max(self.ended_ns, load.end_ns)
        series_turn(&load.series, self.ended_ns)
        self.series.series = load.series
        return 0

    def result(self):
        """What the load did, once it has run: a dict.

        requests, seconds, bytes (read and written), errors: counted after the warm-up. latency: LatencyHistogram.
        operations: for each that occurred its requests, bytes, errors and latency. outcomes: number of errors by kind.
        error: the first, in words, or None. verified_bytes, wrong_blocks (reads), wrong_offset and wrong_kind
        ("stale", "torn", "wrong") of the first, wrong_kinds: how many of each; the warm-up included. lag: of an open
        loop a LatencyHistogram, from due to started; behind: requests that were due and never started. warm_up:
        requests and errors. series: LoadSeries or None.
        """
        cdef Load *load = self.load
        cdef LatencyHistogram lag = LatencyHistogram()
        cdef uint32_t i
        lag.data = load.lag
        error = None
        if load.outcome:
            where = f"the {OPERATIONS[load.error_operation]} at byte {load.error_offset}"
            error = f"{where}: {OUTCOMES[load.outcome]} ({self.requester.describe(load.detail)})"
        return {
            "requests": load.series.total_requests,
            "seconds": (self.ended_ns - load.count_from_ns) / 1e9,
            "bytes": load.series.total_bytes,
            "errors": load.series.total_errors,
            "latency": self.total,
            "operations": self.operations(),
            "outcomes": {OUTCOMES[i]: load.outcomes[i] for i in range(1, LOAD_OUTCOMES) if load.outcomes[i]},
            "error": error,
            "verified_bytes": load.verified,
            "wrong_blocks": load.faults[1] + load.faults[2] + load.faults[3],
            "wrong_offset": load.fault_offset if load.fault else None,
            "wrong_kind": FAULTS[load.fault] if load.fault else None,
            "wrong_kinds": {FAULTS[i]: load.faults[i] for i in range(1, 4) if load.faults[i]},
            "lag": lag if load.schedule.kind != SCHEDULE_CLOSED else None,
            "behind": load.behind,
            "warm_up": {"requests": load.warm_requests, "errors": load.warm_errors},
            "series": self.series if self.series.series.rows != NULL else None,
        }

    cdef dict operations(self):
        cdef Load *load = self.load
        cdef LatencyHistogram one
        cdef uint32_t i
        if not load.mixed:
            moved = load.series.total_bytes
            return {OPERATIONS[load.work.operation]: {
                "requests": load.series.total_requests, "bytes": moved, "errors": load.series.total_errors,
                "latency": self.total}}
        found = {}
        for i in range(LOAD_OPERATIONS):
            if load.operations[i].requests:
                one = LatencyHistogram()
                one.data = load.operations[i].latency
                found[OPERATIONS[i]] = {
                    "requests": load.operations[i].requests, "bytes": load.operations[i].bytes,
                    "errors": load.operations[i].errors, "latency": one}
        return found


def run_loads(runs, *, seconds=None, requests=None, double warm_up=0.0):
    """Runs the LoadRuns together, each in a thread of its own where there are several; their results.

    All begin at one time. After warm_up seconds counting begins: for `seconds`, or until each has started `requests`,
    whichever ends first; what is in flight then is finished and counted. GuestGone, RingCorrupt: a target ended, the
    loads are abandoned, as they are when a signal handler raises.
    """
    cdef uint64_t begin, count_from, end = <uint64_t> -1
    cdef uint32_t stop = 0
    cdef bint whole = False
    cdef LoadRun run
    if seconds is None and requests is None:
        raise ValueError("a load ends after some seconds or requests: neither is given")
    for name, value in (("seconds", seconds), ("warm-up", warm_up)):
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1e9):
            raise ValueError(f"{value} is no number of seconds ({name})")
    runs = list(runs)
    begun = []
    begin = clock_ns()
    count_from = begin + <uint64_t> (warm_up * 1e9)
    if seconds is not None:
        end = count_from + <uint64_t> (<double> seconds * 1e9)
    try:
        for run in runs:
            run.begin(begin, count_from, end, requests, &stop)
            begun.append(run)
        if len(runs) == 1:
            run = runs[0]
            run_one(run.load)
        elif runs:
            run_several(runs, &stop)
        whole = True
    finally:
        for run in begun:
            run.finish(whole)
    return [run.result() for run in runs]


def run_channel(channel, buffer, uint64_t size, uint32_t sector_size, *, str rw="randread", uint32_t block=4096,
                uint32_t depth=1, seconds=None, requests=None, uint64_t seed=1, pattern_seed=None, double warm_up=0.0,
                lun=0):
    """One plain load of a storvsp channel: keeps `depth` requests of `block` bytes in flight for `seconds` or
    `requests`, whichever ends first. What LoadRun.result() returns.

    rw: "randread", "randwrite", "read", "write". buffer: guest memory of depth * block bytes. size: bytes of the disk.
    pattern_seed: reads are compared with the pattern of that seed, and writes write it.
    """
    from hvcore.dispatch.requesters import ChannelRequester

    requester = ChannelRequester(channel, size, sector_size, lun=lun)
    run = LoadRun(requester, depth=min(depth, requester.depth), buffer=buffer, pattern_seed=pattern_seed,
                  **plain(rw, block, seed))
    return run_loads([run], seconds=seconds, requests=requests, warm_up=warm_up)[0]


def run_disk(disk, *, str rw="randread", uint32_t block=4096, seconds=None, requests=None, uint64_t seed=1,
             pattern_seed=None, double warm_up=0.0):
    """The same at depth 1, straight against the storage stack in this process: the paths' point of comparison."""
    from hvcore.dispatch.requesters import DiskRequester

    run = LoadRun(DiskRequester(disk), pattern_seed=pattern_seed, **plain(rw, block, seed))
    return run_loads([run], seconds=seconds, requests=requests, warm_up=warm_up)[0]


cdef dict plain(str rw, uint32_t block, uint64_t seed):
    if rw not in ("randread", "randwrite", "read", "write"):
        raise ValueError(f"there is no workload {rw!r}")
    return {"operations": {"write" if "write" in rw else "read": 1}, "block_sizes": {block: 1}, "seed": seed,
            "offsets": "uniform" if rw.startswith("rand") else "sequential"}
