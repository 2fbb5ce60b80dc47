"""The floor under every dispatch figure: two processes, two bare rings, one preadv or pwritev per request.

The client posts offset, length and slot; the server process reads the file straight into the slot's part of the shared
memory, or writes from there, and posts the answer. No headers, no doorbells, no checks of a protocol: both sides spin.
What a path costs more than this is the price of VMBus, SCSI and emulation; what this costs more than local_preadv() is
the price of a second process.
"""

import os
import socket
import subprocess
import sys

import hvcore

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, EIO
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.types cimport pid_t
from posix.unistd cimport getppid

from hvcore.errors import HostError, ImageError
from hvcore.linux.atomics cimport cpu_relax, load_acquire32, store_release32
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.syscalls cimport iovec, preadv2, pwritev2
from hvcore.memory.region cimport Region
from hvcore.metrics.histogram cimport Histogram, LatencyHistogram, histogram_record


cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    """
    #define HV_FLOOR_SLOTS 256
    typedef struct {
        uint64_t offset;                /* request: bytes into the file */
        int64_t result;                 /* answer: bytes read, or -errno */
        uint32_t length, slot;
        uint32_t sequence;              /* position + 1 of the entry that is here; written last */
        uint8_t reserved[36];
    } hv_floor_entry;
    typedef struct {
        hv_floor_entry requests[HV_FLOOR_SLOTS], answers[HV_FLOOR_SLOTS];
    } hv_floor_rings;
    _Static_assert(sizeof(hv_floor_entry) == 64, "floor: one entry, one cache line");
    _Static_assert(sizeof(hv_floor_rings) % 4096 == 0, "floor: the blocks behind the rings start on a page");
    """
    ctypedef struct FloorEntry "hv_floor_entry":
        uint64_t offset
        int64_t result
        uint32_t length
        uint32_t slot
        uint32_t sequence
    ctypedef struct FloorRings "hv_floor_rings":
        FloorEntry *requests
        FloorEntry *answers
    uint32_t SLOTS "HV_FLOOR_SLOTS"

MAX_DEPTH = SLOTS

cdef enum:
    SPINS = 1 << 20                 # fruitless looks at a ring before a look at the world: tens of milliseconds
    YIELDS = 1 << 12                # the same where each look gives the CPU away
    PATIENCE = 1 << 10              # looks before the CPU is given away once: tens of microseconds
    BURST_NS = 50_000_000           # between two looks for signals

cdef enum Step:
    STEP_DONE = 0
    STEP_PAUSED = 1                 # client: check signals and the server, then go on
    STEP_ORPHANED = 2               # server: the client's process is gone


cdef inline bint await_entry(const FloorEntry *entry, uint64_t position, bint yielding) noexcept nogil:
    """Spins until the entry of this position is there, or for a while: whether it is.

    Rings cannot overrun: at most SLOTS requests are on their way, so the entry before this one has been consumed.
    """
    cdef uint32_t left = YIELDS if yielding else SPINS
    # Two spinners that the scheduler has put on one CPU would each burn a time slice while the other has work: whoever
    # waits much longer than a read takes lets the other run.
    cdef uint32_t patience = 0 if yielding else PATIENCE - 1
    while left:
        # Acquire: the fields, and for an answer the block that the server read, are visible with the sequence.
        if load_acquire32(&entry.sequence) == <uint32_t> (position + 1):
            return True
        left -= 1
        if left & patience:
            cpu_relax()
        else:
            sched_yield()
    return False


cdef inline int64_t move_block(int fd, void *block, uint32_t length, uint64_t offset, bint write) noexcept nogil:
    cdef iovec vector
    cdef int64_t result = -EINTR
    vector.iov_base = block
    vector.iov_len = length
    while result == -EINTR:
        result = pwritev2(fd, &vector, 1, offset, 0) if write else preadv2(fd, &vector, 1, offset, 0)
    return result


cdef int serve_run(FloorRings *rings, uint8_t *blocks, uint32_t depth, uint32_t block_size, int fd, pid_t client,
                   bint yielding, bint write, uint64_t position, uint64_t end) noexcept nogil:
    """The server's loop over requests `position` to `end`. STEP_DONE or STEP_ORPHANED."""
    cdef FloorEntry *request
    cdef FloorEntry *answer
    cdef uint32_t length, slot
    while position < end:
        request = &rings.requests[position % SLOTS]
        while not await_entry(request, position, yielding):
            # A dead client posts no more; end-of-file on the socket would only be seen between runs.
            if getppid() != client:
                return STEP_ORPHANED
        answer = &rings.answers[position % SLOTS]
        length = request.length
        slot = request.slot
        if slot < depth and length <= block_size:
            answer.result = move_block(fd, blocks + <uint64_t> slot * block_size, length, request.offset, write)
        else:
            answer.result = -EIO
        answer.slot = slot
        position += 1
        # Release: the block and the result before the sequence that announces them.
        store_release32(&answer.sequence, <uint32_t> position)
    return STEP_DONE


cdef struct Client:
    FloorRings *rings
    uint32_t depth
    uint32_t block_size
    bint yielding
    const uint64_t *offsets         # of this run
    uint64_t begin                  # position of this run's first request; positions count over all runs
    uint64_t end
    uint64_t posted                 # position of the next request
    uint64_t answered               # position of the next answer
    uint64_t *posted_ns             # [SLOTS]
    uint64_t now_ns
    uint64_t failed                 # position of the first failed request
    int64_t result                  # what the server answered it, or the block size while none failed
    Histogram *histogram


cdef int client_advance(Client *run) noexcept nogil:
    """Keeps `depth` requests on their way until all are answered. STEP_DONE or STEP_PAUSED.

    One look at the clock per request: a request's time begins where the answer that made room for it was seen.
    """
    cdef FloorEntry *request
    cdef const FloorEntry *answer
    cdef uint64_t pause_ns = run.now_ns + BURST_NS
    while run.answered < run.end:
        while run.posted < run.end and run.posted - run.answered < run.depth:
            request = &run.rings.requests[run.posted % SLOTS]
            request.offset = run.offsets[run.posted - run.begin]
            request.length = run.block_size
            request.slot = <uint32_t> (run.posted % run.depth)
            run.posted_ns[run.posted % SLOTS] = run.now_ns
            run.posted += 1
            # Release: the request before the sequence that announces it.
            store_release32(&request.sequence, <uint32_t> run.posted)
        answer = &run.rings.answers[run.answered % SLOTS]
        if not await_entry(answer, run.answered, run.yielding):
            return STEP_PAUSED
        if answer.result != run.block_size and run.result == run.block_size:
            run.result = answer.result
            run.failed = run.answered
        run.now_ns = clock_ns()
        histogram_record(run.histogram, run.now_ns - run.posted_ns[run.answered % SLOTS])
        run.answered += 1
        if run.now_ns >= pause_ns:
            break
    return STEP_PAUSED if run.answered < run.end else STEP_DONE


cdef int take_offsets(object offsets, Py_buffer *view, uint64_t size, uint32_t block_size) except -1:
    """Fills `view` with 64-bit offsets of whole blocks within a file of `size` bytes; the caller releases it."""
    cdef uint64_t i, count
    cdef const uint64_t *values
    cdef uint64_t last = size - block_size
    PyObject_GetBuffer(offsets, view, PyBUF_ND | PyBUF_FORMAT)
    try:
        if view.itemsize != 8 or view.format == NULL or view.format.lstrip(b"@=<") not in (b"Q", b"L", b"N"):
            raise ValueError("offsets are an array of unsigned 64-bit integers")
        if view.len and <size_t> view.buf % 8:
            raise ValueError("the array of offsets is not aligned to 8 bytes")
        values = <const uint64_t *> view.buf
        count = view.len // 8
        for i in range(count):
            if values[i] > last:
                raise ValueError(f"offset {values[i]} + {block_size} is beyond the file's {size} bytes")
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0


cdef int open_file(path, uint64_t *size, uint32_t block_size, bint write=False) except -1:
    """A descriptor of the file, and its size, which holds one block or more."""
    fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        size[0] = os.lseek(fd, 0, os.SEEK_END)
        if size[0] < block_size:
            raise ValueError(f"{path!r} has {size[0]} bytes, less than one block of {block_size}")
    except BaseException:
        os.close(fd)
        raise
    return fd


cdef int check_shape(block_size, depth) except -1:
    if not 1 <= depth <= SLOTS:
        raise ValueError(f"the queue depth is 1 to {SLOTS}, not {depth}")
    if not 512 <= block_size <= 1 << 24 or block_size % 512:
        raise ValueError(f"the block size is a multiple of 512 up to 16 MiB, not {block_size}")
    return 0


cdef object failure(path, uint64_t offset, int64_t result, bint write=False):
    if result < 0:
        return ImageError(-result, f"cannot {'write' if write else 'read'} at {offset}: {os.strerror(-result)}", path)
    return ImageError(EIO, f"the file ends in the block at {offset}", path)


@cython.final
cdef class Floor:
    """A server process that reads blocks of a file into shared memory, or writes them from there, and the client's end.

    run() may be called any number of times, by one thread at a time; between runs the server sleeps. The server ends
    with close(), with this process, whatever ends it, and with any exception that interrupts a run.
    """

    cdef Region region
    cdef object path, process, link, cpus
    cdef readonly uint32_t block_size, depth
    cdef readonly bint write
    cdef uint64_t size
    cdef bint running, yielding
    cdef uint64_t position
    cdef uint64_t[256] posted_ns

    def __init__(self, path, block_size=4096, depth=1, cpus=None, *, write=False):
        """`block_size`: bytes of each request; `depth`: 1 to MAX_DEPTH requests on their way at a time; `cpus`: the CPU
        of the thread in run() and that of the server, or None to leave the placement to the scheduler, which now and
        then puts both on one CPU; `write`: whether requests write instead of read.

        OSError when the file cannot be opened, ValueError when it is smaller than a block or a CPU is not to be had,
        HostError when the server does not start.
        """
        check_shape(block_size, depth)
        if self.process is not None:
            raise RuntimeError("the floor is already set up")
        self.path = os.fspath(path)
        self.block_size = block_size
        self.depth = depth
        self.write = write
        fd = open_file(self.path, &self.size, block_size, write)
        try:
            blocks = -(-depth * block_size // 4096) * 4096
            self.region = Region.create(sizeof(FloorRings) + blocks, "hvcore-floor")
            # On one CPU spinning is pointless from the first look on.
            usable = os.sched_getaffinity(0)
            if cpus is not None and not usable.issuperset(cpus):
                raise ValueError(f"CPUs {cpus} are not all of those this process may use: {sorted(usable)}")
            self.yielding = len(set(cpus if cpus is not None else usable)) < 2
            self.cpus = cpus
            self.start(fd)
            if cpus is not None:
                os.sched_setaffinity(self.process.pid, {cpus[1]})
        except BaseException:
            self.close()
            raise
        finally:
            os.close(fd)

    cdef int start(self, int fd) except -1:
        self.link, peer = socket.socketpair()
        numbers = [self.region.fd, fd, peer.fileno(), os.getpid(), self.depth, self.block_size, self.yielding,
                   self.write]
        # Where this module and the package are.
        here = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(hvcore.__file__))]
        path = os.pathsep.join(filter(None, [*here, os.environ.get("PYTHONPATH")]))
        with peer:
            # A session of its own: Ctrl-C is for the client, which then ends the server.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from bench_floor import serve; serve()",
                 *(str(int(number)) for number in numbers)],
                pass_fds=(self.region.fd, fd, peer.fileno()), stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path})
        self.await_server()
        return 0

    cdef int await_server(self) except -1:
        """Takes the server's byte that says it is ready; HostError when there is end-of-file instead."""
        try:
            ready = self.link.recv(1)
        except ConnectionError:
            ready = b""
        if not ready:
            raise HostError(f"the floor server ended with code {self.process.wait()}")
        return 0

    @property
    def server_pid(self):
        return self.process.pid if self.process is not None else None

    def block(self, uint32_t slot):
        """A copy of a slot, that is of what was read last into it or is written from it; the n-th request of all runs
        (from 0) uses slot n % depth."""
        if self.region is None:
            raise ValueError("the floor is closed")
        if slot >= self.depth:
            raise ValueError(f"slot {slot} is not one of {self.depth}")
        return PyBytes_FromStringAndSize(
            <char *> self.region.base + sizeof(FloorRings) + <uint64_t> slot * self.block_size, self.block_size)

    def run(self, offsets):
        """Reads or writes one block at each offset, in order, `depth` at a time: (seconds, LatencyHistogram).

        `offsets` is a numpy uint64 array or any other buffer of unsigned 64-bit integers; latencies are from post to
        answer. ValueError when an offset is not within the file (nothing is done then), ImageError for the first
        request that failed, HostError when the server is gone, which closes the floor, as Ctrl-C does.
        """
        if self.region is None:
            raise ValueError("the floor is closed")
        if self.running:
            raise RuntimeError("the floor is running in another thread")
        cdef Py_buffer view
        take_offsets(offsets, &view, self.size, self.block_size)
        cdef LatencyHistogram histogram = LatencyHistogram.__new__(LatencyHistogram)
        cdef Client run
        cdef uint64_t start_ns
        usable = os.sched_getaffinity(0)
        self.running = True
        try:
            run.rings = <FloorRings *> self.region.base
            run.depth = self.depth
            run.block_size = self.block_size
            run.yielding = self.yielding
            run.offsets = <const uint64_t *> view.buf
            run.begin = run.posted = run.answered = self.position
            run.end = self.position + view.len // 8
            run.posted_ns = self.posted_ns
            run.failed = run.begin
            run.result = self.block_size
            run.histogram = &histogram.data
            try:
                if self.cpus is not None:
                    os.sched_setaffinity(0, {self.cpus[0]})
                self.drive(&run, &start_ns)
            finally:
                if self.cpus is not None:
                    os.sched_setaffinity(0, usable)
                self.running = False
            failed = run.offsets[run.failed - run.begin] if run.result != self.block_size else None
        except BaseException:
            self.close()
            raise
        finally:
            PyBuffer_Release(&view)
        if failed is not None:
            raise failure(self.path, failed, run.result, self.write)
        return (run.now_ns - start_ns) / 1e9, histogram

    cdef int drive(self, Client *run, uint64_t *start_ns) except -1:
        cdef int step = STEP_PAUSED
        try:
            self.link.sendall(run.end.to_bytes(8, "little"))
        except ConnectionError:
            pass                    # await_server says it better
        self.await_server()
        start_ns[0] = run.now_ns = clock_ns()
        while step == STEP_PAUSED:
            with nogil:
                step = client_advance(run)
            PyErr_CheckSignals()
            if self.process.poll() is not None:
                self.await_server()
        self.position = run.end
        return 0

    def close(self):
        """Ends the server and frees the memory. Idempotent. RuntimeError while another thread is in run()."""
        if self.running:
            raise RuntimeError("the floor is running in another thread")
        if self.process is not None:
            # The server owns nothing that could be lost, and a kill needs neither its attention nor a time limit.
            self.process.kill()
            self.process.wait()
        if self.link is not None:
            self.link.close()
        if self.region is not None:
            self.region.close()
            self.region = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def serve():
    """The server process: one run per 8-byte end position on the socket, until end-of-file."""
    cdef int memory, fd, number, pid, step
    cdef uint32_t depth, block_size
    cdef bint yielding, write
    cdef uint64_t end
    cdef uint64_t position = 0
    memory, fd, number, pid, depth, block_size, yielding, write = map(int, sys.argv[1:])
    cdef Region region = Region.attach(memory)
    if region.size < sizeof(FloorRings) + <uint64_t> depth * block_size:
        raise ValueError(f"{region.size} bytes of shared memory do not hold {depth} blocks of {block_size}")
    with socket.socket(fileno=number) as link:
        try:
            link.sendall(b"+")
            while message := link.recv(8, socket.MSG_WAITALL):
                end = int.from_bytes(message, "little")
                link.sendall(b"+")
                with nogil:
                    step = serve_run(<FloorRings *> region.base, region.base + sizeof(FloorRings), depth, block_size,
                                     fd, pid, yielding, write, position, end)
                if step == STEP_ORPHANED:
                    return
                position = end
        except ConnectionError:
            pass                    # the client is gone: what end-of-file says too


cdef int local_advance(int fd, uint8_t *blocks, Client *run) noexcept nogil:
    cdef uint64_t pause_ns = run.now_ns + BURST_NS
    cdef uint64_t before_ns, position
    cdef int64_t result
    while run.answered < run.end:
        position = run.answered
        result = move_block(
            fd, blocks + (position % run.depth) * run.block_size, run.block_size, run.offsets[position], False)
        if result != run.block_size and run.result == run.block_size:
            run.result = result
            run.failed = position
        before_ns = run.now_ns
        run.now_ns = clock_ns()
        histogram_record(run.histogram, run.now_ns - before_ns)
        run.answered += 1
        if run.now_ns >= pause_ns:
            break
    return STEP_PAUSED if run.answered < run.end else STEP_DONE


def local_preadv(path, offsets, block_size=4096, depth=1, buffer=None):
    """The same reads by a plain loop of preadv in this thread, without the GIL: (seconds, LatencyHistogram).

    `depth` only says over how many blocks of memory the reads go round, as those of a Floor do: blocks of the writable
    `buffer`, or of memory like the floor's. Errors as Floor.run(); ValueError also for a buffer that is too small.
    """
    check_shape(block_size, depth)
    cdef uint64_t size, start_ns
    cdef Client run
    cdef Py_buffer view, target
    cdef LatencyHistogram histogram = LatencyHistogram.__new__(LatencyHistogram)
    cdef int step = STEP_PAUSED
    path = os.fspath(path)
    cdef int fd = open_file(path, &size, block_size)
    try:
        take_offsets(offsets, &view, size, block_size)
        try:
            memset(&run, 0, sizeof(run))
            run.depth = depth
            run.block_size = block_size
            run.offsets = <const uint64_t *> view.buf
            run.end = view.len // 8
            run.result = run.block_size
            run.histogram = &histogram.data
            if buffer is None:
                buffer = Region.create(-(-depth * block_size // 4096) * 4096, "hvcore-local")
            PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
            try:
                if target.len < <Py_ssize_t> depth * block_size:
                    raise ValueError(f"{target.len} bytes do not hold {depth} blocks of {block_size}")
                start_ns = run.now_ns = clock_ns()
                while step == STEP_PAUSED:
                    with nogil:
                        step = local_advance(fd, <uint8_t *> target.buf, &run)
                    PyErr_CheckSignals()
            finally:
                PyBuffer_Release(&target)
            if run.result != run.block_size:
                raise failure(path, run.offsets[run.failed], run.result)
        finally:
            PyBuffer_Release(&view)
    finally:
        os.close(fd)
    return (run.now_ns - start_ns) / 1e9, histogram
