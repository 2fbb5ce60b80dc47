"""SEND and RECEIVE DIAGNOSTIC, LOG SENSE, for the SCSI target.

No page but the lists of pages: counters of errors, of temperatures or of starts would be made up.
"""

from libc.stdint cimport uint8_t, uint32_t

from hvcore.scsi.cdb cimport be16, put_be32
from hvcore.scsi.plan cimport ScsiPlan, answer_data, plan_parameters, reject, reject_field
from hvcore.scsi.sense cimport ASC_INVALID_FIELD_IN_LIST, ASC_PARAMETER_LIST_LENGTH
from hvcore.scsi.unit cimport ScsiUnit, too_much

cdef enum:
    SELF_TEST_CODE = 0xE0        # SEND DIAGNOSTIC, byte 1
    PAGE_FORMAT = 0x10
    PAGE_CODE_VALID = 0x01       # RECEIVE DIAGNOSTIC, byte 1
    SAVE_PARAMETERS = 0x01       # LOG SENSE, byte 1
    ALL_SUBPAGES = 0xFF


cdef void plan_send_diagnostic(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil:
    cdef uint32_t length = be16(cdb + 3)
    # The default self-test alone: it finds nothing. A list is in the format of pages.
    if cdb[1] & SELF_TEST_CODE:
        reject_field(plan)
    elif (cdb[1] & PAGE_FORMAT or length) and (not unit.extensions or cdb[1] & PAGE_FORMAT == 0):
        reject_field(plan)
    else:
        plan_parameters(length, buffer_length, data_in, ASC_PARAMETER_LIST_LENGTH, plan)


cdef void diagnostic_parameters(const uint8_t *list, uint32_t length, ScsiPlan *plan) noexcept nogil:
    if length < 4 or length != 4 + be16(list + 2):
        reject(plan, ASC_PARAMETER_LIST_LENGTH)
    elif list[0] != 0 or length != 4:
        reject(plan, ASC_INVALID_FIELD_IN_LIST)


cdef void plan_receive_diagnostic(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                                  ScsiPlan *plan) noexcept nogil:
    """Without PCV the page that SEND DIAGNOSTIC asked for, which can be no other."""
    if (cdb[1] & PAGE_CODE_VALID and cdb[2] != 0) or too_much(unit, be16(cdb + 3), buffer_length):
        reject_field(plan)
        return
    put_be32(plan.data, 0x00000001)
    plan.data[4] = 0x00
    answer_data(plan, 5, be16(cdb + 3), buffer_length, data_in)


cdef void plan_log_sense(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                         ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = be16(cdb + 7), length = 5
    # The lists have no parameters: none to save, none to begin at.
    if (cdb[1] & SAVE_PARAMETERS or be16(cdb + 5) != 0 or cdb[2] & 0x3F != 0
            or (cdb[3] != 0 and cdb[3] != ALL_SUBPAGES) or too_much(unit, allocation, buffer_length)):
        reject_field(plan)
        return
    if cdb[3] == ALL_SUBPAGES:               # SPF, page 00 subpage FF: pairs of page and subpage
        put_be32(plan.data, 0x40FF0004)
        put_be32(plan.data + 4, 0x000000FF)
        length = 8
    else:
        put_be32(plan.data, 0x00000001)
        plan.data[4] = 0x00
    answer_data(plan, length, allocation, buffer_length, data_in)
