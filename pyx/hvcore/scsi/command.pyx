"""Which part of the engine answers a command, for the SCSI target."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from hvcore.scsi.capacity cimport plan_lba_status, plan_read_capacity10, plan_read_capacity16, scsi_report_luns
from hvcore.scsi.cdb cimport *
from hvcore.scsi.diagnostic cimport plan_log_sense, plan_receive_diagnostic, plan_send_diagnostic
from hvcore.scsi.inquiry cimport plan_inquiry
from hvcore.scsi.mode cimport plan_mode_select, plan_mode_sense
from hvcore.scsi.opcodes cimport plan_maintenance_in
from hvcore.scsi.plan cimport FAILED, ScsiPlan, answer_data, reject, reject_field, reject_write, scsi_fail
from hvcore.scsi.reservation cimport (
    plan_conflict, plan_persistent_in, plan_persistent_out, plan_release, plan_reserve)
from hvcore.scsi.sense cimport *
from hvcore.scsi.transfer cimport (
    plan_compare_write, plan_pre_fetch, plan_start_stop, plan_synchronize, plan_verify, plan_write_verify)
from hvcore.scsi.unit cimport ALERT_ATTENTION, ScsiUnit, attention_take, unit_protected
from hvcore.scsi.unmap cimport plan_unmap, plan_write_same


cdef void plan_request_sense(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                             ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = cdb[4]
    cdef uint32_t attention
    # descriptor-format sense does not exist here (6)
    if cdb[1] & 1 or (unit.strict_alloc and (allocation < 8 or allocation > buffer_length)):
        reject_field(plan)
        return
    sense_fixed(plan.data, KEY_NO_SENSE, ASC_NONE)
    answer_data(plan, SENSE_BYTES, allocation, buffer_length, data_in)
    if plan.data_length == 0:
        return
    attention = attention_take(unit)
    if attention:
        sense_fixed(plan.data, KEY_UNIT_ATTENTION, attention)


cdef bint plan_alert(ScsiUnit *unit, const uint8_t *cdb, uint32_t alert, ScsiPlan *plan) noexcept nogil:
    cdef uint8_t op = cdb[0]
    cdef uint32_t attention
    if alert & ALERT_ATTENTION and op != CDB_INQUIRY and op != CDB_REPORT_LUNS and op != CDB_REQUEST_SENSE:
        attention = attention_take(unit)     # 0: another command has taken it
        if attention:
            scsi_fail(plan, FAILED, KEY_UNIT_ATTENTION, <uint16_t> attention)
            return True
    return plan_conflict(cdb, alert, plan)


cdef void plan_service_action(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                              ScsiPlan *plan) noexcept nogil:
    cdef uint8_t action = cdb[1] & 0x1F
    if action == SERVICE_READ_CAPACITY16:
        plan_read_capacity16(unit, cdb, buffer_length, data_in, plan)
    elif action == SERVICE_GET_LBA_STATUS and unit.extensions:
        plan_lba_status(unit, cdb, buffer_length, data_in, plan)
    else:                                    # as OpenVMM says (9.4)
        reject(plan, ASC_INVALID_FIELD_IN_CDB if unit.extensions else ASC_INVALID_OPCODE)


cdef void plan_extension(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                         ScsiPlan *plan) noexcept nogil:
    """Commands that no known Hyper-V disk has."""
    cdef uint8_t op = cdb[0]
    if not unit.extensions:
        reject(plan, ASC_INVALID_OPCODE)
    elif op == CDB_COMPARE_AND_WRITE:
        plan_compare_write(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_PRE_FETCH10:
        plan_pre_fetch(unit, be32(cdb + 2), be16(cdb + 7), plan)
    elif op == CDB_PRE_FETCH16:
        plan_pre_fetch(unit, be64(cdb + 2), be32(cdb + 10), plan)
    elif op == CDB_LOG_SENSE:
        plan_log_sense(unit, cdb, buffer_length, data_in, plan)
    else:
        plan_receive_diagnostic(unit, cdb, buffer_length, data_in, plan)


cdef void plan_other(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                     ScsiPlan *plan) noexcept nogil:
    cdef uint8_t op = cdb[0]
    cdef uint8_t lun_zero[32]
    if op == CDB_SYNCHRONIZE_CACHE10:
        plan_synchronize(unit, be32(cdb + 2), be16(cdb + 7), plan)
    elif op == CDB_SYNCHRONIZE_CACHE16:
        plan_synchronize(unit, be64(cdb + 2), be32(cdb + 10), plan)
    elif op == CDB_UNMAP:
        plan_unmap(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_WRITE_SAME10:
        plan_write_same(unit, cdb[1], False, be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_WRITE_SAME16:
        plan_write_same(unit, cdb[1], True, be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_WRITE_VERIFY10:
        plan_write_verify(unit, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_WRITE_VERIFY12:
        plan_write_verify(unit, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_WRITE_VERIFY16:
        plan_write_verify(unit, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_VERIFY10:
        plan_verify(unit, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_VERIFY12:
        plan_verify(unit, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_VERIFY16:
        plan_verify(unit, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_INQUIRY:
        plan_inquiry(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_REQUEST_SENSE:
        plan_request_sense(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_REPORT_LUNS:
        memset(lun_zero, 0, sizeof(lun_zero))
        lun_zero[0] = 1
        scsi_report_luns(lun_zero, cdb, buffer_length, data_in, unit.strict_alloc, plan)
    elif op == CDB_READ_CAPACITY10:
        plan_read_capacity10(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_SERVICE_ACTION_IN16:
        plan_service_action(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_MODE_SENSE6 or op == CDB_MODE_SENSE10:
        plan_mode_sense(unit, cdb, op == CDB_MODE_SENSE10, buffer_length, data_in, plan)
    elif op == CDB_MODE_SELECT6 or op == CDB_MODE_SELECT10:
        plan_mode_select(cdb, op == CDB_MODE_SELECT10, buffer_length, data_in, plan)
    elif op == CDB_START_STOP_UNIT:
        plan_start_stop(unit, cdb, plan)
    elif op == CDB_FORMAT_UNIT:              # GOOD, no effect (9.7)
        if unit_protected(unit):
            reject_write(plan)
    elif op == CDB_SEND_DIAGNOSTIC:
        plan_send_diagnostic(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_RESERVE6 or op == CDB_RESERVE10:
        plan_reserve(unit, cdb, plan)
    elif op == CDB_RELEASE6 or op == CDB_RELEASE10:
        plan_release(unit, plan)
    elif op == CDB_PERSISTENT_RESERVE_IN:
        plan_persistent_in(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_PERSISTENT_RESERVE_OUT:
        plan_persistent_out(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_MAINTENANCE_IN:
        plan_maintenance_in(unit, cdb, buffer_length, data_in, plan)
    elif (op == CDB_COMPARE_AND_WRITE or op == CDB_PRE_FETCH10 or op == CDB_PRE_FETCH16 or op == CDB_LOG_SENSE
            or op == CDB_RECEIVE_DIAGNOSTIC):
        plan_extension(unit, cdb, buffer_length, data_in, plan)
    elif op != CDB_TEST_UNIT_READY and op != CDB_PREVENT_ALLOW:     # which are GOOD, no effect (9.7)
        reject(plan, ASC_INVALID_OPCODE)
