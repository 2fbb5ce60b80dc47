"""Reservations, for the SCSI target. All changes are made at once, under the unit's lock."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from hvcore.linux.atomics cimport fetch_add32
from hvcore.linux.threads cimport monitor_lock, monitor_unlock
from hvcore.scsi.cdb cimport *
from hvcore.scsi.plan cimport (
    ScsiPlan, answer_data, plan_parameters, reject, reject_field, scsi_refuse)
from hvcore.scsi.sense cimport (
    ASC_INVALID_FIELD_IN_LIST, ASC_INVALID_RELEASE, ASC_NO_ROOM_FOR_REGISTRATION, ASC_PARAMETER_LIST_LENGTH,
    ASC_REGISTRATIONS_PREEMPTED, ASC_RESERVATIONS_PREEMPTED, ASC_RESERVATIONS_RELEASED)
from hvcore.scsi.srb cimport SCSI_RESERVATION_CONFLICT, SRB_ERROR
from hvcore.scsi.unit cimport (
    ALERT_NO_READ, ALERT_NO_WRITE, ALERT_RESERVED, EXCLUSIVE_ACCESS, EXCLUSIVE_ACCESS_ALL,
    EXCLUSIVE_ACCESS_REGISTRANTS, REGISTRATIONS, WRITE_EXCLUSIVE, WRITE_EXCLUSIVE_ALL, WRITE_EXCLUSIVE_REGISTRANTS,
    Registration, ScsiUnit, UnitState, attention_add, too_much, unit_judge)

cdef enum Access:
    ACCESS_FREE                  # never conflicts
    ACCESS_INNOCENT              # conflicts with RESERVE alone
    ACCESS_READ
    ACCESS_WRITE

cdef enum:
    THIRD_PARTY = 0x10           # RESERVE, byte 1
    LIST_BYTES = 24              # of PERSISTENT RESERVE OUT; REGISTER AND MOVE adds a transport id
    # The nexus in the form of an SRP initiator port, the only one that is 16 bytes: format 0, protocol 4.
    TRANSPORT_BYTES = 24
    TRANSPORT_SRP = 0x04
    PORT = 1                     # relative identifier of the only target port
    LIST_APTPL = 1               # byte 20: keep through a loss of power
    LIST_ALL_PORTS = 4
    LIST_SPECIFY = 8             # SPEC_I_PT
    MOVE_APTPL = 1               # byte 17 of REGISTER AND MOVE's list
    MOVE_UNREGISTER = 2
    STATUS_BYTES = 24            # of a full status descriptor, before the transport id
    STATUS_HOLDER = 1            # its byte 12
    SUPPORTED_TYPES = 0xEA01     # mask of REPORT CAPABILITIES
    TYPES_VALID = 0x80           # TMV


cdef Access cdb_access(const uint8_t *cdb) noexcept nogil:
    """What of a command conflicts with reservations: the tables of SPC and SBC."""
    cdef uint8_t op = cdb[0]
    if op in (CDB_READ6, CDB_READ10, CDB_READ12, CDB_READ16, CDB_VERIFY10, CDB_VERIFY12, CDB_VERIFY16,
              CDB_PRE_FETCH10, CDB_PRE_FETCH16, CDB_RECEIVE_DIAGNOSTIC):
        return ACCESS_READ
    if op in (CDB_WRITE6, CDB_WRITE10, CDB_WRITE12, CDB_WRITE16, CDB_WRITE_VERIFY10, CDB_WRITE_VERIFY12,
              CDB_WRITE_VERIFY16, CDB_WRITE_SAME10, CDB_WRITE_SAME16, CDB_COMPARE_AND_WRITE, CDB_UNMAP,
              CDB_SYNCHRONIZE_CACHE10, CDB_SYNCHRONIZE_CACHE16, CDB_FORMAT_UNIT, CDB_MODE_SELECT6, CDB_MODE_SELECT10,
              CDB_SEND_DIAGNOSTIC):
        return ACCESS_WRITE
    if op in (CDB_INQUIRY, CDB_REQUEST_SENSE, CDB_REPORT_LUNS, CDB_LOG_SENSE, CDB_RELEASE6, CDB_RELEASE10,
              CDB_MAINTENANCE_IN):
        return ACCESS_FREE
    if op == CDB_SERVICE_ACTION_IN16:
        return ACCESS_READ if cdb[1] & 0x1F == SERVICE_GET_LBA_STATUS else ACCESS_INNOCENT
    if op == CDB_START_STOP_UNIT:
        return ACCESS_INNOCENT if cdb[4] & 1 and cdb[4] >> 4 == 0 else ACCESS_WRITE
    if op == CDB_PREVENT_ALLOW:
        return ACCESS_WRITE if cdb[4] & 3 else ACCESS_FREE
    # MODE SENSE is among them: a Linux guest takes whatever comes back from it for data (5.9).
    return ACCESS_INNOCENT


cdef inline void conflict(ScsiPlan *plan) noexcept nogil:
    scsi_refuse(plan, SRB_ERROR, SCSI_RESERVATION_CONFLICT)


cdef bint plan_conflict(const uint8_t *cdb, uint32_t alert, ScsiPlan *plan) noexcept nogil:
    cdef Access access = cdb_access(cdb)
    if ((alert & ALERT_RESERVED and access != ACCESS_FREE) or (alert & ALERT_NO_READ and access == ACCESS_READ)
            or (alert & ALERT_NO_WRITE and access == ACCESS_WRITE)):
        conflict(plan)
        return True
    return False


# RESERVE and RELEASE, which persistent reservations exclude and are excluded by.

cdef void plan_reserve(ScsiUnit *unit, const uint8_t *cdb, ScsiPlan *plan) noexcept nogil:
    cdef UnitState *shared = unit.shared
    if cdb[1] & THIRD_PARTY:
        reject_field(plan)
        return
    monitor_lock(&shared.lock)
    if shared.registered or (shared.reserved and memcmp(shared.reserver, unit.nexus, 16) != 0):
        conflict(plan)
    elif not shared.reserved:
        shared.reserved = True
        memcpy(shared.reserver, unit.nexus, 16)
        unit_judge(shared)
    monitor_unlock(&shared.lock)


cdef void plan_release(ScsiUnit *unit, ScsiPlan *plan) noexcept nogil:
    cdef UnitState *shared = unit.shared
    monitor_lock(&shared.lock)
    if shared.registered:
        conflict(plan)
    elif shared.reserved and memcmp(shared.reserver, unit.nexus, 16) == 0:
        shared.reserved = False
        unit_judge(shared)
    monitor_unlock(&shared.lock)


# PERSISTENT RESERVE IN.

cdef inline bint of_all(const UnitState *shared) noexcept nogil:
    """All registrants hold the reservation."""
    return shared.type >= WRITE_EXCLUSIVE_ALL


cdef inline bint of_registrants(uint8_t kind) noexcept nogil:
    """Registrants share in what the holder may."""
    return kind >= WRITE_EXCLUSIVE_REGISTRANTS


cdef Registration *find(UnitState *shared, const uint8_t *nexus) noexcept nogil:
    cdef uint32_t i
    for i in range(shared.registered):
        if memcmp(shared.registrations[i].nexus, nexus, 16) == 0:
            return &shared.registrations[i]
    return NULL


cdef inline bint holds(const UnitState *shared, const Registration *one) noexcept nogil:
    return shared.type != 0 and (of_all(shared) or memcmp(shared.holder, one.nexus, 16) == 0)


cdef uint32_t read_keys(UnitState *shared, uint8_t *data) noexcept nogil:
    cdef uint32_t i
    put_be32(data + 4, 8 * shared.registered)
    for i in range(shared.registered):
        put_be64(data + 8 + 8 * i, shared.registrations[i].key)
    return 8 + 8 * shared.registered


cdef uint32_t read_reservation(UnitState *shared, uint8_t *data) noexcept nogil:
    cdef Registration *holder = NULL
    put_be32(data + 4, 0)
    if shared.type == 0:
        return 8
    memset(data + 8, 0, 16)
    put_be32(data + 4, 16)
    if not of_all(shared):                   # of one that all hold there is no key
        holder = find(shared, shared.holder)
    if holder != NULL:
        put_be64(data + 8, holder.key)
    data[21] = shared.type
    return 24


cdef uint32_t read_full_status(UnitState *shared, uint8_t *data) noexcept nogil:
    cdef uint32_t i, length = 8
    cdef uint8_t *one
    for i in range(shared.registered):
        one = data + length
        memset(one, 0, STATUS_BYTES + TRANSPORT_BYTES)
        put_be64(one, shared.registrations[i].key)
        if holds(shared, &shared.registrations[i]):
            one[12] = STATUS_HOLDER
            one[13] = shared.type
        put_be16(one + 18, PORT)
        put_be32(one + 20, TRANSPORT_BYTES)
        one[24] = TRANSPORT_SRP
        memcpy(one + 32, shared.registrations[i].nexus, 16)
        length += STATUS_BYTES + TRANSPORT_BYTES
    put_be32(data + 4, length - 8)
    return length


cdef void plan_persistent_in(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                             ScsiPlan *plan) noexcept nogil:
    cdef UnitState *shared = unit.shared
    cdef uint32_t allocation = be16(cdb + 7), length = 8
    cdef uint8_t action = cdb[1] & 0x1F
    cdef bint reserved
    if action > IN_READ_FULL_STATUS or too_much(unit, allocation, buffer_length):
        reject_field(plan)
        return
    monitor_lock(&shared.lock)
    reserved = shared.reserved
    put_be32(plan.data, shared.generation)
    if action == IN_READ_KEYS:
        length = read_keys(shared, plan.data)
    elif action == IN_READ_RESERVATION:
        length = read_reservation(shared, plan.data)
    elif action == IN_READ_FULL_STATUS:
        length = read_full_status(shared, plan.data)
    else:
        # No exception for RESERVE (CRH), no other initiators' ports, one port, nothing kept through a loss of power.
        put_be32(plan.data, 0x00080000 | TYPES_VALID)
        put_be32(plan.data + 4, <uint32_t> SUPPORTED_TYPES << 16)
    monitor_unlock(&shared.lock)
    if reserved:                             # by whomever: the two kinds exclude each other
        conflict(plan)
    else:
        answer_data(plan, length, allocation, buffer_length, data_in)


# PERSISTENT RESERVE OUT.

cdef inline bint known_type(uint8_t kind) noexcept nogil:
    return kind in (WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS, WRITE_EXCLUSIVE_REGISTRANTS, EXCLUSIVE_ACCESS_REGISTRANTS,
                    WRITE_EXCLUSIVE_ALL, EXCLUSIVE_ACCESS_ALL)


cdef inline uint32_t list_bytes(uint8_t action) noexcept nogil:
    return LIST_BYTES + TRANSPORT_BYTES if action == OUT_REGISTER_AND_MOVE else LIST_BYTES


cdef void plan_persistent_out(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                              ScsiPlan *plan) noexcept nogil:
    cdef uint32_t length = be32(cdb + 5)
    cdef uint8_t action = cdb[1] & 0x1F, kind = cdb[2] & 0x0F
    if action > OUT_REGISTER_AND_MOVE or (action == OUT_REGISTER_AND_MOVE and not unit.extensions):
        reject_field(plan)
    elif (action == OUT_RESERVE or action == OUT_RELEASE or action == OUT_PREEMPT
            or action == OUT_PREEMPT_AND_ABORT) and (cdb[2] >> 4 != 0 or not known_type(kind)):
        reject_field(plan)
    elif length != list_bytes(action):
        reject(plan, ASC_PARAMETER_LIST_LENGTH)
    elif buffer_length < length:
        reject_field(plan)
    else:
        plan_parameters(length, buffer_length, data_in, ASC_PARAMETER_LIST_LENGTH, plan)


cdef void attention_nexus(UnitState *shared, const uint8_t *nexus, uint32_t asc) noexcept nogil:
    cdef ScsiUnit *unit = shared.nexuses
    while unit != NULL:
        if memcmp(unit.nexus, nexus, 16) == 0:
            attention_add(unit, asc)
        unit = unit.next


cdef void attention_registered(UnitState *shared, const uint8_t *but, uint32_t asc) noexcept nogil:
    """All that are registered but this nexus."""
    cdef uint32_t i
    for i in range(shared.registered):
        if memcmp(shared.registrations[i].nexus, but, 16) != 0:
            attention_nexus(shared, shared.registrations[i].nexus, asc)


cdef void abort_nexus(UnitState *shared, const uint8_t *nexus) noexcept nogil:
    """What it has planned and not begun will not begin; scsi_media looks."""
    cdef ScsiUnit *unit = shared.nexuses
    while unit != NULL:
        if memcmp(unit.nexus, nexus, 16) == 0:
            fetch_add32(&unit.epoch, 1)
        unit = unit.next


cdef void hold(UnitState *shared, const uint8_t *nexus, uint8_t kind) noexcept nogil:
    shared.type = kind
    memcpy(shared.holder, nexus, 16)


cdef void end_reservation(UnitState *shared, const uint8_t *but) noexcept nogil:
    """Registrants who shared in it are told."""
    cdef bint told = of_registrants(shared.type)
    shared.type = 0
    if told:
        attention_registered(shared, but, ASC_RESERVATIONS_RELEASED)


cdef void remove(UnitState *shared, Registration *one) noexcept nogil:
    """The order of the others stays."""
    cdef uint32_t i = <uint32_t> (one - shared.registrations)
    shared.registered -= 1
    while i < shared.registered:
        shared.registrations[i] = shared.registrations[i + 1]
        i += 1


cdef void unregister(UnitState *shared, Registration *one) noexcept nogil:
    """By its own wish: what it alone held ends."""
    cdef uint8_t nexus[16]
    cdef bint held = holds(shared, one)
    memcpy(nexus, one.nexus, 16)
    remove(shared, one)
    if held and (not of_all(shared) or shared.registered == 0):
        end_reservation(shared, nexus)


cdef bint add(UnitState *shared, const uint8_t *nexus, uint64_t key) noexcept nogil:
    if shared.registered == REGISTRATIONS:
        return False
    memcpy(shared.registrations[shared.registered].nexus, nexus, 16)
    shared.registrations[shared.registered].key = key
    shared.registered += 1
    return True


cdef bint do_register(ScsiUnit *unit, Registration *mine, uint64_t key, ScsiPlan *plan) noexcept nogil:
    """key 0: unregister. False: the plan says why not."""
    if mine != NULL and key == 0:
        unregister(unit.shared, mine)
    elif mine != NULL:
        mine.key = key
    elif key and not add(unit.shared, unit.nexus, key):
        reject(plan, ASC_NO_ROOM_FOR_REGISTRATION)
        return False
    return True


cdef bint do_reserve(UnitState *shared, Registration *mine, uint8_t kind, ScsiPlan *plan) noexcept nogil:
    if shared.type == 0:
        hold(shared, mine.nexus, kind)
    elif not holds(shared, mine) or shared.type != kind:
        conflict(plan)
        return False
    return True


cdef bint do_release(UnitState *shared, Registration *mine, uint8_t kind, ScsiPlan *plan) noexcept nogil:
    if not holds(shared, mine):              # nothing of its own to release
        return True
    if shared.type != kind:
        reject(plan, ASC_INVALID_RELEASE)
        return False
    end_reservation(shared, mine.nexus)
    return True


cdef void do_clear(UnitState *shared, const uint8_t *nexus) noexcept nogil:
    attention_registered(shared, nexus, ASC_RESERVATIONS_PREEMPTED)
    shared.type = 0
    shared.registered = 0


cdef uint32_t expel(UnitState *shared, const uint8_t *by, uint64_t key, bint everyone, bint itself,
                    bint abort) noexcept nogil:
    """Unregisters all nexuses with this key, or every other one; their number. itself: the one that asks as well."""
    cdef uint32_t i = 0, count = 0
    cdef bint mine
    cdef Registration one
    while i < shared.registered:
        one = shared.registrations[i]
        mine = memcmp(one.nexus, by, 16) == 0
        if (mine and not itself) or (one.key != key and not everyone):
            i += 1
            continue
        remove(shared, &shared.registrations[i])
        count += 1
        if not mine:
            attention_nexus(shared, one.nexus, ASC_REGISTRATIONS_PREEMPTED)
            if abort:
                abort_nexus(shared, one.nexus)
    return count


cdef bint do_preempt(UnitState *shared, const uint8_t *nexus, uint64_t key, uint8_t kind, bint abort,
                     ScsiPlan *plan) noexcept nogil:
    cdef Registration *holder = NULL
    cdef uint8_t before = shared.type
    if before and not of_all(shared):
        holder = find(shared, shared.holder)
    if key == 0 and not (before and of_all(shared)):
        reject(plan, ASC_INVALID_FIELD_IN_LIST)
        return False
    if before and (key == 0 if of_all(shared) else holder.key == key):
        # The reservation changes hands; the new holder stays registered.
        expel(shared, nexus, key, key == 0, False, abort)
        if before != kind:
            attention_registered(shared, nexus, ASC_RESERVATIONS_RELEASED)
        hold(shared, nexus, kind)
        return True
    if expel(shared, nexus, key, False, True, abort) == 0:
        conflict(plan)
        return False
    if of_all(shared) and shared.registered == 0:
        shared.type = 0
    return True


cdef bint do_move(UnitState *shared, Registration *mine, uint64_t key, const uint8_t *list,
                  ScsiPlan *plan) noexcept nogil:
    """REGISTER AND MOVE: registers another nexus and makes it the holder."""
    cdef const uint8_t *other = list + LIST_BYTES + 8
    cdef Registration *theirs
    cdef uint8_t nexus[16]
    if not holds(shared, mine) or of_all(shared):
        conflict(plan)
        return False
    if (key == 0 or list[17] & MOVE_APTPL or be16(list + 18) != PORT or be32(list + 20) != TRANSPORT_BYTES
            or list[LIST_BYTES] != TRANSPORT_SRP or memcmp(other, mine.nexus, 16) == 0):
        reject(plan, ASC_INVALID_FIELD_IN_LIST)
        return False
    theirs = find(shared, other)
    if theirs != NULL:
        theirs.key = key
    elif not add(shared, other, key):
        reject(plan, ASC_NO_ROOM_FOR_REGISTRATION)
        return False
    hold(shared, other, shared.type)
    if list[17] & MOVE_UNREGISTER:
        memcpy(nexus, mine.nexus, 16)
        remove(shared, find(shared, nexus))
    return True


cdef bint reserve_out(ScsiUnit *unit, const uint8_t *cdb, const uint8_t *list, ScsiPlan *plan) noexcept nogil:
    """One service action, with the lock held; True: it was done."""
    cdef UnitState *shared = unit.shared
    cdef uint64_t key = be64(list), action_key = be64(list + 8)
    cdef uint8_t action = cdb[1] & 0x1F, kind = cdb[2] & 0x0F
    cdef Registration *mine = find(shared, unit.nexus)
    if shared.reserved:
        conflict(plan)
        return False
    if action == OUT_REGISTER_AND_IGNORE:
        return do_register(unit, mine, action_key, plan)
    if mine.key != key if mine != NULL else action != OUT_REGISTER or key != 0:
        conflict(plan)
        return False
    if action == OUT_REGISTER:
        return do_register(unit, mine, action_key, plan)
    if action == OUT_RESERVE:
        return do_reserve(shared, mine, kind, plan)
    if action == OUT_RELEASE:
        return do_release(shared, mine, kind, plan)
    if action == OUT_CLEAR:
        do_clear(shared, unit.nexus)
        return True
    if action == OUT_REGISTER_AND_MOVE:
        return do_move(shared, mine, action_key, list, plan)
    return do_preempt(shared, unit.nexus, action_key, kind, action == OUT_PREEMPT_AND_ABORT, plan)


cdef void persistent_parameters(ScsiUnit *unit, const uint8_t *cdb, const uint8_t *list, uint32_t length,
                                ScsiPlan *plan) noexcept nogil:
    cdef UnitState *shared = unit.shared
    cdef uint8_t action = cdb[1] & 0x1F
    if length < list_bytes(action):          # fewer bytes were copied than the plan asked for
        reject(plan, ASC_PARAMETER_LIST_LENGTH)
        return
    # Ports of others cannot be registered, and nothing is kept through a loss of power: neither is offered.
    if action != OUT_REGISTER_AND_MOVE and list[20] & (LIST_SPECIFY | LIST_ALL_PORTS | LIST_APTPL):
        reject(plan, ASC_INVALID_FIELD_IN_LIST)
        return
    monitor_lock(&shared.lock)
    if reserve_out(unit, cdb, list, plan):
        if action != OUT_RESERVE and action != OUT_RELEASE:
            shared.generation += 1
        unit_judge(shared)
    monitor_unlock(&shared.lock)
