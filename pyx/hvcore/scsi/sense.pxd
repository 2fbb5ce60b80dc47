# Sense data, fixed format (storvsp.md 6): keys, ASC << 8 | ASCQ, encoding.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from hvcore.scsi.cdb cimport put_be16, put_be32

cdef enum:
    KEY_NO_SENSE = 0x0
    KEY_NOT_READY = 0x2
    KEY_MEDIUM_ERROR = 0x3
    KEY_ILLEGAL_REQUEST = 0x5
    KEY_UNIT_ATTENTION = 0x6
    KEY_DATA_PROTECT = 0x7
    KEY_ABORTED_COMMAND = 0xB
    KEY_MISCOMPARE = 0xE

cdef enum:
    ASC_NONE = 0x0000
    ASC_WRITE_FAULT = 0x0300
    ASC_UNRECOVERED_READ = 0x1100
    ASC_PARAMETER_LIST_LENGTH = 0x1A00
    ASC_MISCOMPARE = 0x1D00
    ASC_INVALID_OPCODE = 0x2000
    ASC_LBA_OUT_OF_RANGE = 0x2100
    ASC_INVALID_FIELD_IN_CDB = 0x2400
    ASC_INVALID_FIELD_IN_LIST = 0x2600
    ASC_INVALID_RELEASE = 0x2604
    ASC_WRITE_PROTECTED = 0x2700
    ASC_SPACE_ALLOCATION_FAILED = 0x2707
    ASC_RESET = 0x2900
    ASC_MODE_PARAMETERS_CHANGED = 0x2A01
    ASC_RESERVATIONS_PREEMPTED = 0x2A03
    ASC_RESERVATIONS_RELEASED = 0x2A04
    ASC_REGISTRATIONS_PREEMPTED = 0x2A05
    ASC_CAPACITY_CHANGED = 0x2A09
    ASC_SAVING_NOT_SUPPORTED = 0x3900
    ASC_NO_ROOM_FOR_REGISTRATION = 0x5504

cdef enum:
    SENSE_BYTES = 18             # the fixed format; the field on the wire has 20


cdef inline void sense_fixed(uint8_t *sense, uint8_t key, uint32_t asc) noexcept nogil:
    """Writes all 20 bytes of the field."""
    memset(sense, 0, 20)
    sense[0] = 0x70
    sense[2] = key
    sense[7] = 0x0A
    put_be16(sense + 12, asc)


cdef inline void sense_information(uint8_t *sense, uint32_t lba) noexcept nogil:
    """The first bad LBA."""
    sense[0] |= 0x80
    put_be32(sense + 3, lba)
