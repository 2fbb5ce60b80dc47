"""Logical units and their nexuses (storvsp.md 9.11, 11)."""

import hashlib

cimport cython
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from hvcore.disk.ops cimport Backend
from hvcore.linux.atomics cimport store_release32
from hvcore.linux.threads cimport monitor_destroy, monitor_init, monitor_lock, monitor_unlock
from hvcore.scsi.sense cimport ASC_CAPACITY_CHANGED, ASC_MODE_PARAMETERS_CHANGED, ASC_RESET

cdef enum:
    SERIAL_MAX = 64
    KIND_OF_RESET = 0x29         # ASC


cdef bint registered(const UnitState *shared, const uint8_t *nexus) noexcept nogil:
    cdef uint32_t i
    for i in range(shared.registered):
        if memcmp(shared.registrations[i].nexus, nexus, 16) == 0:
            return True
    return False


cdef uint32_t reservation_alert(const UnitState *shared, const uint8_t *nexus) noexcept nogil:
    """What the persistent reservation forbids to a nexus: the table of 9.11."""
    if shared.type == 0:
        return 0
    if shared.type < WRITE_EXCLUSIVE_REGISTRANTS:
        if memcmp(shared.holder, nexus, 16) == 0:
            return 0
    elif registered(shared, nexus):
        return 0
    if (shared.type == WRITE_EXCLUSIVE or shared.type == WRITE_EXCLUSIVE_REGISTRANTS
            or shared.type == WRITE_EXCLUSIVE_ALL):
        return ALERT_NO_WRITE
    return ALERT_NO_READ | ALERT_NO_WRITE


cdef void nexus_judge(const UnitState *shared, ScsiUnit *unit) noexcept nogil:
    cdef uint32_t alert = reservation_alert(shared, unit.nexus)
    if unit.attention_count:
        alert |= ALERT_ATTENTION
    if shared.reserved and memcmp(shared.reserver, unit.nexus, 16) != 0:
        alert |= ALERT_RESERVED
    if shared.write_protected:
        alert |= ALERT_PROTECTED
    # Release: what caused the alert is there when another thread sees it. Who hears of the change from the initiator
    # that made it hears after this store, so a relaxed load finds it.
    store_release32(&unit.alert, alert)


cdef void unit_judge(UnitState *shared) noexcept nogil:
    cdef ScsiUnit *unit = shared.nexuses
    while unit != NULL:
        nexus_judge(shared, unit)
        unit = unit.next


cdef void attention_add(ScsiUnit *unit, uint32_t asc) noexcept nogil:
    cdef uint32_t place = 0, i
    # A reset says all that the others say: it ends them, and they are not told beside it.
    if unit.attention_count and unit.attentions[0] >> 8 == KIND_OF_RESET and asc >> 8 != KIND_OF_RESET:
        return
    if asc >> 8 == KIND_OF_RESET:
        unit.attention_count = 0
    # The lower code is the more important one: 2A/03 preempted, 04 released, 05 unregistered, 09 resized, 3F/0E LUNs.
    while place < unit.attention_count and unit.attentions[place] < asc:
        place += 1
    if place < unit.attention_count and unit.attentions[place] == asc:
        return
    if place == ATTENTIONS:
        return
    if unit.attention_count < ATTENTIONS:
        unit.attention_count += 1
    i = unit.attention_count - 1
    while i > place:
        unit.attentions[i] = unit.attentions[i - 1]
        i -= 1
    unit.attentions[place] = asc
    nexus_judge(unit.shared, unit)


cdef void attention_others(UnitState *shared, const ScsiUnit *but, uint32_t asc) noexcept nogil:
    cdef ScsiUnit *unit = shared.nexuses
    while unit != NULL:
        if unit != but:
            attention_add(unit, asc)
        unit = unit.next


cdef void scsi_attention(ScsiUnit *unit, uint32_t asc) noexcept nogil:
    monitor_lock(&unit.shared.lock)
    attention_add(unit, asc)
    monitor_unlock(&unit.shared.lock)


cdef uint32_t attention_take(ScsiUnit *unit) noexcept nogil:
    cdef uint32_t asc = 0, i
    monitor_lock(&unit.shared.lock)
    if unit.attention_count:
        asc = unit.attentions[0]
        unit.attention_count -= 1
        for i in range(unit.attention_count):
            unit.attentions[i] = unit.attentions[i + 1]
        nexus_judge(unit.shared, unit)
    monitor_unlock(&unit.shared.lock)
    return asc


cdef void nexus_attach(ScsiUnit *unit, UnitState *shared) noexcept nogil:
    monitor_lock(&shared.lock)
    unit.shared = shared
    unit.next = shared.nexuses
    shared.nexuses = unit
    nexus_judge(shared, unit)
    monitor_unlock(&shared.lock)


cdef bint attached(const UnitState *shared, const uint8_t *nexus) noexcept nogil:
    cdef ScsiUnit *unit = shared.nexuses
    while unit != NULL:
        if memcmp(unit.nexus, nexus, 16) == 0:
            return True
        unit = unit.next
    return False


cdef void nexus_detach(ScsiUnit *unit) noexcept nogil:
    cdef UnitState *shared = unit.shared
    cdef ScsiUnit **link = &shared.nexuses
    monitor_lock(&shared.lock)
    while link[0] != NULL and link[0] != unit:
        link = &link[0].next
    if link[0] != NULL:
        link[0] = unit.next
        unit.next = NULL
        if shared.reserved and not attached(shared, shared.reserver):
            shared.reserved = False
            unit_judge(shared)
    monitor_unlock(&shared.lock)


cdef void scsi_reset(ScsiUnit *unit) noexcept nogil:
    cdef UnitState *shared = unit.shared
    monitor_lock(&shared.lock)
    shared.reserved = False
    unit_judge(shared)
    monitor_unlock(&shared.lock)


cdef void unit_protect(ScsiUnit *unit, bint write_protected) noexcept nogil:
    cdef UnitState *shared = unit.shared
    monitor_lock(&shared.lock)
    if shared.write_protected != write_protected:
        shared.write_protected = write_protected
        attention_others(shared, unit, ASC_MODE_PARAMETERS_CHANGED)
        unit_judge(shared)
    monitor_unlock(&shared.lock)


# ---- from Python

cdef bytes identity(Backend image):
    """16 bytes that stay the same for the same image file, or without one for the same kind and size of disk."""
    path = getattr(image, "path", "")
    text = f"{type(image).__module__}.{type(image).__name__}\0{path}\0{image.ref.size_bytes}\0{image.ref.sector_size}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:16]


@cython.final
cdef class LogicalUnit:
    """One disk that several initiators may use, each through a Target of its own on it: what they share, such as
    reservations.

    image: a hvcore.disk backend; it stays open and the caller's. id: 16 bytes that name the disk (VPD 83), serial: up
    to 64 ASCII characters (VPD 80; "" for none); both default to values derived from the image, so two disks of the
    same kind and size without a path need an id each. Reservations live as long as this object: they do not survive
    the loss of power. Calls may run concurrently.
    """

    def __cinit__(self, image, *, id=None, serial=None):
        if monitor_init(&self.state.lock) or monitor_init(&self.state.comparing):
            raise MemoryError()
        if not isinstance(image, Backend):
            raise TypeError(f"image must be a hvcore.disk backend, not {type(image).__name__}")
        self.image = image
        self.id = identity(image) if id is None else bytes(memoryview(id))
        if len(self.id) != 16:
            raise ValueError(f"id has 16 bytes, not {len(self.id)}")
        self.serial = self.id.hex() if serial is None else serial
        if len(self.serial) > SERIAL_MAX or not self.serial.isascii():
            raise ValueError(f"serial has at most {SERIAL_MAX} ASCII characters, not {self.serial!r}")

    def raise_unit_attention(self, uint8_t asc, uint8_t ascq):
        """Every initiator's next command but INQUIRY, REPORT LUNS and REQUEST SENSE fails with this, once."""
        with nogil:
            monitor_lock(&self.state.lock)
            attention_others(&self.state, NULL, (<uint32_t> asc << 8) | ascq)
            monitor_unlock(&self.state.lock)

    def resized(self):
        """The image has another size now: every initiator is told (2A/09)."""
        self.raise_unit_attention(ASC_CAPACITY_CHANGED >> 8, ASC_CAPACITY_CHANGED & 0xFF)

    def reset(self):
        """A reset from outside: what is held by RESERVE ends, and every initiator is told (29/00). Persistent
        reservations and commands that run stay."""
        with nogil:
            monitor_lock(&self.state.lock)
            self.state.reserved = False
            unit_judge(&self.state)
            attention_others(&self.state, NULL, ASC_RESET)
            monitor_unlock(&self.state.lock)

    @property
    def generation(self):
        """How often the registrations changed (PRGENERATION)."""
        return self.state.generation

    @property
    def registrations(self):
        """{nexus: key} of the persistent registrations."""
        cdef UnitState copy
        with nogil:
            monitor_lock(&self.state.lock)
            memcpy(&copy, &self.state, sizeof(UnitState))
            monitor_unlock(&self.state.lock)
        return {
            (<char *> copy.registrations[i].nexus)[:16]: copy.registrations[i].key for i in range(copy.registered)}

    @property
    def reservation(self):
        """(type, nexus) of the persistent reservation, nexus None where all registrants hold it; None without one."""
        cdef UnitState copy
        with nogil:
            monitor_lock(&self.state.lock)
            memcpy(&copy, &self.state, sizeof(UnitState))
            monitor_unlock(&self.state.lock)
        if copy.type == 0:
            return None
        return copy.type, None if copy.type >= WRITE_EXCLUSIVE_ALL else (<char *> copy.holder)[:16]

    def __dealloc__(self):
        monitor_destroy(&self.state.comparing)
        monitor_destroy(&self.state.lock)
