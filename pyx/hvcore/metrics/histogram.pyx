"""Latency histograms: nanoseconds, log-linear, mergeable."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.errors import ProtocolError

# What to_bytes() writes: 8 bytes of magic and version, then the struct, in this machine's byte order.
cdef enum:
    VERSION = 1
cdef bytes MAGIC = b"HVH\0" + (<unsigned int> VERSION).to_bytes(4, "little")

LIMIT_NS = HISTOGRAM_LIMIT
SCHEMA = "hvcore.histogram/1"
QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}


cdef int histogram_merge(Histogram *h, const Histogram *other) noexcept nogil:
    cdef uint32_t i
    if h.count + other.count < h.count or h.sum + other.sum < h.sum:
        return HISTOGRAM_OVERFLOW
    if other.count == 0:
        return HISTOGRAM_OK
    if h.count == 0 or other.min < h.min:
        h.min = other.min
    if other.max > h.max:
        h.max = other.max
    h.count += other.count
    h.sum += other.sum
    # The buckets add up to count, so none of them overflows.
    for i in range(HISTOGRAM_BUCKETS):
        h.buckets[i] += other.buckets[i]
    return HISTOGRAM_OK


cdef uint64_t histogram_percentile(const Histogram *h, double q) noexcept nogil:
    cdef double exact
    cdef uint64_t rank, value
    cdef uint64_t seen = 0
    cdef uint32_t i
    if not q > 0:
        return h.min
    if q >= 100:
        return h.max
    # Multiplied first: 99.9 percent of 1000 is then rank 999 and not, by a rounding of 0.999, the last.
    exact = <double> h.count * q / 100
    rank = <uint64_t> exact
    if <double> rank < exact or rank == 0:
        rank += 1
    for i in range(HISTOGRAM_BUCKETS):
        seen += h.buckets[i]
        if seen >= rank:
            value = histogram_low(i) + ((<uint64_t> 1 << histogram_shift(i)) >> 1)
            if value < h.min:
                return h.min
            return h.max if value > h.max else value
    return h.max


cdef str histogram_fault(const Histogram *h):
    """What is wrong with a histogram that somebody else filled, or None."""
    cdef uint32_t i
    cdef object count = 0, least = 0, most = 0
    cdef uint32_t lowest = HISTOGRAM_BUCKETS, highest = 0
    for i in range(HISTOGRAM_BUCKETS):
        if h.buckets[i]:
            if lowest == HISTOGRAM_BUCKETS:
                lowest = i
            highest = i
            # Python's integers: the sums of a stranger's words need not fit 64 bits.
            count += h.buckets[i]
            least += <object> h.buckets[i] * histogram_low(i)
            most += <object> h.buckets[i] * (histogram_low(i) + (<uint64_t> 1 << histogram_shift(i)) - 1)
    if count != h.count:
        return f"its buckets hold {count} values, not {h.count}"
    if count == 0:
        return "it is empty but has a sum, minimum or maximum" if h.sum or h.min or h.max else None
    if h.min > h.max or h.max > HISTOGRAM_LIMIT:
        return f"minimum {h.min} and maximum {h.max} are no range"
    if histogram_bucket(h.min) != lowest or histogram_bucket(h.max) != highest:
        return f"minimum {h.min} and maximum {h.max} are not in the first and last bucket"
    if not least <= h.sum <= most:
        return f"its values add up to {least} to {most}, not to {h.sum}"
    return None


cdef uint64_t whole(object value) except? -1:
    """A 64-bit number that JSON brought; True and 1.0 are none."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


@cython.final
cdef class LatencyHistogram:
    """Counts latencies in nanoseconds; every value is kept to better than one part in 64, min, max and sum exactly.

    Values above LIMIT_NS (2**40, 18 minutes) count as LIMIT_NS. One thread at a time.
    """

    def record(self, uint64_t ns):
        """Adds one latency; OverflowError when it is negative."""
        histogram_record(&self.data, ns)

    def merge(self, LatencyHistogram other not None):
        """Adds all values of `other`; OverflowError when the counts do not fit 64 bits, and nothing is added."""
        cdef int status
        with nogil:
            status = histogram_merge(&self.data, &other.data)
        if status != HISTOGRAM_OK:
            raise OverflowError("the two histograms together do not fit 64-bit counts")

    def percentile(self, double q):
        """The latency in ns that q percent (0 to 100) of the values do not exceed; 0 when empty."""
        if not 0 <= q <= 100:
            raise ValueError(f"a percentile is between 0 and 100, not {q}")
        return histogram_percentile(&self.data, q)

    @property
    def count(self):
        return self.data.count

    @property
    def sum(self):
        """ns."""
        return self.data.sum

    @property
    def min(self):
        """ns; 0 when empty."""
        return self.data.min

    @property
    def max(self):
        """ns; 0 when empty."""
        return self.data.max

    @property
    def mean(self):
        """ns; 0.0 when empty."""
        return self.data.sum / <double> self.data.count if self.data.count else 0.0

    def summary(self):
        """The latency_ns object of `hvcore compare --json`."""
        result = {"min": self.min}
        for name, q in QUANTILES.items():
            result[name] = histogram_percentile(&self.data, q)
        result["max"] = self.max
        result["mean"] = self.mean
        return result

    def clear(self):
        """Forgets all values."""
        memset(&self.data, 0, sizeof(self.data))

    def to_bytes(self):
        """For from_bytes() in another process of this machine."""
        return MAGIC + PyBytes_FromStringAndSize(<char *> &self.data, sizeof(self.data))

    @staticmethod
    def from_bytes(data):
        """What to_bytes() made, from a buffer. ProtocolError when it is anything else or contradicts itself."""
        cdef LatencyHistogram self = LatencyHistogram.__new__(LatencyHistogram)
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if <size_t> view.len != 8 + sizeof(self.data):
                raise ProtocolError(f"a histogram has {8 + sizeof(self.data)} bytes, not {view.len}")
            if PyBytes_FromStringAndSize(<char *> view.buf, 8) != MAGIC:
                raise ProtocolError(f"not a histogram of version {VERSION}")
            memcpy(&self.data, <char *> view.buf + 8, sizeof(self.data))
        finally:
            PyBuffer_Release(&view)
        fault = histogram_fault(&self.data)
        if fault is not None:
            raise ProtocolError(f"the histogram is damaged: {fault}")
        return self

    def to_dict(self):
        """For JSON: count, sum, min, max (ns) and buckets, [least ns, count] of each that is not empty."""
        cdef uint32_t i
        buckets = [[histogram_low(i), self.data.buckets[i]] for i in range(HISTOGRAM_BUCKETS) if self.data.buckets[i]]
        return {"schema": SCHEMA, "count": self.data.count, "sum": self.data.sum, "min": self.data.min,
                "max": self.data.max, "buckets": buckets}

    @staticmethod
    def from_dict(value):
        """What to_dict() made, on any machine. ProtocolError when it is anything else or contradicts itself."""
        cdef LatencyHistogram self = LatencyHistogram.__new__(LatencyHistogram)
        cdef uint64_t low
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ProtocolError(f"not a histogram as {SCHEMA} says")
        try:
            self.data.count, self.data.sum = whole(value["count"]), whole(value["sum"])
            self.data.min, self.data.max = whole(value["min"]), whole(value["max"])
            for least, count in value["buckets"]:
                low = whole(least)
                if low > HISTOGRAM_LIMIT or histogram_low(histogram_bucket(low)) != low:
                    raise ProtocolError(f"the histogram is damaged: no bucket begins at {least} ns")
                if self.data.buckets[histogram_bucket(low)] or not whole(count):
                    raise ProtocolError(f"the histogram is damaged: bucket {least} is empty or there twice")
                self.data.buckets[histogram_bucket(low)] = whole(count)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"the histogram is damaged: {error!r}") from None
        fault = histogram_fault(&self.data)
        if fault is not None:
            raise ProtocolError(f"the histogram is damaged: {fault}")
        return self

    def __eq__(self, other):
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    __hash__ = None

    def __repr__(self):
        return f"<LatencyHistogram of {self.count} values, p50 {self.percentile(50)} ns>"
