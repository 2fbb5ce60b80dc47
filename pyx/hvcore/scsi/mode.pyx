"""MODE SENSE and MODE SELECT, for the SCSI target."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from hvcore.linux.atomics cimport load_relaxed32
from hvcore.scsi.cdb cimport be16, put_be16
from hvcore.scsi.plan cimport ScsiPlan, answer_data, plan_parameters, reject, reject_field
from hvcore.scsi.sense cimport ASC_INVALID_FIELD_IN_LIST, ASC_PARAMETER_LIST_LENGTH, ASC_SAVING_NOT_SUPPORTED
from hvcore.scsi.unit cimport ALERT_PROTECTED, ScsiUnit, too_much, unit_disk, unit_protect, unit_protected

cdef enum:
    MODE_CHANGEABLE = 1          # page control
    MODE_SAVED = 3
    CACHING_PAGE = 0x08
    CONTROL_PAGE = 0x0A
    ALL_PAGES = 0x3F
    PAGE_BYTES = 12              # of either page, its two header bytes included
    PAGE_SAVEABLE = 0x80
    WRITE_PROTECT = 0x80         # device-specific parameter
    DPOFUA = 0x10
    WCE = 0x04                   # caching page, byte 2
    GLTSD = 0x02                 # control page, byte 2: no log pages are saved
    REORDERING = 0x10            # byte 3: unrestricted
    SWP = 0x08                   # byte 4: software write protection
    TAS = 0x40                   # byte 5: aborted commands are answered, with TASK ABORTED


cdef inline uint32_t mode_header(bint ten) noexcept nogil:
    """Bytes of the header of the (10) or the (6) form."""
    return 8 if ten else 4


cdef bint mode_page(const ScsiUnit *unit, uint8_t number, uint8_t control, uint8_t *page) noexcept nogil:
    """PAGE_BYTES of one page; False: there is none of this number."""
    cdef bint values = control != MODE_CHANGEABLE
    memset(page, 0, PAGE_BYTES)
    page[0] = number
    page[1] = PAGE_BYTES - 2
    if number == CACHING_PAGE:
        if values and not unit_disk(unit).read_only:
            page[2] = WCE
        return True
    if number != CONTROL_PAGE or not unit.extensions:
        return False
    if values:
        page[2] = GLTSD
        page[3] = REORDERING
        page[5] = TAS
    if control == MODE_CHANGEABLE or (control == 0 and load_relaxed32(&unit.alert) & ALERT_PROTECTED):
        page[4] = SWP
    return True


cdef void plan_mode_sense(const ScsiUnit *unit, const uint8_t *cdb, bint ten, uint32_t buffer_length, uint8_t data_in,
                          ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = be16(cdb + 7) if ten else cdb[4]
    cdef uint32_t header = mode_header(ten), length = header
    cdef uint8_t control = cdb[2] >> 6, number = cdb[2] & 0x3F, subpage = cdb[3]
    cdef uint8_t device = DPOFUA | (WRITE_PROTECT if unit_protected(unit) else 0)
    if number == ALL_PAGES and (subpage == 0 or subpage == 0xFF):
        length += PAGE_BYTES if mode_page(unit, CACHING_PAGE, control, plan.data + length) else 0
        length += PAGE_BYTES if mode_page(unit, CONTROL_PAGE, control, plan.data + length) else 0
    elif subpage == 0:
        length += PAGE_BYTES if mode_page(unit, number, control, plan.data + length) else 0
    if length == header:
        reject_field(plan)
        return
    if control == MODE_SAVED:
        reject(plan, ASC_SAVING_NOT_SUPPORTED)
        return
    # without a buffer: GOOD, nothing moved (5.8)
    if buffer_length and (
            too_much(unit, allocation, buffer_length) or (unit.strict_alloc and 0 < allocation < header)):
        reject_field(plan)
        return
    memset(plan.data, 0, header)
    if ten:
        put_be16(plan.data, length - 2)
        plan.data[3] = device
    else:
        plan.data[0] = <uint8_t> (length - 1)
        plan.data[2] = device
    answer_data(plan, length, allocation, buffer_length, data_in)


cdef void plan_mode_select(const uint8_t *cdb, bint ten, uint32_t buffer_length, uint8_t data_in,
                           ScsiPlan *plan) noexcept nogil:
    cdef uint32_t length = be16(cdb + 7) if ten else cdb[4]
    # SP: there is nowhere to save pages to. Without PF the pages would be of no known format.
    if cdb[1] & 1 or (cdb[1] & 0x10 == 0 and length > mode_header(ten)):
        reject_field(plan)
        return
    plan_parameters(length, buffer_length, data_in, ASC_PARAMETER_LIST_LENGTH, plan)


cdef uint32_t check_page(const ScsiUnit *unit, const uint8_t *page, uint32_t left, uint32_t *control) noexcept nogil:
    """The ASC << 8 | ASCQ to fail with, or 0 when the page changes nothing but SWP. control: byte 4 of the control
    page."""
    cdef uint8_t current[PAGE_BYTES]
    cdef uint8_t changeable[PAGE_BYTES]
    cdef int i
    cdef uint8_t number = page[0] & <uint8_t> ~PAGE_SAVEABLE
    if not mode_page(unit, number, 0, current) or page[1] != PAGE_BYTES - 2:
        return ASC_INVALID_FIELD_IN_LIST
    if left < PAGE_BYTES:
        return ASC_PARAMETER_LIST_LENGTH
    mode_page(unit, number, MODE_CHANGEABLE, changeable)
    for i in range(2, PAGE_BYTES):
        if (page[i] ^ current[i]) & ~changeable[i]:
            return ASC_INVALID_FIELD_IN_LIST
    if number == CONTROL_PAGE:
        control[0] = page[4]
    return 0


cdef void mode_parameters(ScsiUnit *unit, bint ten, const uint8_t *list, uint32_t length,
                          ScsiPlan *plan) noexcept nogil:
    cdef uint32_t position = mode_header(ten), asc = 0, control = 0xFFFF
    if length < position:
        reject(plan, ASC_PARAMETER_LIST_LENGTH)
        return
    if (be16(list + 6) if ten else list[3]) != 0:        # block descriptors: there are none
        reject(plan, ASC_INVALID_FIELD_IN_LIST)
        return
    # All pages are checked before one is acted on.
    while position < length and asc == 0:
        if length - position < 2:
            asc = ASC_PARAMETER_LIST_LENGTH
        else:
            asc = check_page(unit, list + position, length - position, &control)
        position += PAGE_BYTES
    if asc:
        reject(plan, asc)
    elif control != 0xFFFF:
        unit_protect(unit, control & SWP != 0)
