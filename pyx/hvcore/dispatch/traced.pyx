"""Single reads, each stamped by the guest: what `explain` follows, and `compare` at its end."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from hvcore.errors import Error, GuestGone, RingCorrupt

from hvcore.dispatch.pattern cimport pattern_holds
from hvcore.dispatch.random cimport Random, random_below, random_seed
from hvcore.hypervisor.intercept cimport VP_GONE, VP_INTERRUPTED, VP_OK
from hvcore.ide.abi cimport IDE_SECTOR
from hvcore.ide.driver cimport IDE_OUTCOME_OK, IDE_REQUEST_READ
from hvcore.ide.requester cimport IDE_COMMAND_BYTES, IdeJob, job_abandon, job_prepare, job_run
from hvcore.ide.requester cimport Channel as IdeChannel
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.threads cimport monitor_enter, monitor_unlock
from hvcore.storage.protocol cimport VstorPacket
from hvcore.storage.vsc cimport (
    VSC_CORRUPT, VSC_GONE, VSC_OK, Channel, Vsc, VscSlot, vsc_abandon, vsc_publish, vsc_read_srb,
    vsc_send, vsc_slot, vsc_slot_return, vsc_wait)
from hvcore.vmbus.ring cimport RING_OK


ctypedef struct Stamps:
    uint64_t transaction_id      # by which the host's stamps are found
    uint64_t asked_ns            # the application asks
    uint64_t built_ns            # the VSC has the SRB
    uint64_t sent_ns             # it is on VMBus, and the host is signalled where the rules ask for it
    uint64_t done_ns             # the application has its answer

ctypedef struct Traced:
    Stamps *stamps
    uint64_t offset
    uint8_t *data
    uint32_t block
    uint32_t sector_size
    uint8_t lun
    bint done
    bint failed


cdef void traced_done(VscSlot *slot) noexcept nogil:
    cdef Traced *traced = <Traced *> slot.owner
    traced.stamps.done_ns = clock_ns()
    traced.done = True
    traced.failed = slot.reply.u.scsi.srb_status != 1


cdef int traced_run(Vsc *vsc, Traced *traced) noexcept nogil:
    """One read, stamped; VscResult. Called again after VSC_INTERRUPTED it goes on waiting."""
    cdef VscSlot *slot
    cdef VstorPacket packet
    cdef int result = VSC_OK
    monitor_enter(&vsc.monitor, &vsc.wanted)
    if traced.stamps.transaction_id == 0:
        traced.stamps.asked_ns = clock_ns()
        slot = vsc_slot(vsc)
        if slot != NULL:
            vsc_read_srb(&packet, traced.offset // traced.sector_size, traced.block // traced.sector_size, traced.block,
                         False)
            packet.u.scsi.lun = traced.lun
            slot.done = traced_done
            slot.owner = traced
            traced.stamps.transaction_id = slot.transaction_id
            traced.stamps.built_ns = clock_ns()
            if vsc_send(vsc, slot, &packet, <uint64_t> (traced.data - vsc.base), traced.block) == RING_OK:
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
               uint32_t requests=1000, uint64_t seed=1, pattern_seed=None, uint8_t lun=0):
    """Random reads one at a time, each with the guest's own stamps: five native uint64 for each request, as bytes:
    transaction id, and CLOCK_MONOTONIC ns when the application asked, the SRB was built, it was on VMBus, the answer
    was there.

    buffer: guest memory of a block. size: bytes of the disk. pattern_seed: reads are compared with the pattern of that
    seed.
    """
    cdef Traced traced
    cdef Random random
    cdef Vsc *vsc = &channel.vsc
    cdef Py_buffer view
    cdef uint32_t i
    if block == 0 or block % sector_size or size < block:
        raise ValueError(f"blocks of {block} bytes do not fit a disk of {size} bytes with sectors of {sector_size}")
    if block > vsc.max_transfer:
        raise ValueError(f"blocks of {block} bytes are more than one request moves ({vsc.max_transfer})")
    random_seed(&random, seed, 0)
    stamps = bytearray(requests * sizeof(Stamps))
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        memset(&traced, 0, sizeof(traced))
        traced.data = <uint8_t *> view.buf
        traced.block = block
        traced.sector_size = sector_size
        traced.lun = lun
        if (<uint64_t> view.len < block or traced.data < vsc.base
                or traced.data + view.len > vsc.base + vsc.size_bytes):
            raise ValueError("the buffer is not guest memory for a block")
        for i in range(requests):
            traced.stamps = <Stamps *> PyByteArray_AS_STRING(stamps) + i
            traced.offset = random_below(&random, size // block) * block
            traced.done = False
            trace_one(vsc, &traced)
            if traced.failed:
                raise Error(f"the read at byte {traced.offset} failed")
            if pattern_seed is not None and not pattern_holds(traced.data, traced.offset, block, pattern_seed):
                raise Error(f"the read at byte {traced.offset} did not bring what the image holds there")
    finally:
        PyBuffer_Release(&view)
    return bytes(stamps)


cdef int trace_one(Vsc *vsc, Traced *traced) except -1:
    cdef int result
    try:
        while not traced.done:
            with nogil:
                result = traced_run(vsc, traced)
            if result == VSC_GONE:
                raise GuestGone("the host has ended the channel")
            if result == VSC_CORRUPT:
                raise RingCorrupt("the host broke a rule of the channel's ring")
            PyErr_CheckSignals()
    finally:
        if not traced.done:
            with nogil:
                monitor_enter(&vsc.monitor, &vsc.wanted)
                vsc_abandon(vsc, traced)
                monitor_unlock(&vsc.monitor)
    return 0


# The trapped path.

ctypedef struct DriveStamps:
    uint64_t asked_ns            # the application asks
    uint64_t built_ns            # the IDE driver has its request; the first port access follows
    uint64_t done_ns             # the application has its answer
    uint64_t port_accesses       # that the request took


def run_traced_drive(IdeChannel channel not None, uint32_t drive, int mode, buffer, uint64_t size, *,
                     uint32_t block=4096, uint32_t requests=1000, uint64_t seed=1, pattern_seed=None):
    """run_traced() on a drive behind the guest's IDE controller. Four native uint64 for each request, as bytes:
    CLOCK_MONOTONIC ns when the application asked, the driver had the request, the answer was there; and the port
    accesses that it took.

    mode: an IdeMode.
    """
    cdef Random random
    cdef DriveStamps *stamp
    cdef uint64_t offset
    cdef uint8_t *data
    cdef uint8_t *base = channel.core.processor.base
    cdef Py_buffer view
    cdef uint32_t i
    if block == 0 or block % IDE_SECTOR or size < block or block > IDE_COMMAND_BYTES:
        raise ValueError(f"blocks of {block} bytes do not fit an IDE disk of {size} bytes")
    random_seed(&random, seed, 0)
    stamps = bytearray(requests * sizeof(DriveStamps))
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        data = <uint8_t *> view.buf
        if (<uint64_t> view.len < block or data < base
                or data + view.len > base + min(channel.core.processor.size_bytes, <uint64_t> 1 << 32)):
            raise ValueError("the buffer is not guest memory for a block")
        for i in range(requests):
            stamp = <DriveStamps *> PyByteArray_AS_STRING(stamps) + i
            offset = random_below(&random, size // block) * block
            trace_drive(channel, drive, mode, offset, block, data, stamp)
            if pattern_seed is not None and not pattern_holds(data, offset, block, pattern_seed):
                raise Error(f"the read at byte {offset} did not bring what the image holds there")
    finally:
        PyBuffer_Release(&view)
    return bytes(stamps)


cdef int trace_drive(IdeChannel channel, uint32_t drive, int mode, uint64_t offset, uint32_t block, uint8_t *data,
                     DriveStamps *stamp) except -1:
    cdef IdeJob job
    cdef int status = VP_INTERRUPTED
    stamp.asked_ns = clock_ns()
    memset(&job, 0, sizeof(job))
    job.bytes = block
    job.request.kind = IDE_REQUEST_READ
    job.request.drive = drive
    job.request.mode = mode
    job.request.lba = offset // IDE_SECTOR
    job.request.sectors = block // IDE_SECTOR
    job_prepare(&channel.core, &job, data)
    stamp.built_ns = clock_ns()
    while status == VP_INTERRUPTED:
        with nogil:
            status = job_run(&channel.core, &job, -1)
            stamp.done_ns = clock_ns()
        if status == VP_INTERRUPTED:
            try:
                PyErr_CheckSignals()
            except BaseException:
                job_abandon(&channel.core, &job)
                raise
    stamp.port_accesses = job.result.port_accesses
    if status == VP_GONE:
        raise GuestGone("the host has ended the partition")
    if status != VP_OK or job.result.outcome != IDE_OUTCOME_OK:
        raise Error(f"the read at byte {offset} failed")
    return 0
