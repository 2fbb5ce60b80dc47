"""The load generator: a closed loop of requests that keeps a queue full, all without the interpreter.

One loop for every path that ends in a storvsp channel, and one beside it that calls the storage stack directly, for
comparison. Latency is from the request's submission to the moment its completion was seen.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.errors import Error, GuestGone, RingCorrupt

from hvcore.disk.ops cimport DISK_OK, Backend, disk_read, disk_write
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport monitor_lock, monitor_unlock
from hvcore.metrics.histogram cimport Histogram, LatencyHistogram, histogram_record
from hvcore.storage.protocol cimport VSTOR_COMPLETE_IO, VstorPacket, VstorScsiRequest
from hvcore.storage.vsc cimport (
    VSC_GONE, VSC_CORRUPT, VSC_INTERRUPTED, VSC_OK, Channel, Vsc, VscSlot, vsc_abandon, vsc_publish, vsc_read_srb,
    vsc_send, vsc_slot, vsc_slot_return, vsc_wait)
from hvcore.vmbus.ring cimport RING_OK

cdef enum:
    DEPTH_MAX = 256


cdef class Requester:
    cdef void hold(self, object buffer):
        pass

ctypedef struct Load:
    Vsc *vsc
    # the workload
    bint write
    bint random
    bint verify                  # reads: compare with the pattern
    uint64_t seed                # of the pattern
    uint64_t state               # of the offsets
    uint64_t blocks              # on the disk
    uint64_t position            # next block of a sequential workload
    uint32_t block               # bytes
    uint32_t sector_size
    uint32_t depth
    uint8_t *data                # depth blocks
    uint64_t requests_left
    int64_t end_ns
    # its progress
    uint32_t in_flight
    uint64_t started
    uint64_t finished
    uint64_t errors
    uint64_t verified            # bytes
    uint64_t wrong               # blocks that did not hold the pattern
    uint64_t wrong_offset        # of the first
    uint8_t srb_status           # of the first error
    int disk_status
    uint64_t[256] offsets        # of the requests in flight, by buffer
    uint32_t[256] idle           # stack of buffers
    uint32_t idle_count

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <string.h>
    /* The known content of hvcore's own images: the word at byte offset o of the disk is o * K + seed, little-endian.
    Plain
       loops of independent words, so that the compiler vectorises them. */
    #define HV_PATTERN_K UINT64_C(0x9E3779B97F4A7C15)
    static inline void hv_pattern_fill(uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) {
        for (uint64_t i = 0; i < length; i += 8) {
            uint64_t word = (offset + i) * HV_PATTERN_K + seed;
            memcpy(data + i, &word, 8);
        }
    }
    static inline int hv_pattern_holds(const uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) {
        uint64_t difference = 0;
        for (uint64_t i = 0; i < length; i += 8) {
            uint64_t word;
            memcpy(&word, data + i, 8);
            difference |= word ^ ((offset + i) * HV_PATTERN_K + seed);
        }
        return difference == 0;
    }
    """
    void pattern_fill "hv_pattern_fill"(uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) noexcept nogil
    bint pattern_holds "hv_pattern_holds"(
        const uint8_t *data, uint64_t offset, uint64_t length, uint64_t seed) noexcept nogil


def fill_pattern(buffer, uint64_t offset, uint64_t seed):
    """Fills a buffer (a multiple of 8 bytes) with the content of the disk from byte `offset` on."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    if view.len % 8 == 0:
        pattern_fill(<uint8_t *> view.buf, offset, view.len, seed)
    PyBuffer_Release(&view)


def holds_pattern(buffer, uint64_t offset, uint64_t seed):
    """Whether a buffer (a multiple of 8 bytes) has that content."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    cdef bint holds = view.len % 8 == 0 and pattern_holds(<const uint8_t *> view.buf, offset, view.len, seed)
    PyBuffer_Release(&view)
    return holds


cdef uint64_t load_offset(Load *load) noexcept nogil:
    """The next request's offset in bytes."""
    cdef uint64_t block
    if load.random:
        # xorshift64*, upper bits: enough randomness to defeat read-ahead and caches, at a nanosecond.
        load.state ^= load.state >> 12
        load.state ^= load.state << 25
        load.state ^= load.state >> 27
        block = (load.state * <uint64_t> 0x2545F4914F6CDD1D >> 16) % load.blocks
    else:
        block = load.position
        load.position = 0 if block + 1 == load.blocks else block + 1
    return block * load.block


cdef void load_checked(Load *load, const uint8_t *data, uint64_t offset) noexcept nogil:
    if load.verify:
        if pattern_holds(data, offset, load.block, load.seed):
            load.verified += load.block
        else:
            if load.wrong == 0:
                load.wrong_offset = offset
            load.wrong += 1


ctypedef struct ChannelLoad:
    Load load
    Histogram *histogram


cdef void load_done(VscSlot *slot) noexcept nogil:
    cdef ChannelLoad *run = <ChannelLoad *> slot.owner
    cdef Load *load = &run.load
    cdef VstorScsiRequest *srb = &slot.reply.u.scsi
    cdef uint32_t buffer = <uint32_t> slot.tag
    histogram_record(run.histogram, clock_ns() - slot.sent_ns)
    load.in_flight -= 1
    load.finished += 1
    if (slot.reply.operation != VSTOR_COMPLETE_IO or srb.srb_status != 1 or srb.data_transfer_length != slot.length):
        if load.errors == 0:
            load.srb_status = srb.srb_status
        load.errors += 1
    elif not load.write:
        load_checked(load, load.data + <uint64_t> buffer * load.block, load.offsets[buffer])
    load.idle[load.idle_count] = buffer
    load.idle_count += 1


cdef int channel_run(ChannelLoad *run) noexcept nogil:
    cdef Load *load = &run.load
    cdef Vsc *vsc = load.vsc
    cdef VscSlot *slot
    cdef VstorPacket packet
    cdef uint32_t buffer
    cdef uint64_t now
    cdef uint32_t waits = 0
    cdef int result = VSC_OK
    monitor_lock(&vsc.monitor)
    while True:
        now = clock_ns()
        while load.idle_count and load.requests_left and <int64_t> now < load.end_ns:
            slot = vsc_slot(vsc)
            if slot == NULL:
                break
            buffer = load.idle[load.idle_count - 1]
            load.offsets[buffer] = load_offset(load)
            if load.write:
                pattern_fill(load.data + <uint64_t> buffer * load.block, load.offsets[buffer], load.block, load.seed)
            vsc_read_srb(&packet, load.offsets[buffer] // load.sector_size, load.block // load.sector_size, load.block,
                         load.write)
            slot.done = load_done
            slot.owner = run
            slot.tag = buffer
            slot.sent_ns = clock_ns()
            if vsc_send(vsc, slot, &packet, <uint64_t> (load.data - vsc.base) + <uint64_t> buffer * load.block,
                        load.block) != RING_OK:
                vsc_slot_return(vsc, slot)
                break
            load.idle_count -= 1
            load.requests_left -= 1
            load.in_flight += 1
            load.started += 1
        vsc_publish(vsc)
        if load.in_flight == 0 and (load.requests_left == 0 or <int64_t> now >= load.end_ns):
            break
        result = vsc_wait(vsc, -1)
        waits += 1
        if result == VSC_OK and waits >= 65536:
            result = VSC_INTERRUPTED             # a wait that never blocks never sees a signal
        if result != VSC_OK:
            break
    monitor_unlock(&vsc.monitor)
    return result


cdef int disk_run(Load *load, Backend disk, LatencyHistogram histogram, uint64_t budget) noexcept nogil:
    """At most `budget` requests, one after the other; 1 when there are more to do."""
    cdef iovec vector
    cdef uint64_t offset, started
    cdef int status
    while budget:
        started = clock_ns()
        if load.requests_left == 0 or <int64_t> started >= load.end_ns:
            return 0
        offset = load_offset(load)
        if load.write:
            pattern_fill(load.data, offset, load.block, load.seed)
            started = clock_ns()
        vector.iov_base = load.data
        vector.iov_len = load.block
        if load.write:
            status = disk_write(&disk.ref, offset, &vector, 1, 0)
        else:
            status = disk_read(&disk.ref, offset, &vector, 1, 0)
        histogram_record(&histogram.data, clock_ns() - started)
        load.requests_left -= 1
        load.started += 1
        load.finished += 1
        budget -= 1
        if status != DISK_OK:
            if load.errors == 0:
                load.disk_status = status
            load.errors += 1
        elif not load.write:
            load_checked(load, load.data, offset)
    return 1


cdef object load_result(Load *load, uint64_t seconds_ns, LatencyHistogram histogram):
    return {
        "requests": load.finished,
        "seconds": seconds_ns / 1e9,
        "errors": load.errors,
        "verified_bytes": load.verified,
        "wrong_blocks": load.wrong,
        "wrong_offset": load.wrong_offset if load.wrong else None,
        "srb_status": load.srb_status,
        "disk_status": load.disk_status,
        "latency": histogram,
    }


cdef int load_setup(Load *load, str rw, uint64_t size, uint32_t block, uint32_t sector_size, uint32_t depth, seconds,
                    requests, uint64_t random_seed, pattern_seed) except -1:
    memset(load, 0, sizeof(Load))
    if rw not in ("randread", "randwrite", "read", "write"):
        raise ValueError(f"there is no workload {rw!r}")
    if block == 0 or block % sector_size or size < block:
        raise ValueError(f"blocks of {block} bytes do not fit a disk of {size} bytes with sectors of {sector_size}")
    if not 1 <= depth <= DEPTH_MAX:
        raise ValueError(f"queue depth {depth} is not between 1 and {DEPTH_MAX}")
    load.write = "write" in rw
    load.random = rw.startswith("rand")
    load.verify = pattern_seed is not None
    load.seed = pattern_seed or 0
    load.state = random_seed or 1
    load.block = block
    load.blocks = size // block
    load.sector_size = sector_size
    load.depth = depth
    load.requests_left = <uint64_t> -1 if requests is None else requests
    load.end_ns = <int64_t> clock_ns() + <int64_t> ((1e9 if seconds is None else seconds) * 1e9)
    load.idle_count = depth
    cdef uint32_t i
    for i in range(depth):
        load.idle[i] = i
    return 0


def run_channel(Channel channel not None, buffer, uint64_t size, uint32_t sector_size, *, str rw="randread",
                uint32_t block=4096, uint32_t depth=1, seconds=None, requests=None, uint64_t seed=1, pattern_seed=None):
    """Keeps `depth` requests of `block` bytes in flight for `seconds` or `requests`, whichever ends first.

    buffer: guest memory of depth * block bytes. size: bytes of the disk. pattern_seed: reads are compared with the
    pattern
    of that seed, and writes write it; None: neither is checked. Returns a dict: requests, seconds, errors,
    verified_bytes,
    wrong_blocks, wrong_offset, srb_status, disk_status, and latency, a LatencyHistogram.
    """
    cdef ChannelLoad run
    cdef LatencyHistogram histogram = LatencyHistogram()
    cdef Vsc *vsc = &channel.vsc
    cdef Py_buffer view
    cdef int result = VSC_INTERRUPTED
    cdef uint64_t started
    load_setup(&run.load, rw, size, block, sector_size, min(depth, vsc.depth), seconds, requests, seed, pattern_seed)
    if block > vsc.max_transfer:
        raise ValueError(f"blocks of {block} bytes are more than one request moves ({vsc.max_transfer})")
    run.load.vsc = vsc
    run.histogram = &histogram.data
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        run.load.data = <uint8_t *> view.buf
        if (<uint64_t> view.len < <uint64_t> depth * block or run.load.data < vsc.base
                or run.load.data + view.len > vsc.base + vsc.size_bytes):
            raise ValueError("the buffer is not guest memory for the whole queue")
        started = clock_ns()
        try:
            while result == VSC_INTERRUPTED:
                with nogil:
                    result = channel_run(&run)
                if result == VSC_INTERRUPTED:
                    PyErr_CheckSignals()
        finally:
            with nogil:
                monitor_lock(&vsc.monitor)
                vsc_abandon(vsc, &run)
                monitor_unlock(&vsc.monitor)
        if result == VSC_GONE:
            raise GuestGone("the host has ended the channel")
        if result == VSC_CORRUPT:
            raise RingCorrupt("the host broke a rule of the channel's ring")
        return load_result(&run.load, clock_ns() - started, histogram)
    finally:
        PyBuffer_Release(&view)


ctypedef struct Stamps:
    uint64_t transaction_id      # by which the host's stamps are found
    uint64_t asked_ns            # the application asks
    uint64_t built_ns            # the VSC has the SRB
    uint64_t sent_ns             # it is on VMBus, and the host is signalled where the rules ask for it
    uint64_t done_ns             # the application has its answer

ctypedef struct Traced:
    Stamps *stamps
    bint done
    bint failed


cdef void traced_done(VscSlot *slot) noexcept nogil:
    cdef Traced *traced = <Traced *> slot.owner
    traced.stamps.done_ns = clock_ns()
    traced.done = True
    traced.failed = slot.reply.u.scsi.srb_status != 1


cdef int traced_run(Vsc *vsc, Load *load, Traced *traced) noexcept nogil:
    """One read, stamped; VscResult. Called again after VSC_INTERRUPTED it goes on waiting."""
    cdef VscSlot *slot
    cdef VstorPacket packet
    cdef int result = VSC_OK
    monitor_lock(&vsc.monitor)
    if traced.stamps.transaction_id == 0:
        traced.stamps.asked_ns = clock_ns()
        load.offsets[0] = load_offset(load)
        slot = vsc_slot(vsc)
        if slot != NULL:
            vsc_read_srb(&packet, load.offsets[0] // load.sector_size, load.block // load.sector_size, load.block,
                         False)
            slot.done = traced_done
            slot.owner = traced
            traced.stamps.transaction_id = slot.transaction_id
            traced.stamps.built_ns = clock_ns()
            if vsc_send(vsc, slot, &packet, <uint64_t> (load.data - vsc.base), load.block) == RING_OK:
                vsc_publish(vsc)
                traced.stamps.sent_ns = clock_ns()
            else:
                vsc_slot_return(vsc, slot)
                traced.stamps.transaction_id = 0
    while result == VSC_OK and not traced.done:
        result = vsc_wait(vsc, -1)
        if traced.stamps.transaction_id == 0:
            break
    monitor_unlock(&vsc.monitor)
    return VSC_OK if traced.done else result


def run_traced(Channel channel not None, buffer, uint64_t size, uint32_t sector_size, *, uint32_t block=4096,
               uint32_t requests=1000, uint64_t seed=1, pattern_seed=None):
    """Random reads one at a time, each with the guest's own stamps: five native uint64 for each request, as bytes:
    transaction id, and CLOCK_MONOTONIC ns when the application asked, the SRB was built, it was on VMBus, the answer
    was
    there. The arguments are run_channel's.
    """
    cdef Load load
    cdef Traced traced
    cdef Vsc *vsc = &channel.vsc
    cdef Py_buffer view
    cdef uint32_t i
    cdef int result
    load_setup(&load, "randread", size, block, sector_size, 1, None, requests, seed, pattern_seed)
    if block > vsc.max_transfer:
        raise ValueError(f"blocks of {block} bytes are more than one request moves ({vsc.max_transfer})")
    stamps = bytearray(requests * sizeof(Stamps))
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        load.data = <uint8_t *> view.buf
        if (<uint64_t> view.len < block or load.data < vsc.base
                or load.data + view.len > vsc.base + vsc.size_bytes):
            raise ValueError("the buffer is not guest memory for a block")
        for i in range(requests):
            memset(&traced, 0, sizeof(traced))
            traced.stamps = <Stamps *> PyByteArray_AS_STRING(stamps) + i
            result = VSC_INTERRUPTED
            try:
                while not traced.done:
                    with nogil:
                        result = traced_run(vsc, &load, &traced)
                    if result == VSC_GONE:
                        raise GuestGone("the host has ended the channel")
                    if result == VSC_CORRUPT:
                        raise RingCorrupt("the host broke a rule of the channel's ring")
                    PyErr_CheckSignals()
            finally:
                if not traced.done:
                    with nogil:
                        monitor_lock(&vsc.monitor)
                        vsc_abandon(vsc, &traced)
                        monitor_unlock(&vsc.monitor)
            if traced.failed:
                raise Error(f"the read at byte {load.offsets[0]} failed")
            load_checked(&load, load.data, load.offsets[0])
            if load.wrong:
                raise Error(f"the read at byte {load.offsets[0]} did not bring what the image holds there")
    finally:
        PyBuffer_Release(&view)
    return bytes(stamps)


def run_disk(Backend disk not None, *, str rw="randread", uint32_t block=4096, seconds=None, requests=None,
             uint64_t seed=1, pattern_seed=None):
    """The same workload at depth 1, straight against the storage stack in this process: the paths' point of
    comparison."""
    cdef Load load
    cdef LatencyHistogram histogram = LatencyHistogram()
    cdef uint64_t started
    cdef int more = 1
    load_setup(&load, rw, disk.ref.size_bytes, block, disk.ref.sector_size, 1, seconds, requests, seed, pattern_seed)
    buffer = bytearray(block)
    load.data = <uint8_t *> PyByteArray_AS_STRING(buffer)
    started = clock_ns()
    while more:
        with nogil:
            more = disk_run(&load, disk, histogram, 65536)
        PyErr_CheckSignals()
    return load_result(&load, clock_ns() - started, histogram)
