"""Counter blocks as Python reads them."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from libc.stdint cimport uint64_t

from hvcore.linux.atomics cimport load_relaxed64

COUNTERS_BYTES = sizeof(Counters)
NAMES = ("requests", "hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied", "doorbells",
         "blocking_waits", "media_accesses", "errors", "read_operations", "write_operations", "read_bytes",
         "write_bytes", "io_units", "queue_length", "flushes", "unmaps", "throttled", "throttle_wait_ns", "latency_ns",
         "latency_samples", "latency_max_ns", "interrupts_received", "interrupts_sent")
KINDS = {"other": IO_OTHER, "read": IO_READ, "write": IO_WRITE, "flush": IO_FLUSH, "unmap": IO_UNMAP}


cdef dict counters_dict(const Counters *block):
    # Relaxed: a counter orders nothing, it only must not be seen in halves.
    cdef const uint64_t *words = <const uint64_t *> block
    cdef Py_ssize_t i
    values = {}
    for i in range(len(NAMES)):
        values[NAMES[i]] = load_relaxed64(words + i)
    return values


def counters_snapshot(buffer, uint64_t offset=0):
    """The values of the block at `offset` of a buffer, by name.

    Each value is whole; they are read one after another while the writer may go on counting. ValueError when no block
    can be there: it takes COUNTERS_BYTES on a 64-byte boundary of memory.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        return counters_dict(block_in(&view, offset))
    finally:
        PyBuffer_Release(&view)


cdef Counters *block_in(Py_buffer *view, uint64_t offset) except NULL:
    cdef Counters *block = counters_at(view.buf, view.len, offset)
    if block == NULL:
        raise ValueError(
            f"no counters at offset {offset} of {view.len} bytes: a block has {sizeof(Counters)} bytes "
            "on a 64-byte boundary")
    return block


def count_io(buffer, str kind, uint64_t size_bytes, uint64_t times=1, uint64_t offset=0):
    """Counts `times` completed requests of a kind (one of KINDS) in the block at `offset`, without the GIL, as the data
    path does. For its one writer."""
    cdef Py_buffer view
    cdef Counters *block
    cdef int number = KINDS[kind]
    cdef uint64_t _i
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        block = block_in(&view, offset)
        with nogil:
            for _i in range(times):
                counters_io(block, number, size_bytes)
                count64(&block.requests, 1)
    finally:
        PyBuffer_Release(&view)


def count_latency(buffer, uint64_t ns, uint64_t offset=0):
    """Adds one sample to the block at `offset`. For its one writer."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        latency_count(block_in(&view, offset), ns)
    finally:
        PyBuffer_Release(&view)


def sampled(uint64_t requests):
    """Which of the first `requests` requests are stamped for the latency, as the data path chooses them."""
    cdef Sampler sampler = Sampler(0, 0)
    cdef uint64_t i
    return [i for i in range(requests) if sample_due(&sampler)]


def normalised(uint64_t size_bytes):
    """Units of 8 KiB that a request of so many bytes counts."""
    return io_units(size_bytes)


def context_switches():
    """(voluntary, involuntary) switches of the calling thread since it began, as the kernel counts them."""
    cdef uint64_t voluntary, involuntary
    thread_switches(&voluntary, &involuntary)
    return voluntary, involuntary
