"""The host's part of the trapped path (see trapped.pxd)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.disk.ops cimport (
    DISK_CACHED, DISK_CLOSED, DISK_NOWAIT, DISK_OK, DISK_READ_ONLY, DISK_UNSUPPORTED, DISK_WOULD_BLOCK, disk_check,
    disk_flush, disk_read, disk_write)
from hvcore.dispatch.handover cimport (
    GUEST_MEDIA_HEADER, GUEST_MEDIA_SEGMENTS, HANDOVER_PIO, Segment, guest_counters, handover_wake)
from hvcore.dispatch.pool cimport pool_submit
from hvcore.ide.abi cimport IDE_CHUNK_SECTORS, IDE_SECTOR
from hvcore.ide.channel cimport IDE_MEDIA_FLUSH, IDE_MEDIA_READ, IDE_MEDIA_TRIM, IDE_MEDIA_WRITE
from hvcore.linux.atomics cimport count64, fence_full, load_acquire32, load_acquire64, load_relaxed64, store_release32
from hvcore.metrics.counters cimport IO_FLUSH, IO_OTHER, IO_READ, IO_UNMAP, IO_WRITE, counters_io
from hvcore.metrics.trace cimport trace_stamp
from hvcore.storage.hops cimport HOP_DISK_DONE, HOP_DISK_STARTED

cdef extern from *:
    """
    #define HV_DISK_SEQUENCE ((UINT64_C(1) << 40) - 1)
    _Static_assert(4 * sizeof(hv_counters) == sizeof(((hv_handover *) 0)->guest_counters), "hand-over memory");
    """
    const uint64_t SEQUENCE "HV_DISK_SEQUENCE"

cdef int[5] KINDS = [IO_OTHER, IO_READ, IO_WRITE, IO_FLUSH, IO_UNMAP]        # of an IdeMediaKind

cdef enum:
    TRIM_SECTORS = 65535             # of one range of DATA SET MANAGEMENT


cdef void trapped_init(TrappedHost *host, TraceRing *trace) noexcept nogil:
    cdef int i
    memset(host, 0, sizeof(TrappedHost))
    host.trace = trace
    for i in range(2):
        host.channels[i].host = host


cdef void trapped_guest(TrappedHost *host, uint8_t *memory, uint64_t memory_bytes,
                        InterceptPages *pages) noexcept nogil:
    host.memory = memory
    host.memory_bytes = memory_bytes
    host.pages = pages


cdef void answer(TrappedChannel *channel, int status) noexcept nogil:
    cdef TrappedHost *host = channel.host
    cdef TrappedDrive *drive = channel.drive
    trace_stamp(host.trace, channel.trace_id, 0, HOP_DISK_DONE, 0)
    if status != DISK_OK:
        count64(&drive.counters.errors, 1)
    else:
        counters_io(drive.counters, KINDS[channel.kind], channel.bytes)
    count64(&drive.counters.hand_overs, 1)
    channel.shared.status = status
    # Release: the worker that sees the number sees status and data. Full fence: against the worker, which sets its
    # sleep word and then looks at the number once more.
    store_release32(&channel.shared.answered, channel.taken)
    fence_full()
    if handover_wake(host.shared, host.pages):
        count64(&drive.counters.doorbells, 1)


# What the worker asks for.

cdef bint gather(TrappedChannel *channel, const GuestMedia *block, uint32_t count) noexcept nogil:
    """The buffers of a read or write, from a private copy of the request's head. False: no honest worker asks so."""
    cdef TrappedHost *host = channel.host
    cdef Segment segment
    cdef uint64_t total = 0
    cdef uint32_t i
    channel.iov_count = 0
    if not block.dma:
        if block.buffer_offset > HANDOVER_PIO or HANDOVER_PIO - block.buffer_offset < channel.bytes or block.tail_bytes:
            return False
        channel.iov[0].iov_base = channel.shared.pio + block.drive * HANDOVER_PIO + block.buffer_offset
        channel.iov[0].iov_len = channel.bytes
        channel.iov_count = 1
        return True
    if block.tail_bytes >= IDE_SECTOR or (block.tail_bytes and channel.kind != IDE_MEDIA_READ):
        return False
    for i in range(count):
        memcpy(&segment, &channel.shared.segments[i], sizeof(Segment))
        if segment.bytes == 0 or segment.address > host.memory_bytes:
            return False
        if host.memory_bytes - segment.address < segment.bytes:
            return False
        channel.iov[i].iov_base = host.memory + segment.address
        channel.iov[i].iov_len = segment.bytes
        total += segment.bytes
    channel.iov_count = <int> count
    if block.tail_bytes:
        channel.iov[count].iov_base = host.sink
        channel.iov[count].iov_len = block.tail_bytes
        channel.iov_count += 1
    return total + block.tail_bytes == channel.bytes


cdef bint check(TrappedChannel *channel, uint32_t number) noexcept nogil:
    """Fetches the request, once, and prepares it; False: no honest worker makes it. channel.status other than DISK_OK:
    it fails at once."""
    cdef TrappedHost *host = channel.host
    cdef GuestMedia block
    cdef uint32_t most = IDE_CHUNK_SECTORS
    memcpy(&block, channel.shared, GUEST_MEDIA_HEADER)
    if block.drive > 1:
        return False
    channel.drive = &host.drives[2 * number + block.drive]
    # Acquire: the backend behind it was made before.
    channel.disk = <DiskRef *> load_acquire64(<const uint64_t *> &channel.drive.disk)
    if channel.disk == NULL:
        return False
    channel.kind = block.kind
    channel.trace_id = channel.drive.trace_base | (block.sequence & SEQUENCE)
    channel.status = DISK_OK if host.memory != NULL else DISK_CLOSED
    channel.bytes = 0
    if block.kind == IDE_MEDIA_FLUSH:
        return True
    if block.kind < IDE_MEDIA_READ or block.kind > IDE_MEDIA_TRIM:
        return False
    if block.kind == IDE_MEDIA_TRIM:
        most = TRIM_SECTORS
    if block.lba >= <uint64_t> 1 << 48 or block.sectors == 0 or block.sectors > most:
        return False
    channel.offset = block.lba * IDE_SECTOR
    channel.bytes = <uint64_t> block.sectors * IDE_SECTOR
    if block.kind != IDE_MEDIA_READ and channel.disk.read_only:
        channel.status = DISK_READ_ONLY
    if channel.status == DISK_OK:
        channel.status = disk_check(channel.disk, channel.offset, channel.bytes)    # the image may have shrunk
    if block.kind == IDE_MEDIA_TRIM:
        if not channel.disk.can_trim:
            channel.status = DISK_UNSUPPORTED
        return True
    if block.segment_count > GUEST_MEDIA_SEGMENTS:
        return False
    return host.memory == NULL or gather(channel, &block, block.segment_count)


cdef void media_run(PoolJob *job) noexcept nogil:
    """In a thread of the pool: may block."""
    cdef TrappedChannel *channel = <TrappedChannel *> job
    cdef DiskRef *disk = channel.disk
    if channel.kind == IDE_MEDIA_FLUSH:
        channel.status = DISK_OK if disk.read_only else disk_flush(disk)
    elif channel.kind == IDE_MEDIA_TRIM:
        channel.status = disk.ops.trim(disk.state, channel.offset, channel.bytes)
    elif channel.kind == IDE_MEDIA_WRITE:
        channel.status = disk_write(disk, channel.offset, channel.iov, channel.iov_count, 0)
    else:
        channel.status = disk_read(disk, channel.offset, channel.iov, channel.iov_count, 0)


cdef void media_done(PoolJob *job) noexcept nogil:
    cdef TrappedChannel *channel = <TrappedChannel *> job
    channel.busy = False
    channel.host.busy -= 1
    if channel.lost:
        channel.lost = False
    elif channel.shared != NULL:
        answer(channel, channel.status)


cdef void media(TrappedChannel *channel) noexcept nogil:
    cdef DiskRef *disk = channel.disk
    cdef int status = DISK_WOULD_BLOCK
    count64(&channel.drive.counters.media_accesses, 1)
    count64(&channel.drive.counters.hand_overs, 1)
    if channel.status != DISK_OK:
        answer(channel, channel.status)
        return
    trace_stamp(channel.host.trace, channel.trace_id, 0, HOP_DISK_STARTED, 0)
    # As on the other paths: page cache hits and plain writes here, what blocks in the pool.
    if channel.kind == IDE_MEDIA_WRITE:
        status = disk_write(disk, channel.offset, channel.iov, channel.iov_count, DISK_NOWAIT | DISK_CACHED)
    elif channel.kind == IDE_MEDIA_READ:
        status = disk_read(disk, channel.offset, channel.iov, channel.iov_count, DISK_NOWAIT)
    if status != DISK_WOULD_BLOCK:
        answer(channel, status)
        return
    channel.busy = True
    channel.host.busy += 1
    channel.job.run = media_run
    channel.job.done = media_done
    pool_submit(channel.drive.media.pool, &channel.drive.media.source, &channel.job)


cdef inline bint posted(const TrappedChannel *channel) noexcept nogil:
    # Acquire: who sees the number sees the request.
    return channel.shared != NULL and not channel.busy and load_acquire32(&channel.shared.posted) != channel.taken


cdef int trapped_poll(TrappedHost *host) noexcept nogil:
    cdef TrappedChannel *channel
    cdef int requests = 0
    cdef uint32_t i
    for i in range(2):
        channel = &host.channels[i]
        if not posted(channel):
            continue
        requests += 1
        channel.taken = load_acquire32(&channel.shared.posted)
        if check(channel, i):
            media(channel)
        else:
            host.faults += 1
            host.broken = True               # the owner ends the worker; nothing more is taken from it
            channel.shared = NULL
    return requests


cdef bint trapped_ready(TrappedHost *host) noexcept nogil:
    return posted(&host.channels[0]) or posted(&host.channels[1])


# Workers come and go.

cdef void trapped_worker(TrappedHost *host, HandOver *shared) noexcept nogil:
    cdef int i
    host.shared = shared
    host.broken = False
    for i in range(2):
        host.channels[i].shared = &shared.guest_media[i]
        host.channels[i].taken = 0


cdef void sum_counters(Counters *total, const Counters *counters) noexcept nogil:
    """Those that a worker writes, by what it may have written."""
    total.requests += load_relaxed64(&counters.requests)
    total.port_accesses += load_relaxed64(&counters.port_accesses)
    total.intercepts += load_relaxed64(&counters.intercepts)
    total.bytes_copied += load_relaxed64(&counters.bytes_copied)
    total.doorbells += load_relaxed64(&counters.doorbells)


cdef void trapped_worker_lost(TrappedHost *host) noexcept nogil:
    cdef TrappedChannel *channel
    cdef int i
    if host.shared != NULL:
        for i in range(4):
            sum_counters(&host.drives[i].worker, guest_counters(host.shared, i))
    host.shared = NULL
    for i in range(2):
        channel = &host.channels[i]
        channel.shared = NULL
        channel.lost = channel.busy          # the pool still uses the guest's pages; nobody waits for its answer


cdef void trapped_counters(TrappedHost *host, uint32_t place, Counters *counters) noexcept nogil:
    cdef uint64_t before = counters.intercepts
    sum_counters(counters, &host.drives[place].worker)
    if host.shared != NULL:
        sum_counters(counters, guest_counters(host.shared, place))
    # Each intercept is handed from the child to the worker, and back.
    counters.hand_overs += 2 * (counters.intercepts - before)
