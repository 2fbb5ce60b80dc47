"""How the load generator reaches storvsc channels, drives at the ports and disk backends (see load.pxd)."""

cimport cython
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.ide.requester import OUTCOMES

from hvcore.disk.ops cimport (
    DISK_NO_SPACE, DISK_OK, DISK_RANGE, DISK_READ_ERROR, DISK_READ_ONLY, DISK_UNSUPPORTED, DISK_WRITE_ERROR, Backend,
    DiskRef, disk_error, disk_flush, disk_read, disk_write)
from hvcore.dispatch.load cimport (
    LOAD_ABORTED, LOAD_CORRUPT, LOAD_DEPTH_MAX, LOAD_DONE, LOAD_FAILED, LOAD_FLUSH, LOAD_FULL, LOAD_GONE,
    LOAD_INTERRUPTED, LOAD_NO_SPACE, LOAD_OK, LOAD_PROTECTED, LOAD_RANGE, LOAD_READ, LOAD_READ_ERROR, LOAD_SHORT,
    LOAD_TRIM, LOAD_UNSUPPORTED, LOAD_WRITE, LOAD_WRITE_ERROR, LoadRequest, LoadTarget, Requester, load_finished)
from hvcore.hypervisor.intercept cimport VP_GONE, VP_INTERRUPTED, VP_OK, VP_TIMEOUT
from hvcore.ide.abi cimport ERROR_ABRT, ERROR_IDNF, IDE_SECTOR
from hvcore.ide.driver cimport (
    IDE_MODE_PIO_MULTIPLE, IDE_OUTCOME_ERROR, IDE_OUTCOME_OK, IDE_OUTCOME_REFUSED, IDE_REQUEST_FLUSH,
    IDE_REQUEST_READ, IDE_REQUEST_TRIM, IDE_REQUEST_WRITE)
from hvcore.ide.requester cimport IDE_COMMAND_BYTES, IdeJob, job_abandon, job_prepare, job_run
from hvcore.ide.requester cimport Channel as IdeChannel
from hvcore.ide.requester cimport Requester as IdeRequester
from hvcore.linux.atomics cimport cpu_relax
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.spin cimport SPIN_MAX_NS, spin_begin, spin_end, spin_yield
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport monitor_enter, monitor_unlock
from hvcore.scsi.cdb cimport put_be16, put_be32, put_be64
from hvcore.scsi.sense cimport (
    ASC_INVALID_OPCODE, ASC_LBA_OUT_OF_RANGE, ASC_SPACE_ALLOCATION_FAILED, ASC_WRITE_FAULT, KEY_DATA_PROTECT,
    KEY_ILLEGAL_REQUEST, KEY_MEDIUM_ERROR)
from hvcore.scsi.srb cimport (
    SRB_ABORTED, SRB_AUTOSENSE_VALID, SRB_NO_DEVICE, SRB_REQUEST_FLUSHED, SRB_STATUS_MASK, SRB_SUCCESS)
from hvcore.storage.protocol cimport VSTOR_COMPLETE_IO, VstorPacket, VstorScsiRequest
from hvcore.storage.vsc cimport (
    VSC_CORRUPT, VSC_GONE, VSC_INTERRUPTED, Channel, Vsc, VscSlot, vsc_abandon, vsc_publish, vsc_read_srb, vsc_send,
    vsc_slot, vsc_slot_return, vsc_srb, vsc_wait)
from hvcore.vmbus.ring cimport RING_FULL, RING_OK, ring_poll

cdef extern from *:
    """
    #include <time.h>
    static inline int hv_sleep_until(int64_t deadline_ns) {
        struct timespec limit = { deadline_ns / 1000000000, deadline_ns % 1000000000 };
        return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &limit, NULL);
    }
    """
    int sleep_until "hv_sleep_until"(int64_t deadline_ns) noexcept nogil

cdef enum:
    UNMAP_BYTES = 24             # parameter list with one descriptor


# A storvsp channel.

ctypedef struct ChannelTarget:
    Vsc *vsc
    uint32_t sector_size
    uint8_t lun


cdef int channel_outcome(VscSlot *slot) noexcept nogil:
    """What the host answered, which is not to be trusted, in the load's words."""
    cdef VstorScsiRequest *srb = &slot.reply.u.scsi
    cdef uint8_t status = srb.srb_status & SRB_STATUS_MASK
    cdef uint8_t key = 0
    cdef uint32_t asc = 0
    if slot.reply.operation != VSTOR_COMPLETE_IO:
        return LOAD_FAILED
    if status == SRB_SUCCESS and srb.scsi_status == 0:
        return LOAD_DONE if srb.data_transfer_length == slot.length else LOAD_SHORT
    if srb.srb_status & SRB_AUTOSENSE_VALID:
        key = srb.payload[2] & 0xf
        asc = <uint32_t> srb.payload[12] << 8 | srb.payload[13]
    if key == KEY_MEDIUM_ERROR:
        return LOAD_WRITE_ERROR if asc == ASC_WRITE_FAULT else LOAD_READ_ERROR
    if key == KEY_DATA_PROTECT:
        return LOAD_NO_SPACE if asc == ASC_SPACE_ALLOCATION_FAILED else LOAD_PROTECTED
    if key == KEY_ILLEGAL_REQUEST:
        if asc == ASC_LBA_OUT_OF_RANGE:
            return LOAD_RANGE
        if asc == ASC_INVALID_OPCODE:
            return LOAD_UNSUPPORTED
    if key == 0xB or status in (SRB_ABORTED, SRB_NO_DEVICE, SRB_REQUEST_FLUSHED):
        return LOAD_ABORTED
    return LOAD_FAILED


cdef void channel_done(VscSlot *slot) noexcept nogil:
    cdef LoadRequest *request = <LoadRequest *> <size_t> slot.tag
    cdef VstorScsiRequest *srb = &slot.reply.u.scsi
    cdef int outcome
    # The common case first, in one look.
    if (slot.reply.operation == VSTOR_COMPLETE_IO and srb.srb_status == SRB_SUCCESS and srb.scsi_status == 0
            and srb.data_transfer_length == slot.length):
        load_finished(request, LOAD_DONE, 0)
        return
    outcome = channel_outcome(slot)
    load_finished(request, outcome, srb.srb_status | <uint32_t> (srb.payload[2] & 0xf) << 8
                  | <uint32_t> srb.payload[12] << 24 | <uint32_t> srb.payload[13] << 16)


cdef uint32_t channel_command(ChannelTarget *state, LoadRequest *request, VstorPacket *packet) noexcept nogil:
    """Fills the packet; bytes of data that go with it."""
    cdef uint8_t cdb[16]
    cdef uint64_t lba = request.offset // state.sector_size
    cdef uint32_t blocks = request.length // state.sector_size
    if request.operation <= LOAD_WRITE:
        vsc_read_srb(packet, lba, blocks, request.length, request.operation == LOAD_WRITE)
        return request.length
    memset(cdb, 0, sizeof(cdb))
    if request.operation == LOAD_FLUSH:
        cdb[0] = 0x35                        # SYNCHRONIZE CACHE (10) of the whole disk
        vsc_srb(packet, cdb, 10, 0, 2)
        return 0
    cdb[0] = 0x42                            # UNMAP
    cdb[8] = UNMAP_BYTES
    memset(request.data, 0, UNMAP_BYTES)
    put_be16(request.data, UNMAP_BYTES - 2)
    put_be16(request.data + 2, UNMAP_BYTES - 8)
    put_be64(request.data + 8, lba)
    put_be32(request.data + 16, blocks)
    vsc_srb(packet, cdb, 10, UNMAP_BYTES, 0)
    return UNMAP_BYTES


cdef int channel_start(LoadTarget *target, LoadRequest *request) noexcept nogil:
    cdef ChannelTarget *state = <ChannelTarget *> target.state
    cdef Vsc *vsc = state.vsc
    cdef VscSlot *slot = vsc_slot(vsc)
    cdef VstorPacket packet
    cdef uint32_t length
    cdef int status
    if slot == NULL:
        return LOAD_FULL
    length = channel_command(state, request, &packet)
    packet.u.scsi.lun = state.lun
    slot.done = channel_done
    slot.owner = state
    slot.tag = <uint64_t> <size_t> request
    status = vsc_send(vsc, slot, &packet, <uint64_t> (request.data - vsc.base), length)
    if status == RING_OK:
        return LOAD_OK
    vsc_slot_return(vsc, slot)
    return LOAD_FULL if status == RING_FULL else LOAD_CORRUPT


cdef bint channel_watch(Vsc *vsc, int64_t deadline_ns) noexcept nogil:
    """Waits awake for the last moments before a request is due: a timer would wake us long after. True: the ring has
    something; False: the time has come, or this process may not spin."""
    cdef int _i
    cdef bint found = False
    if not vsc.spins or not spin_begin(&vsc.spinner):
        return True
    while not found and <int64_t> clock_ns() < deadline_ns:
        for _i in range(16):
            if ring_poll(&vsc.incoming):
                found = True
                break
            cpu_relax()
        if not found:
            # Others may want the channel, or this CPU.
            monitor_unlock(&vsc.monitor)
            spin_yield()
            monitor_enter(&vsc.monitor, &vsc.wanted)
    spin_end(&vsc.spinner)
    return found


cdef int channel_wait(LoadTarget *target, int64_t deadline_ns) noexcept nogil:
    cdef Vsc *vsc = (<ChannelTarget *> target.state).vsc
    cdef int64_t left
    cdef int result
    vsc_publish(vsc)
    if deadline_ns >= 0:
        left = deadline_ns - <int64_t> clock_ns()
        if left > SPIN_MAX_NS:
            deadline_ns -= SPIN_MAX_NS
        elif not channel_watch(vsc, deadline_ns):
            return LOAD_OK
    result = vsc_wait(vsc, deadline_ns)
    if result == VSC_GONE:
        return LOAD_GONE
    if result == VSC_CORRUPT:
        return LOAD_CORRUPT
    return LOAD_INTERRUPTED if result == VSC_INTERRUPTED else LOAD_OK


cdef void channel_enter(LoadTarget *target) noexcept nogil:
    cdef Vsc *vsc = (<ChannelTarget *> target.state).vsc
    monitor_enter(&vsc.monitor, &vsc.wanted)


cdef void channel_leave(LoadTarget *target) noexcept nogil:
    monitor_unlock(&(<ChannelTarget *> target.state).vsc.monitor)


cdef void channel_abandon(LoadTarget *target) noexcept nogil:
    cdef Vsc *vsc = (<ChannelTarget *> target.state).vsc
    monitor_enter(&vsc.monitor, &vsc.wanted)
    vsc_abandon(vsc, target.state)
    monitor_unlock(&vsc.monitor)


@cython.final
cdef class ChannelRequester(Requester):
    """Requests to one LUN behind a storvsp channel; buffers are guest memory. size: bytes of the disk."""
    cdef ChannelTarget state
    cdef Channel channel

    def __init__(self, Channel channel not None, uint64_t size, uint32_t sector_size, *, uint8_t lun=0):
        self.channel = channel
        self.state.vsc = &channel.vsc
        self.state.sector_size = sector_size
        self.state.lun = lun
        self.target.state = &self.state
        self.target.size_bytes = size
        self.target.sector_size = sector_size
        self.target.depth = min(channel.vsc.depth, <uint32_t> LOAD_DEPTH_MAX)
        self.target.max_transfer = channel.vsc.max_transfer
        self.target.memory = channel.vsc.base
        self.target.memory_bytes = channel.vsc.size_bytes
        self.target.start = channel_start
        self.target.wait = channel_wait
        self.target.enter = channel_enter
        self.target.leave = channel_leave
        self.target.abandon = channel_abandon

    cdef int hold(self, object buffer) except -1:
        if self.channel.vsc.orphans:
            self.channel.held.append(buffer)
        return 0

    cpdef str describe(self, uint32_t detail):
        sense = f"{detail >> 8 & 0xf:x}/{detail >> 24:02x}/{detail >> 16 & 0xff:02x}"
        return f"SRB status {detail & 0xff:#04x}, sense {sense}"


# The storage stack in this process: each request is done when start() returns.

cdef int disk_outcome(int status) noexcept nogil:
    if status == DISK_OK:
        return LOAD_DONE
    if status == DISK_READ_ERROR:
        return LOAD_READ_ERROR
    if status == DISK_WRITE_ERROR:
        return LOAD_WRITE_ERROR
    if status == DISK_NO_SPACE:
        return LOAD_NO_SPACE
    if status == DISK_READ_ONLY:
        return LOAD_PROTECTED
    if status == DISK_RANGE:
        return LOAD_RANGE
    return LOAD_UNSUPPORTED if status == DISK_UNSUPPORTED else LOAD_FAILED


cdef int disk_start(LoadTarget *target, LoadRequest *request) noexcept nogil:
    cdef const DiskRef *disk = <const DiskRef *> target.state
    cdef iovec vector
    cdef int status
    vector.iov_base = request.data
    vector.iov_len = request.length
    if request.operation == LOAD_READ:
        status = disk_read(disk, request.offset, &vector, 1, 0)
    elif request.operation == LOAD_WRITE:
        status = disk_write(disk, request.offset, &vector, 1, 0)
    elif request.operation == LOAD_FLUSH:
        status = disk_flush(disk)
    else:
        status = disk.ops.trim(disk.state, request.offset, request.length)
    load_finished(request, disk_outcome(status), <uint32_t> -status)
    return LOAD_OK


cdef int disk_wait(LoadTarget *target, int64_t deadline_ns) noexcept nogil:
    """Nothing is ever in flight: only the time is waited for, the last moments of it awake."""
    cdef int64_t now = <int64_t> clock_ns()
    if deadline_ns - now > SPIN_MAX_NS and sleep_until(deadline_ns - SPIN_MAX_NS) == EINTR:
        return LOAD_INTERRUPTED
    while <int64_t> clock_ns() < deadline_ns:
        spin_yield()
    return LOAD_OK


@cython.final
cdef class DiskRequester(Requester):
    """Requests straight to a disk backend, one at a time."""
    cdef Backend disk

    def __init__(self, Backend disk not None):
        self.disk = disk
        self.target.state = &disk.ref
        self.target.size_bytes = disk.ref.size_bytes
        self.target.sector_size = disk.ref.sector_size
        self.target.depth = 1
        self.target.start = disk_start
        self.target.wait = disk_wait

    cpdef str describe(self, uint32_t detail):
        return str(disk_error(-<int> detail))


# A drive behind the guest's IDE controller. Its programme runs in the thread that starts the request, to the end.

cdef enum:
    PATIENCE_NS = 100_000_000    # of a wait for the drive: then the load looks for signals, and for its own end
    RANGE_SECTORS = 65535        # of DATA SET MANAGEMENT (ide.md 3.3)

ctypedef struct DriveTarget:
    IdeRequester *channel
    uint32_t drive
    int mode                     # IdeMode
    bint read_only
    LoadRequest *request         # in flight, NULL: none
    bint interrupted             # a signal came, and nobody was told yet
    IdeJob job


cdef int drive_outcome(const DriveTarget *state, int status) noexcept nogil:
    """What the drive answered in the load's words, as the host's storage stack reports it on the other paths."""
    cdef const IdeJob *job = &state.job
    cdef bint reads = state.request.operation == LOAD_READ
    if status != VP_OK:
        return LOAD_ABORTED                  # no controller
    if job.result.outcome == IDE_OUTCOME_OK:
        return LOAD_DONE
    if job.result.outcome != IDE_OUTCOME_ERROR:
        # Malformed, or the bus master or the protocol failed.
        return LOAD_FAILED if job.result.outcome == IDE_OUTCOME_REFUSED else LOAD_ABORTED
    if job.result.error & ERROR_IDNF:
        return LOAD_RANGE
    if not reads and job.result.error & ERROR_ABRT:
        if state.read_only:
            return LOAD_PROTECTED
        if state.request.operation > LOAD_FLUSH:
            return LOAD_UNSUPPORTED
    return LOAD_READ_ERROR if reads else LOAD_WRITE_ERROR


cdef int drive_run(DriveTarget *state) noexcept nogil:
    """Goes on with the request in flight: LOAD_OK, also when it is not done yet, or LOAD_GONE."""
    cdef LoadRequest *request = state.request
    cdef int status = job_run(state.channel, &state.job, -1)
    if status == VP_INTERRUPTED or status == VP_TIMEOUT:
        state.interrupted = status == VP_INTERRUPTED
        return LOAD_OK
    if status == VP_GONE:
        state.request = NULL
        return LOAD_GONE
    status = drive_outcome(state, status)
    state.request = NULL
    load_finished(request, status, <uint32_t> state.job.result.outcome << 16
                  | <uint32_t> state.job.result.error << 8 | state.job.result.status)
    return LOAD_OK


cdef void drive_ranges(LoadRequest *request) noexcept nogil:
    """The block of ranges of a trim, into the request's room (3.3)."""
    cdef uint64_t lba = request.offset // IDE_SECTOR, entry
    cdef uint32_t left = request.length // IDE_SECTOR
    cdef uint32_t sectors, at = 0
    memset(request.data, 0, IDE_SECTOR)
    while left:
        sectors = left if left < RANGE_SECTORS else RANGE_SECTORS
        entry = lba | <uint64_t> sectors << 48
        memcpy(request.data + at, &entry, 8)
        at += 8
        lba += sectors
        left -= sectors


cdef int drive_start(LoadTarget *target, LoadRequest *request) noexcept nogil:
    cdef DriveTarget *state = <DriveTarget *> target.state
    cdef IdeJob *job = &state.job
    if state.request != NULL:
        return LOAD_FULL
    memset(job, 0, sizeof(IdeJob))
    job.patience_ns = PATIENCE_NS
    job.bytes = request.length
    job.request.drive = state.drive
    job.request.mode = state.mode
    if request.operation == LOAD_FLUSH:
        job.request.kind = IDE_REQUEST_FLUSH
    elif request.operation == LOAD_TRIM:
        job.request.kind = IDE_REQUEST_TRIM
        job.bytes = IDE_SECTOR
        drive_ranges(request)
    else:
        job.request.kind = IDE_REQUEST_WRITE if request.operation == LOAD_WRITE else IDE_REQUEST_READ
        job.request.lba = request.offset // IDE_SECTOR
        job.request.sectors = request.length // IDE_SECTOR
    # In guest memory, where the bus master finds it: nothing is copied.
    job_prepare(state.channel, job, request.data)
    state.request = request
    return drive_run(state)


cdef int drive_wait(LoadTarget *target, int64_t deadline_ns) noexcept nogil:
    cdef DriveTarget *state = <DriveTarget *> target.state
    if state.interrupted:
        state.interrupted = False
        return LOAD_INTERRUPTED
    if state.request == NULL:
        return disk_wait(target, deadline_ns)
    return drive_run(state)


cdef void drive_abandon(LoadTarget *target) noexcept nogil:
    cdef DriveTarget *state = <DriveTarget *> target.state
    if state.request != NULL:
        job_abandon(state.channel, &state.job)
        state.request = NULL


@cython.final
cdef class DriveRequester(Requester):
    """Requests to one drive of an IDE channel through the guest's own ports, one at a time; buffers are guest memory.

    size: bytes of the disk. mode: an IdeMode. read_only: what a refused write means.
    """
    cdef DriveTarget state
    cdef IdeChannel channel

    def __init__(self, IdeChannel channel not None, uint32_t drive, int mode, uint64_t size, *, bint read_only=False):
        if drive > 1 or not 0 <= mode <= <int> IDE_MODE_PIO_MULTIPLE:
            raise ValueError(f"drive {drive} in mode {mode}: a channel has drives 0 and 1, modes are 0 to 3")
        if not channel.core.reset_due:
            channel.held = []                # what an abandoned request might have moved, it has moved
        self.channel = channel
        self.state.channel = &channel.core
        self.state.drive = drive
        self.state.mode = mode
        self.state.read_only = read_only
        self.target.state = &self.state
        self.target.size_bytes = size
        self.target.sector_size = IDE_SECTOR
        self.target.depth = 1
        self.target.max_transfer = IDE_COMMAND_BYTES
        self.target.memory = channel.core.processor.base
        # The bus master has addresses of 32 bits (ide.md 5.2).
        self.target.memory_bytes = min(channel.core.processor.size_bytes, <uint64_t> 1 << 32)
        self.target.start = drive_start
        self.target.wait = drive_wait
        self.target.abandon = drive_abandon

    cdef int hold(self, object buffer) except -1:
        if self.channel.core.reset_due:
            self.channel.held.append(buffer)
        return 0

    cpdef str describe(self, uint32_t detail):
        text = f"ATA status {detail & 0xff:#04x}, error {detail >> 8 & 0xff:#04x}"
        return text if detail >> 16 <= IDE_OUTCOME_ERROR else f"{OUTCOMES[detail >> 16]}, {text}"
