# What a load asks for: operation, offset and length of one request after the other. Pure: the same parameters and seed
# give the same requests.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.dispatch.random cimport Random, random_below
from hvcore.dispatch.request cimport LOAD_FLUSH, LoadRequest

cdef enum:
    WORKLOAD_SIZES = 16          # most block sizes of one workload

cdef enum WorkloadOffsets:
    OFFSETS_UNIFORM = 0
    OFFSETS_SEQUENTIAL = 1
    OFFSETS_ZIPF = 2

# Zipf's law over ranks 1 to n: rank k with probability proportional to k ** -theta. By rejection-inversion (Hoermann
# and Derflinger, ACM TOMACS 6(3), 1996): exact, a few numbers of state whatever n is, fewer than 1.3 tries on average.
ctypedef struct Zipf:
    double theta
    double ranks
    double low                   # the integral of the hat from its left end ...
    double high                  # ... to its right end
    double always                # below this distance from its rank a candidate is always taken

# One block size. A request of it starts at one of `slots` multiples of the workload's step.
ctypedef struct BlockSize:
    uint32_t bytes
    uint64_t below               # share of this size and those before it, of 2**32
    uint64_t slots
    uint64_t stride              # coprime to slots: rank r is at slot (r * stride) % slots, so that often used blocks
    Zipf zipf                    # do not lie side by side

ctypedef struct Workload:
    Random random
    uint64_t first               # of the range: bytes
    uint64_t bytes               # of the range
    uint64_t step                # the smallest block size, which all offsets in the range are multiples of
    uint64_t position            # sequential: next offset within the range
    int offsets                  # WorkloadOffsets
    int operation                # LoadOperation of all requests; -1: by share
    uint64_t[4] below            # share of each operation and those before it, of 2**32
    uint32_t size_count
    uint32_t largest             # block size
    BlockSize[16] sizes

cdef uint64_t zipf_rank(Zipf *zipf, Random *random) noexcept nogil
cdef uint64_t workload_slot(Workload *work, BlockSize *size) noexcept nogil
cdef int workload_draw(Workload *work) noexcept nogil
cdef BlockSize *workload_size(Workload *work) noexcept nogil


cdef inline void workload_next(Workload *work, LoadRequest *request) noexcept nogil:
    """Fills operation, offset and length."""
    cdef BlockSize *size = &work.sizes[0]
    cdef int operation = work.operation
    if operation < 0:
        operation = workload_draw(work)
    request.operation = <uint8_t> operation
    if operation == LOAD_FLUSH:
        request.offset = 0
        request.length = 0
        return
    if work.size_count > 1:
        size = workload_size(work)
    request.length = size.bytes
    if work.offsets == OFFSETS_UNIFORM:
        request.offset = work.first + random_below(&work.random, size.slots) * work.step
    else:
        request.offset = work.first + workload_slot(work, size)


cdef int workload_setup(Workload *work, dict parameters, uint64_t size_bytes, uint32_t sector_size) except -1
