"""The SCSI engine without a bus: what each CDB means for a disk (storvsp.md sections 5 to 11)."""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.disk.ops cimport (
    DISK_CLOSED, DISK_NO_SPACE, DISK_NOWAIT, DISK_OK, DISK_RANGE, DISK_READ_ERROR, DISK_READ_ONLY, DISK_UNSUPPORTED,
    DISK_WOULD_BLOCK, DISK_WRITE_ERROR, Backend, DiskRef, disk_flush, disk_read, disk_write)
from hvcore.linux.atomics cimport load_relaxed32, store_release64
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport monitor_destroy, monitor_init, monitor_lock, monitor_unlock
from hvcore.scsi.capacity cimport media_lba_status
from hvcore.scsi.cdb cimport *
from hvcore.scsi.command cimport plan_alert, plan_other
from hvcore.scsi.diagnostic cimport diagnostic_parameters
from hvcore.scsi.media cimport MEDIA_ABORTED, MEDIA_MISCOMPARE, media_compare, media_write_rest, media_write_same
from hvcore.scsi.mode cimport mode_parameters
from hvcore.scsi.plan cimport FAILED, plan_begin, reject_field, reject_write
from hvcore.scsi.reservation cimport persistent_parameters
from hvcore.scsi.sense cimport *
from hvcore.scsi.srb cimport *
from hvcore.scsi.transfer cimport plan_transfer
from hvcore.scsi.unit cimport UnitState, nexus_attach, nexus_detach, trailing_zeros, unit_disk
from hvcore.scsi.unmap cimport unmap_parameters

from hvcore.scsi.result import MediaAccess, ScsiResult

cdef dict ACTIONS = {
    SCSI_READ: "read", SCSI_WRITE: "write", SCSI_FLUSH: "flush", SCSI_VERIFY: "verify", SCSI_PARAMETERS: "parameters",
    SCSI_TRIM: "trim", SCSI_WRITE_SAME: "write same", SCSI_ANSWER: "status", SCSI_COMPARE_WRITE: "compare and write",
}


# ---- planning

cdef inline uint32_t lba21(const uint8_t *cdb) noexcept nogil:
    """Of the (6) forms: what lies above it in byte 1 is ignored."""
    return be32(cdb) & 0x1FFFFF


cdef void scsi_plan(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                    ScsiPlan *plan) noexcept nogil:
    cdef uint8_t op = cdb[0]
    # Read once, without the lock: it says at the least what was so before the initiator could have heard of it.
    cdef uint32_t alert = load_relaxed32(&unit.alert)
    plan_begin(plan)
    plan.epoch = load_relaxed32(&unit.epoch)
    if cython.unlikely(unit.max_transfer != 0 and buffer_length > unit.max_transfer):     # 5.3, check 6
        reject_field(plan)
        return
    if cython.unlikely(alert != 0):
        if plan_alert(unit, cdb, alert, plan):
            return
    if op == CDB_READ10:
        plan_transfer(unit, SCSI_READ, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_WRITE10:
        plan_transfer(unit, SCSI_WRITE, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_READ16:
        plan_transfer(unit, SCSI_READ, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_WRITE16:
        plan_transfer(unit, SCSI_WRITE, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_READ12:
        plan_transfer(unit, SCSI_READ, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_WRITE12:
        plan_transfer(unit, SCSI_WRITE, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_READ6:
        plan_transfer(unit, SCSI_READ, 0, lba21(cdb), cdb[4] if cdb[4] else 256, buffer_length, data_in, plan)
    elif op == CDB_WRITE6:
        plan_transfer(unit, SCSI_WRITE, 0, lba21(cdb), cdb[4] if cdb[4] else 256, buffer_length, data_in, plan)
    else:
        plan_other(unit, cdb, buffer_length, data_in, plan)


cdef void scsi_parameters(ScsiUnit *unit, const uint8_t *cdb, const uint8_t *list, uint32_t length,
                          ScsiPlan *plan) noexcept nogil:
    plan.action = SCSI_DONE
    if cdb[0] == CDB_UNMAP:
        unmap_parameters(unit, list, length, plan)
    elif cdb[0] == CDB_PERSISTENT_RESERVE_OUT:
        persistent_parameters(unit, cdb, list, length, plan)
    elif cdb[0] == CDB_SEND_DIAGNOSTIC:
        diagnostic_parameters(list, length, plan)
    else:
        mode_parameters(unit, cdb[0] == CDB_MODE_SELECT10, list, length, plan)


# ---- the medium

cdef int trim_extents(const DiskRef *disk, const uint8_t *extents, uint32_t count) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t length
    cdef int status = DISK_OK
    for i in range(count):
        length = <uint64_t> be32(extents + 16 * i + 8) * disk.sector_size
        if length:
            status = disk.ops.trim(disk.state, be64(extents + 16 * i) * disk.sector_size, length)
        if status != DISK_OK:
            break
    return status


cdef int compare_write(const ScsiUnit *unit, ScsiPlan *plan, const iovec *iov, int count) noexcept nogil:
    """One at a time for the whole unit, whoever asks: no other comes between the comparison and the write."""
    cdef const DiskRef *disk = unit_disk(unit)
    cdef int status
    monitor_lock(&unit.shared.comparing)
    status = media_compare(disk, plan.offset, plan.length, iov, count, plan.length, &plan.mismatch)
    if status == DISK_OK:
        status = media_write_rest(disk, plan.offset, plan.length, iov, count, plan.length)
    monitor_unlock(&unit.shared.comparing)
    if status == DISK_OK and plan.fua:
        status = disk_flush(disk)
    return status


cdef int scsi_media(const ScsiUnit *unit, ScsiPlan *plan, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef const DiskRef *disk = unit_disk(unit)
    cdef int status = DISK_OK
    if disk.ops == NULL:
        return DISK_CLOSED
    if flags & DISK_NOWAIT and (plan.fua or (plan.action != SCSI_READ and plan.action != SCSI_WRITE)):
        return DISK_WOULD_BLOCK
    # A command that waited while another initiator had it aborted does not begin.
    if cython.unlikely(plan.epoch != load_relaxed32(&unit.epoch)):
        return MEDIA_ABORTED
    if plan.action == SCSI_READ:
        if plan.fua:
            status = disk_flush(disk)
        if status == DISK_OK:
            status = disk_read(disk, plan.offset, iov, count, flags)
    elif plan.action == SCSI_WRITE:
        status = disk_write(disk, plan.offset, iov, count, flags)
        if status == DISK_OK and plan.fua:
            status = disk_flush(disk)
    elif plan.action == SCSI_FLUSH:
        status = disk_flush(disk)
    elif plan.action == SCSI_VERIFY:
        status = media_compare(disk, plan.offset, plan.length, iov, count, plan.buffer_length, &plan.mismatch)
    elif plan.action == SCSI_TRIM:
        status = trim_extents(disk, plan.extents, plan.extent_count)
    elif plan.action == SCSI_WRITE_SAME:
        status = media_write_same(disk, plan.offset, plan.length, iov, count, plan.buffer_length, plan.trim)
    elif plan.action == SCSI_COMPARE_WRITE:
        status = compare_write(unit, plan, iov, count)
    elif plan.action == SCSI_ANSWER:
        status = media_lba_status(disk, plan)
    return status


cdef void scsi_finish(ScsiUnit *unit, ScsiPlan *plan, int disk_status) noexcept nogil:
    cdef uint64_t lba = plan.offset >> trailing_zeros(unit_disk(unit).sector_size)
    cdef bint single = plan.length == unit_disk(unit).sector_size, compared
    # A discard is a hint: what the backend cannot discard stays (9.8).
    if disk_status == DISK_OK or (disk_status == DISK_UNSUPPORTED and plan.action == SCSI_TRIM):
        if plan.action != SCSI_ANSWER:
            plan.data_length = plan.buffer_length
        plan.action = SCSI_DONE
    elif disk_status == MEDIA_MISCOMPARE:
        compared = plan.action == SCSI_COMPARE_WRITE or (
            plan.action == SCSI_VERIFY and plan.buffer_length == plan.length)
        scsi_fail(plan, FAILED, KEY_MISCOMPARE, ASC_MISCOMPARE)
        if compared:                         # INFORMATION is the first byte of the buffer that differs
            sense_information(plan.sense, plan.mismatch)
    elif disk_status == MEDIA_ABORTED:
        scsi_fail(plan, SRB_ABORTED | SRB_AUTOSENSE_VALID, KEY_ABORTED_COMMAND, ASC_NONE)
        plan.scsi_status = SCSI_TASK_ABORTED
    elif disk_status == DISK_RANGE:
        scsi_fail(plan, FAILED, KEY_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE)
    elif disk_status == DISK_READ_ONLY:
        reject_write(plan)
    elif disk_status == DISK_READ_ERROR:
        scsi_fail(plan, FAILED, KEY_MEDIUM_ERROR, ASC_UNRECOVERED_READ)
        # INFORMATION is the first bad LBA: known where only one block was read, and it has 32 bits.
        if single and lba <= 0xFFFFFFFFU:
            sense_information(plan.sense, <uint32_t> lba)
    elif disk_status == DISK_WRITE_ERROR:
        scsi_fail(plan, FAILED, KEY_MEDIUM_ERROR, ASC_WRITE_FAULT)
    elif disk_status == DISK_NO_SPACE:
        # What a thin disk says when its pool is full; a Linux guest reports ENOSPC.
        scsi_fail(plan, FAILED, KEY_DATA_PROTECT, ASC_SPACE_ALLOCATION_FAILED)
    else:
        scsi_fail(plan, FAILED, KEY_MEDIUM_ERROR, ASC_NONE)


# ---- from Python

cdef int load_cdb(object cdb, uint8_t *command) except -1:
    """Bytes beyond the CDB's length are zero (5.3, check 4)."""
    cdef bytes copy = bytes(memoryview(cdb))
    if not 1 <= len(copy) <= CDB_MAX:
        raise ValueError(f"a CDB has 1 to {CDB_MAX} bytes, not {len(copy)}")
    memset(command, 0, CDB_MAX)
    memcpy(command, PyBytes_AS_STRING(copy), len(copy))
    return 0


cdef int check_lun(object lun) except -1:
    if not 0 <= lun <= 255:
        raise ValueError(f"a LUN is 0 to 255, not {lun}")
    return 0


cdef object plan_result(const ScsiPlan *plan, bytes data):
    sense = PyBytes_FromStringAndSize(<char *> plan.sense, plan.sense_length)
    return ScsiResult(plan.scsi_status, data, sense, plan.srb_status, plan.data_length)


cdef bytes plan_data(const ScsiPlan *plan):
    return PyBytes_FromStringAndSize(<char *> plan.data, plan.data_length) if plan.data_to_guest else b""


@cython.final
cdef class Target:
    """One SCSI disk over a disk backend: the SCSI engine without a bus.

    image: a hvcore.disk backend; it stays open and the caller's. id: 16 bytes that name the disk (VPD 83), serial: up
    to 64 ASCII characters (VPD 80; "" for none); both default to values derived from the image, so two disks of the
    same kind and size without a path need an id each. max_transfer: most bytes of one request, 0 for no limit.
    strict_alloc: refuse an allocation length beyond the buffer (storvsp.md 5.8) instead of answering what fits.
    discard: offer UNMAP where the image can trim. extensions: offer what no known Hyper-V disk does, too: COMPARE AND
    WRITE, GET LBA STATUS, PRE-FETCH, LOG SENSE, RECEIVE DIAGNOSTIC, REPORT SUPPORTED OPERATION CODES, the control mode
    page, and the promise that discarded blocks read as zeros.

    unit: the LogicalUnit of a disk that several initiators use; each has a Target of its own on it, which takes id and
    serial from there. nexus: 16 bytes that name the initiator to reservations, such as its VM's id; a new Target of the
    same nexus finds its registration again. None: an initiator like no other.

    Calls may run concurrently, but for close(); a unit attention is reported to exactly one of them.
    """

    def __cinit__(self, image, *, id=None, serial=None, uint32_t max_transfer=0, bint strict_alloc=True,
                  bint discard=True, bint extensions=True, LogicalUnit unit=None, nexus=None):
        memset(&self.unit, 0, sizeof(self.unit))
        if not isinstance(image, Backend):
            raise TypeError(f"image must be a hvcore.disk backend, not {type(image).__name__}")
        if unit is None:
            unit = LogicalUnit(image, id=id, serial=serial)
        elif id is not None or serial is not None:
            raise ValueError("id and serial are the logical unit's")
        self.image = image
        self.before = [image]
        self.logical_unit = unit
        self.nexus = os.urandom(16) if nexus is None else bytes(memoryview(nexus))
        if len(self.nexus) != 16:
            raise ValueError(f"nexus has 16 bytes, not {len(self.nexus)}")
        encoded = unit.serial.encode()
        self.unit.disk = &self.image.ref
        memcpy(self.unit.id, PyBytes_AS_STRING(unit.id), 16)
        memcpy(self.unit.serial, PyBytes_AS_STRING(encoded), len(encoded))
        self.unit.serial_length = <uint32_t> len(encoded)
        self.unit.max_transfer = max_transfer
        self.unit.strict_alloc = strict_alloc
        self.unit.discard = discard and self.image.ref.can_trim
        self.unit.extensions = extensions
        memcpy(self.unit.nexus, PyBytes_AS_STRING(self.nexus), 16)
        nexus_attach(&self.unit, &unit.state)

    cdef int check(self) except -1:
        if self.unit.shared == NULL:
            raise ValueError("the target is closed")
        return 0

    def exchange(self, Backend image not None):
        """Goes on with another backend of the same size and kind: a filter before the present one, or that one again.

        Requests that begin afterwards are the new one's; those under way end with the old one, which has to stay open.
        ValueError: it is closed, or another disk.
        """
        cdef DiskRef *old = self.unit.disk
        cdef DiskRef *new = &image.ref
        if new.ops == NULL:
            raise ValueError("the disk is closed")
        if (new.size_bytes != old.size_bytes or new.sector_size != old.sector_size or new.read_only != old.read_only
                or new.can_trim != old.can_trim):
            raise ValueError("the disk to go on with has another size, other sectors, or can do more or less")
        if not any(each is image for each in self.before):
            self.before.append(image)
        # One word, and both disks stay good: a thread that reads it meanwhile has the one or the other. Release:
        # whoever has the new one finds it whole.
        store_release64(<uint64_t *> &self.unit.disk, <uint64_t> new)
        self.image = image

    @property
    def id(self):
        """The 16 bytes of VPD 83."""
        return self.logical_unit.id

    @property
    def serial(self):
        """The characters of VPD 80."""
        return self.logical_unit.serial

    def raise_unit_attention(self, uint8_t asc, uint8_t ascq):
        """The next command but INQUIRY, REPORT LUNS and REQUEST SENSE fails with this, once; 0x2A, 0x09: resized. Of
        several that wait the one with the lower code comes first; 0x29, a reset, is told alone."""
        self.check()
        scsi_attention(&self.unit, (<uint32_t> asc << 8) | ascq)

    def close(self):
        """The initiator is gone: what it holds by RESERVE ends, its persistent registration stays. Idempotent; no call
        may be running. Later calls raise ValueError."""
        if self.unit.shared != NULL:
            nexus_detach(&self.unit)
            self.unit.shared = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        if self.unit.shared != NULL:
            nexus_detach(&self.unit)

    def media_access(self, cdb, uint32_t buffer_length=0, *, bint to_guest=True):
        """The MediaAccess that a CDB with a buffer of this size would ask for; None: it is answered without the medium.

        Nothing is executed, a pending unit attention stays pending.
        """
        cdef uint8_t command[CDB_MAX]
        cdef ScsiUnit unit = self.unit
        cdef UnitState nobody
        cdef ScsiPlan plan
        cdef uint8_t answer[SCSI_DATA_MAX]
        self.check()
        plan.data = answer
        load_cdb(cdb, command)
        # On a unit that nobody else has and no reservation is on.
        memset(&nobody, 0, sizeof(nobody))
        if monitor_init(&nobody.lock):
            raise MemoryError()
        unit.shared = &nobody
        unit.alert = 0
        scsi_plan(&unit, command, buffer_length, to_guest, &plan)
        monitor_destroy(&nobody.lock)
        if plan.action == SCSI_DONE:
            return None
        return MediaAccess(ACTIONS[plan.action], plan.offset, plan.length, bool(plan.fua))

    def execute(self, cdb, data_out=b"", uint32_t allocation=0, *, int disk_status=0):
        """Executes one CDB of 1 to 16 bytes and returns a ScsiResult; blocks without the GIL while the disk works.

        data_out: what the guest sends; allocation: bytes of its buffer for an answer; at most one of them. Whatever the
        CDB says, the result tells: only arguments of the wrong form raise (ValueError, TypeError). disk_status: a
        DiskStatus (negative) to answer with, as if the medium had said so, instead of accessing it.
        """
        cdef uint8_t command[CDB_MAX]
        cdef Py_buffer out
        cdef ScsiPlan plan
        cdef uint8_t answer[SCSI_DATA_MAX]
        cdef iovec vector
        cdef int status = disk_status
        cdef uint8_t data_in
        cdef uint64_t sent
        cdef bytes data = b""
        cdef bytes params
        self.check()
        plan.data = answer
        load_cdb(cdb, command)
        PyObject_GetBuffer(data_out, &out, PyBUF_SIMPLE)
        try:
            sent = out.len
            if sent and allocation:
                raise ValueError("a command moves data one way: data_out or allocation, not both")
            if sent > 0xFFFFFFFFU:
                raise ValueError(f"data_out has {sent} bytes, more than a request can move")
            data_in = 0 if sent else 1 if allocation else 2
            scsi_plan(&self.unit, command, <uint32_t> sent if sent else allocation, data_in, &plan)
            if plan.action == SCSI_PARAMETERS:
                params = PyBytes_FromStringAndSize(<char *> out.buf, plan.data_length)
                scsi_parameters(&self.unit, command, <uint8_t *> PyBytes_AS_STRING(params), plan.data_length, &plan)
            vector.iov_base = out.buf
            vector.iov_len = plan.buffer_length
            if plan.action == SCSI_READ:
                data = PyBytes_FromStringAndSize(NULL, plan.length)
                vector.iov_base = PyBytes_AS_STRING(data)
            if plan.action != SCSI_DONE:
                with nogil:
                    if status == DISK_OK:
                        status = scsi_media(&self.unit, &plan, &vector, 1, 0)
                    scsi_finish(&self.unit, &plan, status)
                if plan.scsi_status != SCSI_GOOD:
                    data = b""
            if plan.data_to_guest:
                data = plan_data(&plan)
        finally:
            PyBuffer_Release(&out)
        return plan_result(&plan, data)


def report_luns(luns, cdb, uint32_t allocation, *, bint strict_alloc=True):
    """What a controller with these LUNs answers to a REPORT LUNS CDB."""
    cdef uint8_t bitmap[32]
    cdef uint8_t command[CDB_MAX]
    cdef ScsiPlan plan
    cdef uint8_t answer[SCSI_DATA_MAX]
    plan.data = answer
    load_cdb(cdb, command)
    memset(bitmap, 0, sizeof(bitmap))
    for lun in luns:
        check_lun(lun)
        bitmap[<int> lun >> 3] |= 1 << (<int> lun & 7)
    scsi_report_luns(bitmap, command, allocation, 1, strict_alloc, &plan)
    return plan_result(&plan, plan_data(&plan))


def absent(cdb, lun, uint32_t allocation=0):
    """What a controller answers to a command for a LUN that it does not have; all but REPORT LUNS."""
    cdef uint8_t command[CDB_MAX]
    cdef ScsiPlan plan
    cdef uint8_t answer[SCSI_DATA_MAX]
    plan.data = answer
    load_cdb(cdb, command)
    check_lun(lun)
    scsi_absent(command, lun, allocation, 1 if allocation else 2, &plan)
    return plan_result(&plan, plan_data(&plan))
