"""The answers that every part of the SCSI engine gives."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from hvcore.scsi.sense cimport SENSE_BYTES, sense_fixed
from hvcore.scsi.srb cimport SCSI_CHECK_CONDITION


cdef void scsi_refuse(ScsiPlan *plan, uint8_t srb_status, uint8_t scsi_status) noexcept nogil:
    plan_begin(plan)
    plan.srb_status = srb_status
    plan.scsi_status = scsi_status


cdef void scsi_fail(ScsiPlan *plan, uint8_t srb_status, uint8_t key, uint16_t asc) noexcept nogil:
    plan_begin(plan)
    plan.srb_status = srb_status
    plan.scsi_status = SCSI_CHECK_CONDITION
    plan.sense_length = SENSE_BYTES
    sense_fixed(plan.sense, key, asc)


cdef void answer_data(ScsiPlan *plan, uint32_t available, uint32_t allocation, uint32_t buffer_length,
                      uint8_t data_in) noexcept nogil:
    cdef uint32_t n = available if available < allocation else allocation
    if n > buffer_length:
        n = buffer_length
    if n and data_in == 0:
        reject_field(plan)
        return
    plan.data_to_guest = True
    plan.data_length = n


cdef void plan_parameters(uint32_t length, uint32_t buffer_length, uint8_t data_in, uint32_t mismatch,
                          ScsiPlan *plan) noexcept nogil:
    if length == 0:
        return
    if length != buffer_length:
        reject(plan, mismatch)
        return
    if data_in != 0:
        reject_field(plan)
        return
    plan.action = SCSI_PARAMETERS
    plan.buffer_length = length
    plan.data_length = length
