# CDBs (storvsp.md 9.1): operation codes, and the big-endian integers of SCSI data.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    CDB_TEST_UNIT_READY = 0x00
    CDB_REQUEST_SENSE = 0x03
    CDB_FORMAT_UNIT = 0x04
    CDB_READ6 = 0x08
    CDB_WRITE6 = 0x0A
    CDB_INQUIRY = 0x12
    CDB_MODE_SELECT6 = 0x15
    CDB_RESERVE6 = 0x16
    CDB_RELEASE6 = 0x17
    CDB_MODE_SENSE6 = 0x1A
    CDB_START_STOP_UNIT = 0x1B
    CDB_RECEIVE_DIAGNOSTIC = 0x1C
    CDB_SEND_DIAGNOSTIC = 0x1D
    CDB_PREVENT_ALLOW = 0x1E
    CDB_READ_CAPACITY10 = 0x25
    CDB_READ10 = 0x28
    CDB_WRITE10 = 0x2A
    CDB_WRITE_VERIFY10 = 0x2E
    CDB_VERIFY10 = 0x2F
    CDB_PRE_FETCH10 = 0x34
    CDB_SYNCHRONIZE_CACHE10 = 0x35
    CDB_WRITE_SAME10 = 0x41
    CDB_UNMAP = 0x42
    CDB_LOG_SENSE = 0x4D
    CDB_MODE_SELECT10 = 0x55
    CDB_RESERVE10 = 0x56
    CDB_RELEASE10 = 0x57
    CDB_MODE_SENSE10 = 0x5A
    CDB_PERSISTENT_RESERVE_IN = 0x5E
    CDB_PERSISTENT_RESERVE_OUT = 0x5F
    CDB_READ16 = 0x88
    CDB_COMPARE_AND_WRITE = 0x89
    CDB_WRITE16 = 0x8A
    CDB_WRITE_VERIFY16 = 0x8E
    CDB_VERIFY16 = 0x8F
    CDB_PRE_FETCH16 = 0x90
    CDB_SYNCHRONIZE_CACHE16 = 0x91
    CDB_WRITE_SAME16 = 0x93
    CDB_SERVICE_ACTION_IN16 = 0x9E
    CDB_REPORT_LUNS = 0xA0
    CDB_MAINTENANCE_IN = 0xA3
    CDB_READ12 = 0xA8
    CDB_WRITE12 = 0xAA
    CDB_WRITE_VERIFY12 = 0xAE
    CDB_VERIFY12 = 0xAF

cdef enum:
    CDB_MAX = 16

cdef enum:                       # service actions: bits 4:0 of byte 1
    SERVICE_READ_CAPACITY16 = 0x10
    SERVICE_GET_LBA_STATUS = 0x12
    SERVICE_REPORT_OPCODES = 0x0C
    SERVICE_REPORT_FUNCTIONS = 0x0D

cdef enum:                       # of PERSISTENT RESERVE IN and OUT (9.11)
    IN_READ_KEYS = 0
    IN_READ_RESERVATION = 1
    IN_REPORT_CAPABILITIES = 2
    IN_READ_FULL_STATUS = 3
    OUT_REGISTER = 0
    OUT_RESERVE = 1
    OUT_RELEASE = 2
    OUT_CLEAR = 3
    OUT_PREEMPT = 4
    OUT_PREEMPT_AND_ABORT = 5
    OUT_REGISTER_AND_IGNORE = 6
    OUT_REGISTER_AND_MOVE = 7


cdef inline uint32_t be16(const uint8_t *p) noexcept nogil:
    return (<uint32_t> p[0] << 8) | p[1]


cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16) | (<uint32_t> p[2] << 8) | p[3]


cdef inline uint64_t be64(const uint8_t *p) noexcept nogil:
    return (<uint64_t> be32(p) << 32) | be32(p + 4)


cdef inline void put_be16(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t> (value >> 8)
    p[1] = <uint8_t> value


cdef inline void put_be32(uint8_t *p, uint32_t value) noexcept nogil:
    put_be16(p, value >> 16)
    put_be16(p + 2, value)


cdef inline void put_be64(uint8_t *p, uint64_t value) noexcept nogil:
    put_be32(p, <uint32_t> (value >> 32))
    put_be32(p + 4, <uint32_t> value)
