"""The storage VSP (see vsp.pxd; storvsp.md is the source of every rule)."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from hvcore.disk.ops cimport DISK_OK
from hvcore.linux.atomics cimport count64
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.syscalls cimport eventfd_ring
from hvcore.memory.guest cimport pfn_pointer
from hvcore.metrics.counters cimport (
    IO_FLUSH, IO_OTHER, IO_READ, IO_UNMAP, IO_WRITE, Counters, counters_io, latency_begin, latency_end)
from hvcore.metrics.events cimport (
    EVENT_FAILED, EVENT_SLOW, EVENT_THROTTLED, Event, EventLog, events_slow, events_slow_ns, events_write)
from hvcore.metrics.trace cimport trace_stamp
from hvcore.scsi.target cimport (
    SCSI_ANSWER, SCSI_DATA_MAX, SCSI_DONE, SCSI_FLUSH, SCSI_PARAMETERS, SCSI_READ, SCSI_TRIM, SCSI_WRITE, ScsiPlan,
    scsi_absent, scsi_fail, scsi_finish, scsi_parameters, scsi_plan, scsi_refuse, scsi_report_luns,
    scsi_reset, unit_disk)
from hvcore.storage.gate cimport GateItem, gate_done, gate_pass, gate_remove
from hvcore.storage.hops cimport HOP_COMPLETED, HOP_RECEIVED
from hvcore.storage.protocol cimport (
    NT_INVALID_DEVICE_STATE, NT_INVALID_PARAMETER, NT_REVISION_MISMATCH, NT_SUCCESS, VSTOR_BEGIN_INITIALIZATION,
    VSTOR_COMPLETE_IO, VSTOR_CREATE_SUB_CHANNELS, VSTOR_END_INITIALIZATION, VSTOR_ENUMERATE_BUS, VSTOR_EXECUTE_SRB,
    VSTOR_FCHBA_DATA, VSTOR_MULTI_CHANNEL, VSTOR_PACKET_BYTES, VSTOR_QUERY_PROPERTIES, VSTOR_QUERY_PROTOCOL_VERSION,
    VSTOR_REMOVE_DEVICE, VSTOR_RESET_ADAPTER, VSTOR_RESET_BUS, VSTOR_RESET_LUN, VSTOR_WIN6, VSTOR_WIN7, VSTOR_WIN8,
    VSTOR_WIN8_1, VSTOR_WIN10, VstorPacket, VstorScsiRequest, vstor_command, vstor_complete, vstor_packet_bytes,
    vstor_reply_bytes)
from hvcore.vmbus.abi cimport (
    PACKET_COMPLETION, PACKET_COMPLETION_REQUESTED, PACKET_GPA_DIRECT, PACKET_IN_BAND, PAGE_SIZE, PacketDescriptor)
from hvcore.vmbus.events cimport event_signal_guest
from hvcore.vmbus.packet cimport PACKET_OK, GpaDirectView, GpaRangeView, gpa_direct_parse, gpa_range_next
from hvcore.vmbus.ring cimport (
    RING_EMPTY, RING_OK, ring_free, ring_mask, ring_poll, ring_publish, ring_put, ring_release, ring_take, ring_unmask,
    ring_want, ring_want_no_more)

cdef enum:
    # A completion in the ring: descriptor, vstor packet, trailer (section 14).
    COMPLETION_BYTES = 16 + 64 + 8
    HEADER_BYTES = 12            # of a vstor packet (3.1)
    SRB_BYTES = 48               # the least that EXECUTE_SRB has (section 13)


cdef void vsp_open(Vsp *vsp) noexcept nogil:
    cdef uint32_t i
    if vsp.primary:
        vsp_reset(vsp.controller)
    vsp.counters = vsp.controller.counters
    vsp.fault = VSP_NO_FAULT
    vsp.room = 0
    vsp.in_flight = 0
    vsp.staged = vsp.taken = vsp.starved = False
    vsp.free = NULL
    # No more requests than the outgoing ring has room to answer: room for one more could never come (RB-32).
    for i in range(min(vsp.depth, (vsp.outgoing.size - 1) // <uint32_t> COMPLETION_BYTES)):
        vsp.requests[i].owner = vsp
        vsp.requests[i].next = vsp.free
        vsp.free = &vsp.requests[i]
    ring_mask(&vsp.incoming)
    vsp.open = True


cdef void vsp_reset(VspController *controller) noexcept nogil:
    controller.state = VSP_BEGIN
    controller.version = 0
    controller.sub_channels = 0


cdef inline int vsp_fault(Vsp *vsp, int fault) noexcept nogil:
    """The channel is dead until it is closed (section 13); what is in flight ends in guarded memory, unanswered."""
    if vsp.fault == VSP_NO_FAULT:
        vsp.fault = fault
        count64(&vsp.counters.errors, 1)
    return -1


# Answers.

cdef void vsp_send(Vsp *vsp, uint64_t transaction_id, const VstorPacket *packet, uint32_t length) noexcept nogil:
    # There is room: vsp_poll takes no packet without it.
    if ring_put(&vsp.outgoing, PACKET_COMPLETION, 0, transaction_id, NULL, 0, packet, length) != RING_OK:
        vsp_fault(vsp, VSP_FAULT_RING)
        return
    vsp.room -= COMPLETION_BYTES
    vsp.staged = True


cdef void vsp_reply(
        Vsp *vsp, uint64_t transaction_id, uint32_t length, uint32_t status,
        const VstorPacket *reply) noexcept nogil:
    """The completion of anything but an executed SRB. reply: NULL for a union of zeros (3.3)."""
    cdef VstorPacket packet
    memset(&packet, 0, sizeof(packet))
    if reply != NULL:
        packet = reply[0]
    packet.operation = VSTOR_COMPLETE_IO
    packet.flags = 0
    packet.status = status
    vsp_send(vsp, transaction_id, &packet, length)


cdef inline Counters *request_counters(VspRequest *request) noexcept nogil:
    return request.unit.counters if request.unit != NULL else (<Vsp *> request.owner).controller.counters


cdef void vsp_complete(VspRequest *request) noexcept nogil:
    cdef Vsp *vsp = <Vsp *> request.owner
    cdef Counters *counters = request_counters(request)
    cdef VstorPacket packet
    if vsp.open and vsp.fault == VSP_NO_FAULT:
        vstor_complete(&request.packet, &request.plan, &packet)
        vsp_send(vsp, request.transaction_id, &packet, request.reply_length)
        vsp.counters = counters
        count64(&counters.hand_overs, 1)
        count64(&counters.ring_packets, 1)
        if request.plan.srb_status != 1:
            count64(&counters.errors, 1)
        trace_stamp(vsp.controller.trace, request.trace_id, request.transaction_id, HOP_COMPLETED, vsp.relid)
    if request.list != NULL:
        free(request.list)
        request.list = NULL
    if request.unit != NULL:
        request.unit.in_flight -= 1
    request.next = vsp.free
    vsp.free = request
    vsp.in_flight -= 1


cdef void vsp_scatter(Vsp *vsp, VspRequest *request) noexcept nogil:
    """plan.data into the guest's pages: never more than the request's buffer holds."""
    cdef uint32_t left = request.plan.data_length, done = 0, part
    cdef int i
    for i in range(request.iov_count):
        if left == 0:
            break
        part = min(left, <uint32_t> request.iov[i].iov_len)
        memcpy(request.iov[i].iov_base, &request.plan.data[done], part)
        done += part
        left -= part
    count64(&request_counters(request).bytes_copied, done)


cdef uint32_t vsp_gather(Vsp *vsp, VspRequest *request, uint8_t *buffer, uint32_t length) noexcept nogil:
    """Up to `length` bytes of the guest's pages, copied once before they are interpreted (VA-5)."""
    cdef uint32_t left = length, done = 0, part
    cdef int i
    for i in range(request.iov_count):
        if left == 0:
            break
        part = min(left, <uint32_t> request.iov[i].iov_len)
        memcpy(&buffer[done], request.iov[i].iov_base, part)
        done += part
        left -= part
    count64(&request_counters(request).bytes_copied, done)
    return done


cdef void vsp_start(VspUnit *unit, VspRequest *request) noexcept nogil:
    """A request of the medium: to the executor, or to the queue of a disk that has had its share."""
    cdef ScsiPlan *plan = &request.plan
    request.kind = IO_OTHER
    request.medium_offset = plan.offset
    request.medium_bytes = plan.length
    if plan.action == SCSI_READ:
        request.kind = IO_READ
    elif plan.action == SCSI_WRITE:
        request.kind = IO_WRITE
    elif plan.action == SCSI_FLUSH:
        request.kind = IO_FLUSH
        request.medium_bytes = 0
    elif plan.action == SCSI_TRIM:
        request.kind = IO_UNMAP
        request.medium_bytes = 0
    elif plan.action == VSP_IDENTIFY:
        request.medium_bytes = 0
    count64(&unit.counters.queue_length, 1)
    if gate_pass(&unit.gate, &request.item, request.medium_bytes):
        vsp_go(request)


cdef void vsp_go(VspRequest *request) noexcept nogil:
    cdef VspUnit *unit = request.unit
    cdef EventLog *log = (<Vsp *> request.owner).controller.log
    cdef uint64_t waited
    if request.item.since_ns:                # it had to wait
        waited = clock_ns() - request.item.since_ns
        request.item.since_ns = 0
        if events_slow(log, waited):
            vsp_event(request, EVENT_THROTTLED, waited)
    latency_begin(&request.stamp, &unit.sampler, events_slow_ns(log) != 0)
    unit.execute(unit, request)


cdef void vsp_event(VspRequest *request, uint32_t kind, uint64_t latency_ns) noexcept nogil:
    cdef ScsiPlan *plan = &request.plan
    cdef Event event
    memset(&event, 0, sizeof(event))
    event.kind = kind
    event.time_ns = clock_ns()
    event.trace_id = request.trace_id
    event.transaction_id = request.transaction_id
    event.lba = request.medium_offset // unit_disk(request.unit.scsi).sector_size
    event.length = request.medium_bytes
    event.latency_ns = latency_ns
    event.opcode = request.packet.u.scsi.payload[0]
    if kind == EVENT_FAILED:
        event.srb_status = plan.srb_status
        event.scsi_status = plan.scsi_status
        if plan.sense_length >= 14:
            event.sense_key, event.asc, event.ascq = plan.sense[2] & 0x0F, plan.sense[12], plan.sense[13]
    events_write((<Vsp *> request.owner).controller.log, &event)


cdef inline void vsp_ended(VspRequest *request) noexcept nogil:
    """A request of the medium is done; its plan holds the answer."""
    cdef VspUnit *unit = request.unit
    cdef EventLog *log = (<Vsp *> request.owner).controller.log
    cdef bint good = request.plan.srb_status == 1
    cdef uint64_t latency = latency_end(&request.stamp, unit.counters)
    count64(&unit.counters.queue_length, <uint64_t> -1)
    gate_done(&unit.gate, &request.item, good)
    if good:
        counters_io(unit.counters, request.kind, request.medium_bytes)
        if events_slow(log, latency):
            vsp_event(request, EVENT_SLOW, latency)
    else:
        vsp_event(request, EVENT_FAILED, latency)


cdef void vsp_drop_waiting(VspUnit *unit, const Vsp *vsp) noexcept nogil:
    cdef GateItem *item = unit.gate.head
    cdef GateItem *next
    cdef VspRequest *request
    while item != NULL:
        next = item.next
        request = <VspRequest *> item
        if vsp == NULL or request.owner == vsp:
            gate_remove(&unit.gate, item, clock_ns())
            vsp_abort(request)
        item = next


cdef void vsp_finish(VspRequest *request, int disk_status) noexcept nogil:
    cdef Vsp *vsp = <Vsp *> request.owner
    if request.plan.action != VSP_IDENTIFY:
        scsi_finish(request.unit.scsi, &request.plan, disk_status)
    elif disk_status != DISK_OK:
        scsi_fail(&request.plan, 0x84, 0x04, 0x0000)
    # An answer that was planned before, or that the medium gave.
    if request.plan.data_to_guest and vsp.open and vsp.fault == VSP_NO_FAULT:
        vsp_scatter(vsp, request)
    vsp_ended(request)
    vsp_complete(request)


cdef void vsp_abort(VspRequest *request) noexcept nogil:
    scsi_fail(&request.plan, 0x82, 0x0B, 0x0000)
    vsp_ended(request)
    vsp_complete(request)


# Requests.

cdef inline void vsp_cut(VspRequest *request, uint64_t length) noexcept nogil:
    """Cuts the buffer list to `length` bytes: what the CDB moves may be less than the buffer (5.8)."""
    cdef int i
    for i in range(request.iov_count):
        if length <= request.iov[i].iov_len:
            request.iov[i].iov_len = length
            request.iov_count = i + 1 if length else i
            return
        length -= request.iov[i].iov_len


cdef int vsp_ranges(Vsp *vsp, VspRequest *request, const uint8_t *packet, uint32_t length, uint32_t wanted,
                    uint32_t *buffer_length, bint *reachable) noexcept nogil:
    """The first `wanted` bytes of a GPA-direct packet's buffer as host addresses, adjacent pages merged (2.2). -1:
    channel fault."""
    cdef GpaDirectView view
    cdef GpaRangeView range_
    cdef uint64_t left, i = 0
    cdef uint32_t offset, part
    cdef uint8_t *page
    cdef iovec *last
    request.iov_count = 0
    reachable[0] = True
    # Whatever is wrong with the header, and any other number of ranges, kills the channel here (2.2). A surplus of
    # PFNs is legal: most Linux kernels send 32 always.
    if gpa_direct_parse(packet, length, &view) != PACKET_OK or view.range_count != 1:
        return -1
    gpa_range_next(view.ranges, &range_)
    buffer_length[0] = range_.byte_count
    # A range longer than the transfer is cut to it (5.3 check 5): what lies behind is never touched.
    left = min(range_.byte_count, wanted)
    if left > vsp.controller.max_transfer:              # more pages than iov has room for: answered by check 6
        return 0
    offset = range_.byte_offset
    while left:
        page = pfn_pointer(&vsp.memory, range_.pfns[i])
        i += 1
        if page == NULL:                     # VA-4: fails the request, not the channel
            reachable[0] = False
            request.iov_count = 0
            return 0
        part = <uint32_t> min(left, <uint64_t> (PAGE_SIZE - offset))
        last = &request.iov[request.iov_count - 1]
        if request.iov_count and <uint8_t *> last.iov_base + last.iov_len == page + offset:
            last.iov_len += part
        else:
            request.iov[request.iov_count].iov_base = page + offset
            request.iov[request.iov_count].iov_len = part
            request.iov_count += 1
        left -= part
        offset = 0
    return 0


cdef void vsp_parameters(Vsp *vsp, VspRequest *request, const uint8_t *cdb, uint32_t length) noexcept nogil:
    """A command that has a parameter list: the list is copied, then believed. The copy lives as long as the request."""
    request.list = <uint8_t *> malloc(length + 1)
    if request.list == NULL:
        scsi_refuse(&request.plan, 0x05, 0x08)               # busy: no resources (section 10)
        return
    length = vsp_gather(vsp, request, request.list, length)
    scsi_parameters(request.unit.scsi, cdb, request.list, length, &request.plan)


cdef void vsp_keep_answer(VspRequest *request, uint32_t room) noexcept nogil:
    """Gives the request memory of its own for an answer that is sent later: the channel's is the next request's."""
    cdef ScsiPlan *plan = &request.plan
    request.list = <uint8_t *> malloc(room)
    if request.list == NULL:
        scsi_refuse(plan, 0x05, 0x08)                        # busy: no resources (section 10)
        return
    memcpy(request.list, plan.data, min(room, plan.data_length))
    plan.data = request.list


cdef int vsp_execute(Vsp *vsp, uint64_t transaction_id, const VstorPacket *packet, const uint8_t *ring_packet,
                     uint32_t length, bint direct, uint32_t payload) noexcept nogil:
    """EXECUTE_SRB, in the order of 5.3. -1: channel fault."""
    cdef VspRequest *request = vsp.free
    cdef VspController *controller = vsp.controller
    cdef VstorScsiRequest *srb
    cdef ScsiPlan *plan = &request.plan
    cdef VspUnit *unit = NULL
    cdef Counters *counters
    cdef uint32_t buffer_length = 0
    cdef uint32_t wanted = packet.u.scsi.data_transfer_length
    cdef uint8_t cdb[16]
    cdef bint reachable = True, address_ok
    request.packet = packet[0]
    request.transaction_id = transaction_id
    request.reply_length = vstor_reply_bytes(payload)
    request.iov_count = 0
    request.unit = NULL
    request.item.since_ns = 0
    request.stamp.since_ns = 0
    if direct and vsp_ranges(vsp, request, ring_packet, length, wanted, &buffer_length, &reachable) < 0:
        return vsp_fault(vsp, VSP_FAULT_RANGE)
    if controller.state != VSP_READY:        # no I/O, but the descriptor was validated (4.1)
        vsp_reply(vsp, transaction_id, request.reply_length, NT_INVALID_DEVICE_STATE, NULL)
        return 0
    srb = &request.packet.u.scsi
    if wanted > buffer_length:               # also data with an in-band packet (5.3 check 5)
        return vsp_fault(vsp, VSP_FAULT_LENGTH)

    address_ok = controller.single_disk or (srb.path_id == 0 and srb.target_id == 0)
    if address_ok and srb.lun < VSP_LUNS:
        unit = controller.units[srb.lun]
    vsp.free = request.next
    vsp.in_flight += 1
    request.trace_id = 0
    if unit != NULL:
        request.unit = unit
        unit.in_flight += 1
        unit.sequence += 1
        request.trace_id = unit.trace_base | unit.sequence
    counters = request_counters(request)
    count64(&counters.requests, 1)
    count64(&counters.hand_overs, 1)
    count64(&counters.ring_packets, 1)
    trace_stamp(controller.trace, request.trace_id, transaction_id, HOP_RECEIVED, vsp.relid)

    plan.action = SCSI_DONE
    plan.data = vsp.answer
    plan.data_length = 0
    plan.sense_length = 0
    if not vstor_command(&request.packet, controller.version, cdb, plan):
        pass                                 # the plan holds the answer (5.3 checks 3 and 4)
    elif wanted > controller.max_transfer or not reachable:
        scsi_fail(plan, 0x86, 0x05, 0x2400)
    else:
        if cdb[0] == 0xA0 and address_ok:    # REPORT LUNS is the controller's answer, for any LUN (section 7)
            scsi_report_luns(controller.luns, cdb, wanted, srb.data_in, controller.strict_alloc, plan)
        elif unit == NULL:
            scsi_absent(cdb, srb.lun, wanted, srb.data_in, plan)
        elif unit.in_flight > unit.limit:
            scsi_refuse(plan, 0x05, 0x28)    # TASK SET FULL: a slow disk leaves room for its neighbours
        else:
            scsi_plan(unit.scsi, cdb, wanted, srb.data_in, plan)
            if plan.action == SCSI_PARAMETERS:
                vsp_parameters(vsp, request, cdb, min(wanted, plan.data_length))
            if plan.action == SCSI_DONE and unit.identify and cdb[0] == 0x12 and plan.srb_status == 1:
                vsp_keep_answer(request, plan.data_length)
                if plan.srb_status == 1:
                    plan.action = VSP_IDENTIFY
            elif plan.action == SCSI_ANSWER:
                vsp_keep_answer(request, SCSI_DATA_MAX)
            elif plan.action != SCSI_DONE:
                vsp_cut(request, plan.buffer_length)
            if plan.action != SCSI_DONE:
                vsp_start(unit, request)
                return 0
        if plan.data_to_guest:
            vsp_scatter(vsp, request)
    vsp_complete(request)
    return 0


# Units and notices.

cdef void vsp_set_unit(VspController *controller, uint32_t lun, VspUnit *unit) noexcept nogil:
    controller.units[lun] = unit
    if unit != NULL:
        controller.luns[lun >> 3] |= 1 << (lun & 7)
    else:
        controller.luns[lun >> 3] &= ~(1 << (lun & 7))
    controller.notices |= VSP_NOTICE_ENUMERATE


cdef void vsp_notify(Vsp *vsp) noexcept nogil:
    """One packet for all that changed (4.4). Without room it is sent later, by vsp_poll: completions go first."""
    cdef VspController *controller = vsp.controller
    cdef int64_t needed = <int64_t> COMPLETION_BYTES * (vsp.in_flight + 1)
    cdef VstorPacket packet
    cdef uint32_t length
    if (not controller.notices or not vsp.primary or not vsp.open or vsp.fault != VSP_NO_FAULT
            or controller.state != VSP_READY):
        return
    if controller.version < VSTOR_WIN7:      # a guest that knows no notices looks by itself
        controller.notices = 0
        return
    vsp.room = ring_free(&vsp.outgoing)
    if vsp.room <= needed:
        vsp_publish(vsp)                     # the guest frees what it sees, and then signals
        if vsp.room < 0 or vsp.fault != VSP_NO_FAULT or ring_want(&vsp.outgoing, <uint32_t> needed) != 1:
            return
    memset(&packet, 0, sizeof(packet))
    packet.operation = VSTOR_REMOVE_DEVICE if controller.notices & VSP_NOTICE_REMOVE else VSTOR_ENUMERATE_BUS
    controller.notices = 0
    length = vstor_packet_bytes(controller.version)
    if ring_put(&vsp.outgoing, PACKET_IN_BAND, 0, 0, NULL, 0, &packet, length) != RING_OK:
        vsp_fault(vsp, VSP_FAULT_RING)
        return
    vsp.room -= COMPLETION_BYTES
    vsp.staged = True


cdef void vsp_reset_units(VspController *controller, const VstorPacket *packet) noexcept nogil:
    cdef const VstorScsiRequest *address = &packet.u.scsi
    cdef int lun
    for lun in range(VSP_LUNS):
        if controller.units[lun] != NULL and (
                packet.operation != VSTOR_RESET_LUN or controller.single_disk or lun == address.lun):
            scsi_reset(controller.units[lun].scsi)


cdef uint32_t vsp_create_sub_channels(VspController *controller, uint32_t count) noexcept nogil:
    """4.1: once before END_INITIALIZATION, from 5.1 on; any number of times after it. The NTSTATUS."""
    if controller.state != VSP_READY and (
            controller.state != VSP_END_INIT or controller.version < VSTOR_WIN8 or controller.sub_channels):
        return NT_INVALID_DEVICE_STATE
    if count > controller.sub_channels_max:
        return NT_INVALID_PARAMETER
    if count:                                # none is a success that changes nothing
        controller.sub_channels = <uint16_t> count
        eventfd_ring(controller.sub_channel_bell)
    return NT_SUCCESS


cdef int vsp_negotiate(Vsp *vsp, uint64_t transaction_id, const VstorPacket *packet, uint32_t length) noexcept nogil:
    """Everything but EXECUTE_SRB: the state machine of 4.1. -1: channel fault."""
    cdef VspController *controller = vsp.controller
    cdef uint32_t operation = packet.operation
    cdef uint32_t status = NT_INVALID_DEVICE_STATE
    cdef uint32_t reply_length = vstor_reply_bytes(length)
    cdef VstorPacket reply
    memset(&reply, 0, sizeof(reply))
    if not vsp.primary and (operation <= VSTOR_QUERY_PROPERTIES and operation >= VSTOR_BEGIN_INITIALIZATION
                            or operation == VSTOR_CREATE_SUB_CHANNELS):
        pass                                 # only the primary negotiates (4.3)
    elif operation == VSTOR_BEGIN_INITIALIZATION:
        if controller.state == VSP_BEGIN:
            controller.state = VSP_QUERY_VERSION
            status = NT_SUCCESS
    elif operation == VSTOR_QUERY_PROTOCOL_VERSION:
        if length < 16:                      # a length is a multiple of 8: the two fields end at 16
            return vsp_fault(vsp, VSP_FAULT_PACKET)
        if controller.state == VSP_QUERY_VERSION:
            reply.u.version.version = packet.u.version.version
            if (packet.u.version.version in (VSTOR_WIN6, VSTOR_WIN7, VSTOR_WIN8, VSTOR_WIN8_1, VSTOR_WIN10)
                    and packet.u.version.version <= controller.max_version):
                controller.version = packet.u.version.version
                controller.state = VSP_QUERY_PROPERTIES
                status = NT_SUCCESS
            else:
                status = NT_REVISION_MISMATCH
    elif operation == VSTOR_QUERY_PROPERTIES:
        if controller.state == VSP_QUERY_PROPERTIES:
            reply.u.properties.max_transfer_bytes = controller.max_transfer
            if controller.version >= VSTOR_WIN8 and controller.sub_channels_max:
                reply.u.properties.max_sub_channels = controller.sub_channels_max
                reply.u.properties.flags = VSTOR_MULTI_CHANNEL
            controller.state = VSP_END_INIT
            status = NT_SUCCESS
    elif operation == VSTOR_END_INITIALIZATION:
        if controller.state == VSP_END_INIT:
            controller.state = VSP_READY
            controller.notices &= ~<uint32_t> VSP_NOTICE_ENUMERATE   # the guest looks for units now (4.4)
            status = NT_SUCCESS
    elif operation == VSTOR_CREATE_SUB_CHANNELS:
        if length < 16:
            return vsp_fault(vsp, VSP_FAULT_PACKET)
        status = vsp_create_sub_channels(controller, packet.u.sub_channel_count)
    elif operation in (VSTOR_RESET_LUN, VSTOR_RESET_ADAPTER, VSTOR_RESET_BUS):
        if controller.state == VSP_READY:           # success at once, what is in flight runs on (section 12)
            vsp_reset_units(controller, packet)
            status = NT_SUCCESS
    elif operation != VSTOR_FCHBA_DATA:      # on a SCSI channel that one is only the wrong state
        return vsp_fault(vsp, VSP_FAULT_OPERATION)
    vsp_reply(vsp, transaction_id, reply_length, status, &reply)
    return 0


cdef int vsp_packet(Vsp *vsp, uint32_t length) noexcept nogil:
    """One packet in vsp.buffer, its descriptor validated by the ring. -1: channel fault."""
    cdef PacketDescriptor descriptor
    cdef VstorPacket packet
    cdef uint32_t payload, buffer_length
    cdef bint direct, reachable
    memcpy(&descriptor, vsp.buffer, sizeof(descriptor))
    direct = descriptor.type == PACKET_GPA_DIRECT
    if not direct and descriptor.type != PACKET_IN_BAND:
        return vsp_fault(vsp, VSP_FAULT_PACKET)              # completions and transfer pages (4.1)
    if not descriptor.flags & PACKET_COMPLETION_REQUESTED:   # no transaction to answer (2.4)
        return vsp_fault(vsp, VSP_FAULT_PACKET)
    payload = length - 8 * <uint32_t> descriptor.data_offset8
    if payload < HEADER_BYTES:
        return vsp_fault(vsp, VSP_FAULT_PACKET)
    memset(&packet, 0, sizeof(packet))                       # a short packet leaves zeros, not what was there before
    memcpy(&packet, vsp.buffer + 8 * <uint32_t> descriptor.data_offset8, min(payload, <uint32_t> VSTOR_PACKET_BYTES))
    if packet.operation != VSTOR_EXECUTE_SRB:
        # The header is checked whatever it belongs to (2.2), and nothing of the buffer is used.
        if direct and vsp_ranges(vsp, vsp.free, vsp.buffer, length, 0, &buffer_length, &reachable) < 0:
            return vsp_fault(vsp, VSP_FAULT_RANGE)
        return vsp_negotiate(vsp, descriptor.transaction_id, &packet, payload)
    if payload < SRB_BYTES:
        return vsp_fault(vsp, VSP_FAULT_PACKET)
    return vsp_execute(vsp, descriptor.transaction_id, &packet, vsp.buffer, length, direct, payload)


cdef bint vsp_has_room(Vsp *vsp) noexcept nogil:
    """Whether all requests in flight and one more can be answered (section 14). A fault is room: nothing is
    answered."""
    cdef int64_t needed = <int64_t> COMPLETION_BYTES * (vsp.in_flight + 1)
    cdef int status
    if vsp.room > needed:
        return True
    vsp.room = ring_free(&vsp.outgoing)
    if vsp.room > needed:
        return True
    status = ring_want(&vsp.outgoing, <uint32_t> needed) if vsp.room >= 0 else -1
    if status == 0:
        vsp.starved = True
        return False
    if status < 0:
        vsp_fault(vsp, VSP_FAULT_RING)
        return False
    vsp.room = ring_free(&vsp.outgoing)
    return True


cdef int vsp_poll(Vsp *vsp) noexcept nogil:
    cdef uint32_t length
    cdef int taken = 0, status
    if not vsp.open or vsp.fault != VSP_NO_FAULT:
        return 0
    if not vsp.primary and vsp.controller.state != VSP_READY:
        return 0                             # a sub-channel's packets wait unread (4.3)
    while taken < VSP_BUDGET:
        if vsp.free == NULL or not ring_poll(&vsp.incoming):
            break
        if not vsp_has_room(vsp):
            break
        if vsp.starved:
            vsp.starved = False
            ring_want_no_more(&vsp.outgoing)
        status = ring_take(&vsp.incoming, vsp.buffer, VSP_PACKET_MAX, &length)
        if status == RING_EMPTY:
            break
        if status != RING_OK:
            vsp_fault(vsp, VSP_FAULT_RING)
            break
        taken += 1
        vsp.taken = True
        if vsp_packet(vsp, length) < 0:
            break
        if taken % VSP_PUBLISH == 0:         # both sides work at once, rather than in turns of a whole batch
            vsp_publish(vsp)
    if vsp.controller.notices and vsp.primary:
        vsp_notify(vsp)
        taken += vsp.controller.notices == 0
    return taken


cdef void vsp_publish(Vsp *vsp) noexcept nogil:
    cdef int status
    if not vsp.open or vsp.fault != VSP_NO_FAULT:
        return
    if vsp.taken:
        vsp.taken = False
        status = ring_release(&vsp.incoming)
        if status < 0:
            vsp_fault(vsp, VSP_FAULT_RING)
            return
        if status and event_signal_guest(vsp.events, vsp.relid):
            count64(&vsp.counters.doorbells, 1)
            count64(&vsp.counters.interrupts_sent, 1)
    if vsp.staged:
        vsp.staged = False
        status = ring_publish(&vsp.outgoing)
        if status < 0:
            vsp_fault(vsp, VSP_FAULT_RING)
        elif status and event_signal_guest(vsp.events, vsp.relid):
            count64(&vsp.counters.doorbells, 1)
            count64(&vsp.counters.interrupts_sent, 1)


cdef bint vsp_ready(Vsp *vsp) noexcept nogil:
    if not vsp.open or vsp.fault != VSP_NO_FAULT or vsp.free == NULL:
        return False
    if not vsp.primary and vsp.controller.state != VSP_READY:
        return False
    if not ring_poll(&vsp.incoming):         # also when starved: a guest may have taken its packet back
        return False
    return not vsp.starved or ring_free(&vsp.outgoing) > <int64_t> COMPLETION_BYTES * (vsp.in_flight + 1)


cdef void vsp_mask(Vsp *vsp) noexcept nogil:
    if vsp.open and vsp.fault == VSP_NO_FAULT:
        ring_mask(&vsp.incoming)


cdef bint vsp_unmask(Vsp *vsp) noexcept nogil:
    cdef int status
    if not vsp.open or vsp.fault != VSP_NO_FAULT:
        return False
    status = ring_unmask(&vsp.incoming)
    if status < 0:
        vsp_fault(vsp, VSP_FAULT_RING)
        return False
    return vsp_ready(vsp)
