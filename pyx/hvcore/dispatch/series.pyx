"""A load's series: requests, bytes, errors and latencies of each second (series.pxd)."""

cimport cython
from libc.math cimport ceil
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from hvcore.metrics.histogram cimport (
    HISTOGRAM_BUCKETS, Histogram, LatencyHistogram, histogram_low, histogram_merge, histogram_record, histogram_shift)

SECOND_NS = 1_000_000_000


cdef void series_begin(Series *series, SeriesRow *rows, uint32_t capacity, uint64_t interval_ns, uint64_t begin_ns,
                       Histogram *total) noexcept nogil:
    memset(series, 0, sizeof(Series))
    series.rows = rows
    series.capacity = capacity
    series.interval_ns = interval_ns
    series.begin_ns = begin_ns
    series.end_ns = begin_ns + interval_ns if rows != NULL else <uint64_t> -1
    series.total = total


cdef void row_add(SeriesRow *row, const SeriesRow *other) noexcept nogil:
    cdef uint32_t i
    row.requests += other.requests
    row.bytes += other.bytes
    row.errors += other.errors
    for i in range(<uint32_t> SERIES_BUCKETS):
        row.buckets[i] += other.buckets[i]


cdef void series_halve(Series *series) noexcept nogil:
    """Rows ran out: every two become one, of twice the time."""
    cdef uint32_t i, half = series.capacity // 2
    for i in range(half):
        if i:
            series.rows[i] = series.rows[2 * i]
        row_add(&series.rows[i], &series.rows[2 * i + 1])
    memset(&series.rows[half], 0, half * sizeof(SeriesRow))
    series.row //= 2
    series.interval_ns *= 2


cdef void series_turn(Series *series, uint64_t now_ns) noexcept nogil:
    cdef SeriesRow *row
    cdef uint32_t i
    series.until_ns = now_ns
    if series.rows != NULL:
        row = &series.rows[series.row]
        row.requests += series.requests
        row.bytes += series.bytes
        row.errors += series.errors
        if series.latency.count:
            for i in range(HISTOGRAM_BUCKETS):
                row.buckets[i // 4] += <uint32_t> series.latency.buckets[i]
        while now_ns - series.begin_ns >= series.interval_ns * series.capacity:
            series_halve(series)
        # Intervals in which nothing ended stay empty rows: a stall is to be seen.
        series.row = <uint32_t> ((now_ns - series.begin_ns) // series.interval_ns)
        series.end_ns = series.begin_ns + (series.row + 1) * series.interval_ns
    histogram_merge(series.total, &series.latency)
    series.total_requests += series.requests
    series.total_bytes += series.bytes
    series.total_errors += series.errors
    series.requests = series.bytes = series.errors = 0
    memset(&series.latency, 0, sizeof(Histogram))


cdef uint64_t row_percentile(const SeriesRow *row, double q) noexcept nogil:
    """Nearest rank, the middle of its bucket: to 1/32 of itself. 0 when empty."""
    cdef uint64_t count = 0, seen = 0, rank
    cdef uint32_t i
    for i in range(<uint32_t> SERIES_BUCKETS):
        count += row.buckets[i]
    rank = max(<uint64_t> 1, <uint64_t> ceil(<double> count * q / 100))
    for i in range(<uint32_t> SERIES_BUCKETS):
        seen += row.buckets[i]
        if count and seen >= rank:
            return histogram_low(4 * i) + ((<uint64_t> 4 << histogram_shift(4 * i)) >> 1)
    return 0


@cython.final
cdef class LoadSeries:
    """Rows of one load; add() makes those of several, which began together, one. One thread at a time."""

    def __cinit__(self, uint32_t capacity=SERIES_ROWS, uint64_t interval_ns=SECOND_NS, bint rows=True):
        cdef SeriesRow *place = NULL
        cdef LatencyHistogram total = LatencyHistogram()
        if capacity < 2 or capacity % 2 or interval_ns == 0:
            raise ValueError("a series has an even number of rows, and intervals of some length")
        if rows:
            place = <SeriesRow *> calloc(capacity, sizeof(SeriesRow))
            if place == NULL:
                raise MemoryError
        self.total = total
        series_begin(&self.series, place, capacity, interval_ns, 0, &total.data)

    def __dealloc__(self):
        free(self.series.rows)

    def record(self, uint64_t now_ns, uint64_t latency_ns, uint64_t size=0, bint error=False):
        """A request that ended at now_ns, from the begin of the series on; times never go back."""
        if now_ns >= self.series.end_ns:
            series_turn(&self.series, now_ns)
        histogram_record(&self.series.latency, latency_ns)
        self.series.requests += 1
        self.series.bytes += size
        self.series.errors += error

    def close(self, uint64_t now_ns):
        """The end, after which nothing is recorded."""
        series_turn(&self.series, now_ns)

    @property
    def latency(self):
        """LatencyHistogram of all intervals that are over."""
        return self.total

    @property
    def interval(self):
        """Seconds of a row."""
        return self.series.interval_ns / 1e9

    def add(self, LoadSeries other not None):
        """Adds the rows of another series of the same begin. ValueError where one has none or intervals do not fit."""
        cdef uint32_t i
        cdef Series *mine = &self.series
        if mine.rows == NULL or other.series.rows == NULL or mine.capacity != other.series.capacity:
            raise ValueError("two series without rows, or with another number of them, do not add up")
        cdef LoadSeries longer = LoadSeries(other.series.capacity, other.series.interval_ns)
        for i in range(mine.capacity):
            longer.series.rows[i] = other.series.rows[i]
        longer.series.row = other.series.row
        while mine.interval_ns < longer.series.interval_ns:
            series_halve(mine)
        while longer.series.interval_ns < mine.interval_ns:
            series_halve(&longer.series)
        if mine.interval_ns != longer.series.interval_ns:
            raise ValueError("the intervals of the two series do not fit each other")
        for i in range(mine.capacity):
            row_add(&mine.rows[i], &longer.series.rows[i])
        mine.row = max(mine.row, longer.series.row)
        mine.until_ns = max(mine.until_ns, mine.begin_ns + other.series.until_ns - other.series.begin_ns)

    def rows(self):
        """A dict for each interval: second (of its begin), seconds, requests, iops, bytes, errors, p50_ns, p99_ns."""
        cdef uint32_t i
        found = []
        if self.series.rows == NULL:
            return found
        seconds = self.series.interval_ns / 1e9
        for i in range(self.series.row + 1):
            row = &self.series.rows[i]
            if i == self.series.row and row.requests == 0:
                break
            # The last one may have ended early.
            long = min(seconds, (self.series.until_ns - self.series.begin_ns) / 1e9 - i * seconds)
            found.append({
                "second": i * seconds, "seconds": long, "requests": row.requests,
                "iops": row.requests / long if long > 0 else 0.0,
                "bytes": row.bytes, "errors": row.errors, "p50_ns": row_percentile(row, 50),
                "p99_ns": row_percentile(row, 99)})
        return found
