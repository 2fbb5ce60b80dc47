# A logical unit that several initiators may use: what they share, and what each of them (a nexus) has of its own.
#
# All of it changes under the unit's lock, which is held for a few memory accesses and never over the medium. The data
# path takes it for commands about reservations alone: for all others ScsiUnit.alert, one word of the nexus, says that
# nothing stands in their way.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.ops cimport Backend, DiskRef
from hvcore.linux.atomics cimport load_acquire64, load_relaxed32, load_relaxed64
from hvcore.linux.threads cimport Monitor

cdef extern from *:
    int trailing_zeros "__builtin_ctz"(unsigned int value) noexcept nogil

cdef enum:
    REGISTRATIONS = 64           # nexuses that can be registered with one unit
    ATTENTIONS = 8               # unit attentions that wait for one nexus

cdef enum UnitAlert:
    ALERT_ATTENTION = 1          # a unit attention waits
    ALERT_NO_READ = 2            # another's persistent reservation forbids reading the medium, ...
    ALERT_NO_WRITE = 4           # ... or changing it
    ALERT_RESERVED = 8           # another holds it by RESERVE
    ALERT_PROTECTED = 16         # write-protected by MODE SELECT (SWP)

cdef enum ReservationType:       # storvsp.md 9.11
    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_REGISTRANTS = 6
    WRITE_EXCLUSIVE_ALL = 7
    EXCLUSIVE_ACCESS_ALL = 8

ctypedef struct Registration:
    uint8_t nexus[16]
    uint64_t key

ctypedef struct ScsiUnit

ctypedef struct UnitState:
    Monitor lock
    Monitor comparing            # held over a whole COMPARE AND WRITE, media access included
    ScsiUnit *nexuses
    uint32_t generation          # of the registrations
    uint32_t registered
    Registration registrations[64]
    uint8_t type                 # ReservationType of the persistent reservation, 0: none
    uint8_t holder[16]           # its nexus, for types 1 to 6
    bint reserved                # by RESERVE
    uint8_t reserver[16]
    bint write_protected

ctypedef struct ScsiUnit:
    DiskRef *disk                # read by unit_disk(). Its size may grow: read it once per command, by unit_blocks()
    UnitState *shared
    uint32_t max_transfer        # bytes of one request; 0: no limit
    bint strict_alloc            # storvsp.md 5.8
    bint discard                 # UNMAP is offered: the disk can trim
    bint extensions              # what no known Hyper-V disk has is offered as well
    uint32_t alert               # UnitAlert bits; written under the lock, read at any time
    uint32_t epoch               # grows when the nexus' commands are aborted: those planned before do not begin
    uint8_t nexus[16]
    ScsiUnit *next               # of the unit's nexuses
    uint32_t attentions[8]       # ASC << 8 | ASCQ, the most important first
    uint32_t attention_count
    uint8_t id[16]               # of VPD 83
    uint8_t serial[64]           # ASCII; serial_length 0: no VPD 80
    uint32_t serial_length

# With the lock held.
cdef void attention_add(ScsiUnit *unit, uint32_t asc) noexcept nogil
# To all nexuses but this one (NULL: to all).
cdef void attention_others(UnitState *shared, const ScsiUnit *but, uint32_t asc) noexcept nogil
# After every change of a reservation: what it means for each nexus.
cdef void unit_judge(UnitState *shared) noexcept nogil

# Without the lock.
# Adds a unit attention (section 11) for this nexus.
cdef void scsi_attention(ScsiUnit *unit, uint32_t asc) noexcept nogil
# Takes the most important one, 0: none. Each is taken once.
cdef uint32_t attention_take(ScsiUnit *unit) noexcept nogil
cdef void nexus_attach(ScsiUnit *unit, UnitState *shared) noexcept nogil
# The nexus is lost: what it holds by RESERVE ends, its registration stays.
cdef void nexus_detach(ScsiUnit *unit) noexcept nogil
# A reset of the unit: what is held by RESERVE ends, persistent reservations stay; no unit attention (section 12).
cdef void scsi_reset(ScsiUnit *unit) noexcept nogil
cdef void unit_protect(ScsiUnit *unit, bint write_protected) noexcept nogil


cdef inline uint64_t unit_blocks(const DiskRef *disk) noexcept nogil:
    """Its blocks now. The size may change at any time: one value per command."""
    return load_relaxed64(&disk.size_bytes) >> trailing_zeros(disk.sector_size)


cdef inline bint outside(const DiskRef *disk, uint64_t lba, uint64_t blocks) noexcept nogil:
    """Compared by subtraction: lba + blocks could wrap."""
    cdef uint64_t capacity = unit_blocks(disk)
    return lba >= capacity or capacity - lba < blocks


cdef inline bint too_much(const ScsiUnit *unit, uint32_t allocation, uint32_t buffer_length) noexcept nogil:
    """Whether an allocation length is to be refused because the buffer is smaller (5.8)."""
    return unit.strict_alloc and allocation > buffer_length


cdef inline DiskRef *unit_disk(const ScsiUnit *unit) noexcept nogil:
    """The disk now: a rule in front of it may come or go meanwhile. Acquire: who has it finds it whole."""
    return <DiskRef *> load_acquire64(<const uint64_t *> &unit.disk)


cdef inline bint unit_protected(const ScsiUnit *unit) noexcept nogil:
    return unit_disk(unit).read_only or load_relaxed32(&unit.alert) & ALERT_PROTECTED != 0


cdef class LogicalUnit:
    cdef UnitState state
    cdef readonly Backend image  # kept alive
    cdef readonly bytes id
    cdef readonly str serial
