"""Requests of a load: operations by share, block sizes by weight, offsets uniform, sequential or by Zipf's law.

Random numbers are xoshiro256** seeded by SplitMix64 from the workload's seed.
"""

import math

cimport cython
from libc.math cimport exp, expm1, fabs, log, log1p
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from hvcore.dispatch.random cimport Random, multiply_modulo, random_seed, random_unit, random_word
from hvcore.dispatch.request cimport LOAD_OPERATIONS, LoadRequest

OPERATIONS = ("read", "write", "flush", "trim")          # by LoadOperation
OFFSETS = ("uniform", "sequential", "zipf")              # by WorkloadOffsets
SIZES_MAX = WORKLOAD_SIZES
THETA_MAX = 8.0                  # above it the first block gets more than 99.6 % and all else is noise


# Zipf's law. The hat is h(x) = x ** -theta, its integral H(x) = (x ** (1 - theta) - 1) / (1 - theta), or log(x) when
# theta is 1; both written so that nothing is lost near 1.

cdef double zipf_integral(double theta, double x) noexcept nogil:
    cdef double of_log = log(x), scaled = (1 - theta) * of_log
    return of_log * (expm1(scaled) / scaled if fabs(scaled) > 1e-8 else 1 + scaled / 2)


cdef double zipf_inverse(double theta, double area) noexcept nogil:
    cdef double scaled = area * (1 - theta)
    if scaled < -1:
        scaled = -1              # a rounding beyond the hat's end
    return exp(area * (log1p(scaled) / scaled if fabs(scaled) > 1e-8 else 1 - scaled / 2))


cdef void zipf_setup(Zipf *zipf, double theta, uint64_t ranks) noexcept nogil:
    zipf.theta = theta
    zipf.ranks = <double> ranks
    zipf.low = zipf_integral(theta, 1.5) - 1
    zipf.high = zipf_integral(theta, zipf.ranks + 0.5)
    zipf.always = 2 - zipf_inverse(theta, zipf_integral(theta, 2.5) - exp(-theta * log(2.0)))


cdef uint64_t zipf_rank(Zipf *zipf, Random *random) noexcept nogil:
    """1 to ranks."""
    cdef double area, x, rank
    while True:
        area = zipf.high + random_unit(random) * (zipf.low - zipf.high)
        x = zipf_inverse(zipf.theta, area)
        rank = <double> <uint64_t> (x + 0.5)
        if rank < 1:
            rank = 1
        elif rank > zipf.ranks:
            rank = zipf.ranks
        if rank - x <= zipf.always or area >= zipf_integral(zipf.theta, rank + 0.5) - exp(-zipf.theta * log(rank)):
            return <uint64_t> rank


# One request.

cdef int workload_draw(Workload *work) noexcept nogil:
    cdef uint64_t drawn = random_word(&work.random) >> 32
    cdef int operation = 0
    while drawn >= work.below[operation]:
        operation += 1
    return operation


cdef BlockSize *workload_size(Workload *work) noexcept nogil:
    cdef uint64_t drawn = random_word(&work.random) >> 32
    cdef uint32_t size = 0
    while drawn >= work.sizes[size].below:
        size += 1
    return &work.sizes[size]


cdef uint64_t workload_slot(Workload *work, BlockSize *size) noexcept nogil:
    """Offset in the range of the next request that is not uniform."""
    cdef uint64_t at
    if work.offsets == OFFSETS_ZIPF:
        return multiply_modulo(zipf_rank(&size.zipf, &work.random) - 1, size.stride, size.slots) * work.step
    at = work.position
    if work.bytes - at < size.bytes:
        at = 0
    work.position = at + size.bytes
    return at


# Setup.

cdef list shares(str what, object weights, object names):
    """Cumulative shares of 2**32, the last of them all."""
    total = 0.0
    for name, weight in zip(names, weights):
        if not (isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the share of {what} {name} is {weight!r}, not a number from 0 on")
        total += weight
    if total <= 0:
        raise ValueError(f"no {what} has a share above 0")
    found, so_far = [], 0.0
    for weight in weights:
        so_far += weight
        found.append(round(so_far / total * 2**32))
    return found


cdef int workload_setup(Workload *work, dict parameters, uint64_t size_bytes, uint32_t sector_size) except -1:
    cdef uint32_t i
    memset(work, 0, sizeof(Workload))
    operations, sizes = parameters["operations"], parameters["block_sizes"]
    first, length = parameters["first"], parameters["length"]
    theta = parameters["theta"]
    if not 0 <= first <= size_bytes or first % sector_size:
        raise ValueError(f"a range from byte {first} does not start on a sector of a disk of {size_bytes} bytes")
    if length is None:
        length = size_bytes - first
    if not 0 < length <= size_bytes - first:
        raise ValueError(f"{length} bytes from byte {first} are not within the disk of {size_bytes} bytes")
    if not 1 <= len(sizes) <= WORKLOAD_SIZES:
        raise ValueError(f"a workload has 1 to {WORKLOAD_SIZES} block sizes, not {len(sizes)}")
    smallest = min(sizes)
    for size in sizes:
        if not 0 < size <= 0xffffffff or size % sector_size or size > length:
            raise ValueError(
                f"blocks of {size} bytes do not fit a range of {length} bytes with sectors of {sector_size}")
        if size % smallest:
            raise ValueError(f"blocks of {size} bytes are not a multiple of the smallest, {smallest} bytes")
    if parameters["offsets"] not in OFFSETS:
        raise ValueError(f"offsets are {', '.join(OFFSETS)}, not {parameters['offsets']!r}")
    if not 0 < theta <= THETA_MAX:
        raise ValueError(f"theta {theta} is not above 0 and at most {THETA_MAX:g}")
    random_seed(&work.random, parameters["seed"], 0)
    work.first, work.bytes, work.step = first, length, smallest
    work.offsets = OFFSETS.index(parameters["offsets"])
    below = shares("operation", [operations.get(name, 0) for name in OPERATIONS], OPERATIONS)
    unknown = sorted(set(operations) - set(OPERATIONS))
    if unknown:
        raise ValueError(f"there is no operation {unknown[0]!r}: {', '.join(OPERATIONS)}")
    used = [i for i, name in enumerate(OPERATIONS) if operations.get(name, 0)]
    work.operation = used[0] if len(used) == 1 else -1
    for i in range(LOAD_OPERATIONS):
        work.below[i] = below[i]
    work.size_count, work.largest = len(sizes), max(sizes)
    below = shares("block size", list(sizes.values()), list(sizes))
    for i, size in enumerate(sizes):
        slots = (length - size) // smallest + 1
        work.sizes[i].bytes, work.sizes[i].below, work.sizes[i].slots = size, below[i], slots
        # Near the golden section of the slots, where neighbours in rank end up farthest apart.
        stride = max(1, slots * 618034 // 1000000)
        while math.gcd(stride, slots) != 1:
            stride += 1
        work.sizes[i].stride = stride
        zipf_setup(&work.sizes[i].zipf, theta, slots)
    return 0


@cython.final
cdef class Requests:
    """The requests of a workload, without a disk: for looking at a distribution.

    operations: share of each operation by name; block_sizes: weight of each size in bytes, the others multiples of the
    smallest. offsets: "uniform", "sequential", or "zipf" with `theta`; multiples of the smallest block size from byte
    `first` on, within `length` bytes (None: to the end of the disk). ValueError names what does not fit.
    """
    cdef Workload work

    def __init__(self, uint64_t size, uint32_t sector_size=512, **parameters):
        workload_setup(&self.work, complete(parameters), size, sector_size)

    def take(self, uint32_t count):
        """The next `count` requests: (operation, offset, length), offset and length in bytes."""
        cdef LoadRequest request
        found = []
        for _ in range(count):
            workload_next(&self.work, &request)
            found.append((OPERATIONS[request.operation], request.offset, request.length))
        return found

    def slot(self, uint64_t rank):
        """Zipf: the offset of the block of that rank, 1 the most likely, among blocks of the first size."""
        cdef BlockSize *size = &self.work.sizes[0]
        return self.work.first + multiply_modulo(rank - 1, size.stride, size.slots) * self.work.step


def complete(dict parameters):
    """All parameters of a workload, from those given and the defaults. TypeError for one that there is not."""
    known = {"operations": {"read": 1}, "block_sizes": {4096: 1}, "offsets": "uniform", "theta": 0.99, "first": 0,
             "length": None, "seed": 1}
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise TypeError(f"a workload has no {unknown[0]!r}: {', '.join(known)}")
    return known | parameters
