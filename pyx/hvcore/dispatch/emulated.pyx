"""The emulated path, host side (see emulated.pxd)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.disk.ops cimport (
    DISK_CACHED, DISK_NOWAIT, DISK_OK, DISK_RANGE, DISK_READ_ERROR, DISK_WOULD_BLOCK, DISK_WRITE_ERROR, DiskRef,
    disk_flush, disk_read, disk_write)
from hvcore.dispatch.handover cimport (
    HANDOVER_ANSWER_HEADER, HANDOVER_COMMAND, HANDOVER_MEDIA, HANDOVER_MEDIA_DONE, HANDOVER_PIO, HANDOVER_RESULT,
    HANDOVER_SEGMENTS, HandOverAnswer, HandOverRequest, Segment, handover_wake)
from hvcore.dispatch.pool cimport pool_submit
from hvcore.dispatch.synthetic cimport MediaDisk, media_execute
from hvcore.ide.abi cimport ERROR_IDNF, STATUS_BSY, STATUS_ERR
from hvcore.ide.channel cimport IDE_MEDIA_FLUSH, IDE_MEDIA_READ, IDE_MEDIA_WRITE
from hvcore.ide.driver cimport (
    IDE_MODE_DMA, IDE_MODE_PIO_STRING, IDE_REQUEST_FLUSH, IDE_REQUEST_IDENTIFY, IDE_REQUEST_READ, IDE_REQUEST_WRITE)
from hvcore.linux.atomics cimport count64, fence_full, load_acquire32, store_release32
from hvcore.metrics.trace cimport trace_stamp
from hvcore.scsi.target cimport SCSI_FLUSH, SCSI_READ, SCSI_WRITE, unit_disk
from hvcore.storage.hops cimport HOP_DISK_DONE, HOP_DISK_STARTED, HOP_MEDIA_ASKED, HOP_WORKER_DONE, HOP_WORKER_POSTED
from hvcore.storage.vsp cimport VSP_IDENTIFY, Vsp, VspUnit, vsp_abort, vsp_finish

cdef enum:
    SECTOR = 512


cdef void emulated_init(EmulatedHost *host) noexcept nogil:
    cdef int i
    memset(host, 0, sizeof(EmulatedHost))
    for i in range(2):
        host.channels[i].host = host


cdef void emulated_post(EmulatedChannel *channel, uint32_t operation) noexcept nogil:
    """The host's half is written: hands it to the worker."""
    cdef HandOver *shared = channel.host.shared
    channel.posted += 1
    channel.shared.request.operation = operation
    # Release: the worker that sees the number sees the request. Full fence: against the worker, which writes its
    # sleep word and then looks at the number once more.
    store_release32(&channel.shared.request.posted, channel.posted)
    fence_full()
    count64(&channel.current.unit.counters.hand_overs, 1)
    if handover_wake(shared, channel.host.intercepts):
        count64(&channel.current.unit.counters.doorbells, 1)


# Starting a request.

cdef void emulated_segments(Vsp *vsp, VspRequest *request, HandOverRequest *message, bint *even) noexcept nogil:
    """The request's pages as the guest's addresses. even: bus-master DMA reaches them (ide.md 5.2: even, < 4 GiB)."""
    cdef uint64_t address
    cdef int i
    even[0] = True
    message.segment_count = 0
    for i in range(request.iov_count):
        address = <uint64_t> (<uint8_t *> request.iov[i].iov_base - vsp.memory.base)
        if address + request.iov[i].iov_len > 0xffffffffu or (address | request.iov[i].iov_len) & 1:
            even[0] = False
        message.segments[i].address = <uint32_t> address
        message.segments[i].bytes = <uint32_t> request.iov[i].iov_len
        message.segment_count += 1


cdef void emulated_start(EmulatedChannel *channel) noexcept nogil:
    """Hands the oldest waiting request to the worker, if it is there and idle."""
    cdef VspRequest *request = channel.first
    cdef EmulatedDisk *disk
    cdef HandOverRequest *message
    cdef Vsp *vsp
    cdef bint even
    if channel.state != EMULATED_IDLE or request == NULL or channel.shared == NULL:
        return
    channel.first = request.next
    if channel.first == NULL:
        channel.last = NULL
    channel.current = request
    channel.moved = 0
    channel.media_status = DISK_OK
    channel.flushed = False
    vsp = <Vsp *> request.owner
    disk = <EmulatedDisk *> channel.current.unit.context
    message = &channel.shared.request
    message.drive = disk.drive
    message.mode = disk.mode
    message.trace_id = request.trace_id
    message.lba = 0
    message.sectors = 0
    message.segment_count = 0
    if request.plan.action == SCSI_READ or request.plan.action == SCSI_WRITE:
        message.kind = IDE_REQUEST_READ if request.plan.action == SCSI_READ else IDE_REQUEST_WRITE
        message.lba = request.plan.offset // SECTOR
        message.sectors = request.plan.length // SECTOR
        emulated_segments(vsp, request, message, &even)
        if disk.mode == IDE_MODE_DMA and not even:  # memory that the bus master cannot reach goes through the data port
            message.mode = IDE_MODE_PIO_STRING
    elif request.plan.action == VSP_IDENTIFY:
        message.kind = IDE_REQUEST_IDENTIFY
    else:
        message.kind = IDE_REQUEST_FLUSH
    channel.state = EMULATED_WORKER
    trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_WORKER_POSTED, vsp.relid)
    emulated_post(channel, HANDOVER_COMMAND)


cdef void emulated_enqueue(EmulatedChannel *channel, VspRequest *request) noexcept nogil:
    request.next = NULL
    if channel.last == NULL:
        channel.first = request
    else:
        channel.last.next = request
    channel.last = request


cdef void emulated_execute(VspUnit *unit, VspRequest *request) noexcept nogil:
    cdef EmulatedDisk *disk = <EmulatedDisk *> unit.context
    cdef EmulatedChannel *channel = &disk.host.channels[disk.channel]
    cdef int action = request.plan.action
    if action != SCSI_READ and action != SCSI_WRITE and action != SCSI_FLUSH and action != VSP_IDENTIFY:
        media_execute(disk.media, request)   # verify, unmap, write same: the VSP's own (design: step 4)
        return
    if disk.host.unavailable:
        vsp_abort(request)
        return
    if request.iov_count > HANDOVER_SEGMENTS:
        vsp_finish(request, DISK_RANGE)
        return
    emulated_enqueue(channel, request)
    emulated_start(channel)


cdef void emulated_end(EmulatedChannel *channel, int status) noexcept nogil:
    cdef VspRequest *request = channel.current
    if status == DISK_OK and request.plan.action == SCSI_WRITE and request.plan.fua and not channel.flushing:
        # LBA28 has no forced write: the write, then a flush before the request is done (storvsp.md 9.6).
        channel.flushing = True
        channel.shared.request.kind = IDE_REQUEST_FLUSH
        emulated_post(channel, HANDOVER_COMMAND)
        return
    channel.flushing = False
    channel.current = NULL
    channel.state = EMULATED_IDLE
    vsp_finish(request, status)
    emulated_start(channel)


# The media access that the emulator asks for.

cdef bint emulated_slice(EmulatedChannel *channel, VspRequest *request, uint64_t start, uint64_t length) noexcept nogil:
    """The request's pages from byte `start` on, `length` bytes, as channel.iov."""
    cdef int i
    cdef uint64_t part
    channel.iov_count = 0
    for i in range(request.iov_count):
        if length == 0:
            break
        if start >= request.iov[i].iov_len:
            start -= request.iov[i].iov_len
            continue
        part = min(length, request.iov[i].iov_len - start)
        channel.iov[channel.iov_count].iov_base = <uint8_t *> request.iov[i].iov_base + start
        channel.iov[channel.iov_count].iov_len = part
        channel.iov_count += 1
        length -= part
        start = 0
    return length == 0


cdef bint emulated_same(EmulatedChannel *channel, Vsp *vsp, const HandOverAnswer *answer) noexcept nogil:
    """Whether the segments that the emulator walked in its PRD table are the request's own pages, in order."""
    cdef int i = 0
    cdef uint32_t n
    cdef uint64_t into = 0, expected, part, left
    cdef uint32_t address
    for n in range(answer.segment_count):
        address = answer.segments[n].address
        left = answer.segments[n].bytes
        while left:
            if i == channel.iov_count:
                return False
            expected = <uint64_t> (<uint8_t *> channel.iov[i].iov_base - vsp.memory.base) + into
            if expected != address:
                return False
            part = min(left, channel.iov[i].iov_len - into)
            left -= part
            into += part
            address += <uint32_t> part
            if into == channel.iov[i].iov_len:
                i += 1
                into = 0
    return i == channel.iov_count


cdef bint emulated_check(EmulatedChannel *channel, const HandOverAnswer *answer) noexcept nogil:
    """Whether the media request is part of the request the worker has, and prepares it. The worker is a stranger."""
    cdef VspRequest *request = channel.current
    cdef Vsp *vsp = <Vsp *> request.owner
    cdef EmulatedDisk *disk = <EmulatedDisk *> channel.current.unit.context
    cdef uint64_t offset, length
    if answer.drive != disk.drive:
        return False
    channel.job_flush = answer.kind == IDE_MEDIA_FLUSH
    channel.job_write = answer.kind == IDE_MEDIA_WRITE
    if channel.job_flush:
        return request.plan.action == SCSI_FLUSH or channel.flushing
    if (answer.kind != IDE_MEDIA_READ and answer.kind != IDE_MEDIA_WRITE) or channel.flushing:
        return False
    if channel.job_write != (request.plan.action == SCSI_WRITE) or (
            not channel.job_write and request.plan.action != SCSI_READ):
        return False
    if answer.lba >= <uint64_t> 1 << 48 or answer.sectors == 0 or answer.sectors > HANDOVER_PIO // SECTOR:
        return False
    offset = answer.lba * SECTOR
    length = <uint64_t> answer.sectors * SECTOR
    # In order and without gaps: then the sum of all is the request, no byte twice and none left out.
    if offset != request.plan.offset + channel.moved or length > request.plan.length - channel.moved:
        return False
    if answer.dma:
        if answer.segment_count > HANDOVER_SEGMENTS:
            return False
        if not emulated_slice(channel, request, channel.moved, length) or not emulated_same(channel, vsp, answer):
            return False
    else:
        channel.iov[0].iov_base = channel.shared.pio + answer.drive * HANDOVER_PIO
        channel.iov[0].iov_len = length
        channel.iov_count = 1
    channel.job_offset = offset
    channel.job_bytes = length
    return True


cdef void media_run(PoolJob *job) noexcept nogil:
    """In a thread of the pool: may block."""
    cdef EmulatedChannel *channel = <EmulatedChannel *> job
    cdef DiskRef *disk = unit_disk(channel.current.unit.scsi)
    if channel.job_flush:
        channel.job_status = disk_flush(disk)
    elif channel.job_write:
        channel.job_status = disk_write(disk, channel.job_offset, channel.iov, channel.iov_count, 0)
    else:
        channel.job_status = disk_read(disk, channel.job_offset, channel.iov, channel.iov_count, 0)


cdef void emulated_media_end(EmulatedChannel *channel, int status) noexcept nogil:
    cdef VspRequest *request = channel.current
    cdef Vsp *vsp = <Vsp *> request.owner
    trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_DISK_DONE, vsp.relid)
    if status != DISK_OK:
        channel.media_status = status
    elif channel.job_flush:
        channel.flushed = True
    else:
        channel.moved += channel.job_bytes
    channel.state = EMULATED_WORKER
    channel.shared.request.media_status = status
    emulated_post(channel, HANDOVER_MEDIA_DONE)


cdef void media_done(PoolJob *job) noexcept nogil:
    cdef EmulatedChannel *channel = <EmulatedChannel *> job
    cdef VspRequest *request = channel.current
    if not channel.lost:
        emulated_media_end(channel, channel.job_status)
        return
    channel.lost = False
    channel.flushing = False
    channel.current = NULL
    channel.state = EMULATED_IDLE
    vsp_abort(request)
    emulated_start(channel)


cdef void emulated_media(EmulatedChannel *channel) noexcept nogil:
    cdef VspRequest *request = channel.current
    cdef Vsp *vsp = <Vsp *> request.owner
    cdef DiskRef *disk = unit_disk(channel.current.unit.scsi)
    cdef MediaDisk *media
    cdef int status = DISK_WOULD_BLOCK
    count64(&channel.current.unit.counters.media_accesses, 1)
    trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_MEDIA_ASKED, vsp.relid)
    trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_DISK_STARTED, vsp.relid)
    # As on the synthetic path: page cache hits and plain writes here, what blocks in the pool.
    if channel.job_write:
        status = disk_write(disk, channel.job_offset, channel.iov, channel.iov_count, DISK_NOWAIT | DISK_CACHED)
    elif not channel.job_flush:
        status = disk_read(disk, channel.job_offset, channel.iov, channel.iov_count, DISK_NOWAIT)
    if status == DISK_WOULD_BLOCK:
        channel.state = EMULATED_MEDIA
        channel.job.run = media_run
        channel.job.done = media_done
        media = (<EmulatedDisk *> request.unit.context).media
        pool_submit(media.pool, &media.source, &channel.job)
        return
    emulated_media_end(channel, status)


# What the worker posts.

cdef int emulated_result(EmulatedChannel *channel, const HandOverAnswer *answer) noexcept nogil:
    """The DiskStatus of a finished command (ATA status and error to sense: ide.md 1.4, storvsp.md 10)."""
    cdef VspRequest *request = channel.current
    cdef bint writes = request.plan.action != SCSI_READ
    # What the storage stack said is more exact than UNC or ABRT, and no worker can make a success of it.
    if channel.media_status != DISK_OK:
        return channel.media_status
    if answer.ata_status & (STATUS_BSY | STATUS_ERR):
        if answer.ata_error & ERROR_IDNF:
            return DISK_RANGE
        return DISK_WRITE_ERROR if writes else DISK_READ_ERROR
    # A success that left out media accesses is none, and so is a flush that never reached the medium.
    if (request.plan.action == SCSI_FLUSH or channel.flushing) and not channel.flushed:
        return DISK_WRITE_ERROR
    if (request.plan.action == SCSI_READ or request.plan.action == SCSI_WRITE) and channel.moved != request.plan.length:
        return DISK_WRITE_ERROR if writes else DISK_READ_ERROR
    return DISK_OK


cdef void emulated_message(EmulatedChannel *channel) noexcept nogil:
    cdef HandOverAnswer answer
    cdef VspRequest *request = channel.current
    cdef Vsp *vsp = <Vsp *> request.owner
    cdef uint32_t count
    # One fetch of everything that is used; the segments only as many as there may be.
    memcpy(&answer, &channel.shared.answer, HANDOVER_ANSWER_HEADER)
    count = min(answer.segment_count, <uint32_t> HANDOVER_SEGMENTS)
    memcpy(answer.segments, channel.shared.answer.segments, count * sizeof(Segment))
    count64(&channel.current.unit.counters.hand_overs, 1)
    if answer.operation == HANDOVER_MEDIA and emulated_check(channel, &answer):
        emulated_media(channel)
    elif answer.operation == HANDOVER_RESULT:
        count64(&channel.current.unit.counters.port_accesses, <uint32_t> answer.port_accesses)
        count64(&channel.current.unit.counters.bytes_copied, <uint32_t> answer.bytes_copied)
        trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_WORKER_DONE, vsp.relid)
        emulated_end(channel, emulated_result(channel, &answer))
    else:
        channel.host.faults += 1
        channel.host.broken = True               # the owner ends the worker, and with it the request
        channel.shared = NULL


cdef int emulated_poll(EmulatedHost *host) noexcept nogil:
    cdef int i, messages = 0
    if host.shared == NULL:
        return 0
    for i in range(2):
        if emulated_posted(&host.channels[i]):
            emulated_message(&host.channels[i])
            messages += 1
    return messages


cdef bint emulated_posted(EmulatedChannel *channel) noexcept nogil:
    # Acquire: who sees the number sees the answer.
    return (channel.state == EMULATED_WORKER and channel.shared != NULL
            and load_acquire32(&channel.shared.answer.answered) == channel.posted)


cdef bint emulated_idle(EmulatedHost *host) noexcept nogil:
    return host.channels[0].state == EMULATED_IDLE and host.channels[1].state == EMULATED_IDLE


cdef bint emulated_ready(EmulatedHost *host) noexcept nogil:
    return host.shared != NULL and (emulated_posted(&host.channels[0]) or emulated_posted(&host.channels[1]))


# Workers come and go.

cdef void emulated_worker(EmulatedHost *host, HandOver *shared) noexcept nogil:
    cdef int i
    host.shared = shared
    host.broken = False
    host.unavailable = False
    for i in range(2):
        host.channels[i].shared = &shared.channels[i]
        host.channels[i].posted = 0
        emulated_start(&host.channels[i])


cdef void emulated_worker_lost(EmulatedHost *host) noexcept nogil:
    cdef int i
    cdef EmulatedChannel *channel
    cdef VspRequest *request
    host.shared = NULL
    for i in range(2):
        channel = &host.channels[i]
        channel.shared = NULL
        if channel.state == EMULATED_MEDIA:
            channel.lost = True                  # the pool still uses the request's pages: aborted when it is done
        elif channel.state == EMULATED_WORKER:
            request = channel.current
            channel.current = NULL
            channel.flushing = False
            channel.state = EMULATED_IDLE
            vsp_abort(request)


cdef void emulated_unavailable(EmulatedHost *host) noexcept nogil:
    host.unavailable = True
    emulated_drop(host, NULL, NULL)


cdef void emulated_drop(EmulatedHost *host, const void *vsp, const VspUnit *unit) noexcept nogil:
    cdef int i
    cdef EmulatedChannel *channel
    cdef VspRequest *request
    cdef VspRequest *waiting
    for i in range(2):
        channel = &host.channels[i]
        waiting = channel.first
        channel.first = channel.last = NULL
        while waiting != NULL:
            request = waiting
            waiting = request.next
            if (vsp == NULL and unit == NULL) or (vsp != NULL and request.owner == vsp) or (
                    unit != NULL and request.unit == unit):
                vsp_abort(request)
                continue
            emulated_enqueue(channel, request)
