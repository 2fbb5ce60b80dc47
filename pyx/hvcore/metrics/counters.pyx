"""Counter blocks as Python reads them."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from libc.stdint cimport uint64_t

from hvcore.linux.atomics cimport load_relaxed64

COUNTERS_BYTES = sizeof(Counters)
NAMES = ("requests", "hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied", "doorbells",
         "blocking_waits", "media_accesses", "errors")


def counters_snapshot(buffer, uint64_t offset=0):
    """The values of the block at `offset` of a buffer, by name.

    Each value is whole; they are read one after another while the writer may go on counting. ValueError when no block
    can be there: it takes COUNTERS_BYTES on a 64-byte boundary of memory.
    """
    cdef Py_buffer view
    cdef Counters *block
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        block = counters_at(view.buf, view.len, offset)
        if block == NULL:
            raise ValueError(
                f"no counters at offset {offset} of {view.len} bytes: a block has {sizeof(Counters)} bytes "
                "on a 64-byte boundary")
        # Relaxed: a counter orders nothing, it only must not be seen in halves.
        values = [load_relaxed64(<const uint64_t *> block + i) for i in range(len(NAMES))]
    finally:
        PyBuffer_Release(&view)
    return dict(zip(NAMES, values))


def context_switches():
    """(voluntary, involuntary) switches of the calling thread since it began, as the kernel counts them."""
    cdef uint64_t voluntary, involuntary
    thread_switches(&voluntary, &involuntary)
    return voluntary, involuntary
