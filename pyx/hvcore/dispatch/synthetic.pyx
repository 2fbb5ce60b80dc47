"""The synthetic path's media access (see synthetic.pxd)."""

from hvcore.disk.ops cimport DISK_CACHED, DISK_NOWAIT, DISK_WOULD_BLOCK, disk_write
from hvcore.dispatch.pool cimport PoolJob, pool_submit
from hvcore.linux.atomics cimport count64
from hvcore.metrics.trace cimport trace_stamp
from hvcore.scsi.target cimport SCSI_WRITE, ScsiPlan, scsi_media, unit_disk
from hvcore.storage.hops cimport HOP_DISK_DONE, HOP_DISK_STARTED
from hvcore.storage.vsp cimport Vsp, VspRequest, VspUnit, vsp_finish


cdef void media_run(PoolJob *job) noexcept nogil:
    """In a thread of the pool: may block. Touches nothing that the Vsp's thread uses meanwhile."""
    cdef VspRequest *request = (<MediaJob *> job).request
    request.status = scsi_media(request.unit.scsi, &request.plan, request.iov, request.iov_count, 0)


cdef void media_done(PoolJob *job) noexcept nogil:
    """In the Vsp's thread again."""
    cdef VspRequest *request = (<MediaJob *> job).request
    cdef Vsp *vsp = <Vsp *> request.owner
    trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_DISK_DONE, vsp.relid)
    vsp_finish(request, request.status)


cdef void synthetic_execute(VspUnit *unit, VspRequest *request) noexcept nogil:
    media_execute(<MediaDisk *> unit.context, request)


cdef void media_execute(MediaDisk *disk, VspRequest *request) noexcept nogil:
    cdef Vsp *vsp = <Vsp *> request.owner
    cdef ScsiPlan *plan = &request.plan
    cdef MediaJob *media
    cdef int status
    count64(&request.unit.counters.media_accesses, 1)
    trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_DISK_STARTED, vsp.relid)
    if plan.action == SCSI_WRITE and not plan.fua and plan.epoch == request.unit.scsi.epoch:
        # Into the page cache: a copy. Few file systems tell a write that would wait from one that would not, so one
        # that must wait (dirty limit, the file's allocation) holds up this VM's other requests, as it would hold up the
        # writer itself. A write that needs more than that, such as a new block of a VHDX, goes to the pool.
        status = disk_write(
            unit_disk(request.unit.scsi), plan.offset, request.iov, request.iov_count, DISK_NOWAIT | DISK_CACHED)
    else:
        # Data that the page cache has is read here and now: a hand-over to the pool would cost more than the read.
        status = scsi_media(request.unit.scsi, plan, request.iov, request.iov_count, DISK_NOWAIT)
    if status == DISK_WOULD_BLOCK:
        media = <MediaJob *> request.executor_data
        media.job.run = media_run
        media.job.done = media_done
        media.request = request
        pool_submit(disk.pool, &disk.source, &media.job)
        return
    trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_DISK_DONE, vsp.relid)
    vsp_finish(request, status)
