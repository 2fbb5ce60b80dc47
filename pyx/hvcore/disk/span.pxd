# A walk through the buffers of one request, piece by piece: what a backend needs when a request falls into parts that
# lie in different places. The caller never takes more than the buffers hold.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.linux.syscalls cimport iovec

cdef enum:
    SPAN_PIECES = 64             # buffers of one part that go to the medium in one call

ctypedef struct Span:
    const iovec *iov             # the buffer at hand
    uint64_t skip                # of its bytes, done


cdef inline void span_begin(Span *span, const iovec *iov) noexcept nogil:
    span.iov = iov
    span.skip = 0


cdef inline uint64_t span_next(Span *span, uint64_t most, uint8_t **data) noexcept nogil:
    """The next piece in one buffer, at most `most` bytes: its place and, returned, its length (0 only for most = 0)."""
    cdef uint64_t take = 0
    while most and take == 0:
        take = span.iov.iov_len - span.skip
        if take > most:
            take = most
        data[0] = <uint8_t *> span.iov.iov_base + span.skip
        span.skip += take
        if span.skip == span.iov.iov_len:
            span.iov = span.iov + 1
            span.skip = 0
    return take


cdef inline uint64_t span_take(Span *span, iovec *pieces, int *count, uint64_t most) noexcept nogil:
    """Moves up to SPAN_PIECES pieces, together at most `most` bytes, into `pieces`. Returns their bytes."""
    cdef uint64_t taken = 0, part
    cdef uint8_t *data = NULL
    cdef int n = 0
    while taken < most and n < SPAN_PIECES:
        part = span_next(span, most - taken, &data)
        pieces[n].iov_base = data
        pieces[n].iov_len = part
        taken += part
        n += 1
    count[0] = n
    return taken


cdef inline void span_zero(Span *span, uint64_t length) noexcept nogil:
    cdef uint8_t *data = NULL
    cdef uint64_t part
    while length:
        part = span_next(span, length, &data)
        memset(data, 0, part)
        length -= part


cdef inline void span_fill(Span *span, const uint8_t *source, uint64_t length) noexcept nogil:
    """Copies from `source` into the buffers."""
    cdef uint8_t *data = NULL
    cdef uint64_t part
    while length:
        part = span_next(span, length, &data)
        memcpy(data, source, part)
        source += part
        length -= part
