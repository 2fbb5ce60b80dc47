# The storage VSC: the child's end of a storvsp channel (storvsp.md), as Python sees it. Its data path is queue.pxd, the
# requests on it transfer.pxd; both are found here too.

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.memory.region cimport Region
from hvcore.storage.protocol cimport VstorPacket
from hvcore.storage.queue cimport (
    VSC_CORRUPT, VSC_GONE, VSC_INTERRUPTED, VSC_OK, VSC_PACKET_MAX, VSC_PFNS, VSC_TIMEOUT, Vsc, VscSlot, VscUnit,
    vsc_abandon, vsc_admits, vsc_again, vsc_pages, vsc_publish, vsc_read_srb, vsc_send, vsc_slot, vsc_slot_return,
    vsc_srb, vsc_wait, vsc_wait_for)
from hvcore.storage.transfer cimport Transfer

# CLOCK_MONOTONIC ns of a timeout in seconds, -1 for None.
cdef int64_t deadline_of(timeout) except? -2

cdef class Channel:
    cdef Vsc vsc
    cdef bint ready
    cdef uint8_t **ring_pages
    cdef Region memory
    cdef Region events
    cdef object allocate         # pages -> first page number
    cdef list held               # guest memory whose requests were abandoned and may still be answered
    cdef readonly int version
    cdef readonly object relid
    cdef readonly int sub_channels_max   # that the host allows
    cdef object watcher          # keeps alive what vsc.watch_word points into
    cdef int limit_transfers(self, uint32_t limit) except -1
    cdef int negotiate(self, VstorPacket *packet, int64_t deadline) except -1
    cdef int64_t exchange(self, VstorPacket *packet, uint32_t length, uint8_t *data_in, const uint8_t *data_out,
                          bint patient, int64_t deadline) except -1
    cdef object run(self, Transfer *transfer, uint64_t offset, uint64_t block, uint8_t *data, uint64_t length,
                    uint32_t sector_size, uint8_t lun, uint32_t queue_depth, int64_t deadline)
    cdef object run_on(self, Transfer *transfer, uint64_t offset, uint64_t block, data, Py_buffer *view,
                       uint32_t sector_size, uint8_t lun, uint32_t queue_depth, int64_t deadline)
    cdef object run_spread(self, Transfer *model, tuple also, uint64_t offset, uint64_t block, uint8_t *data,
                           uint64_t length, uint32_t sector_size, uint8_t lun, uint32_t queue_depth, int64_t deadline)
    cdef int prepare(self, Transfer *transfer, uint64_t offset, uint64_t block, uint8_t *data, uint64_t length,
                     uint32_t sector_size, uint8_t lun, uint32_t queue_depth) except -1
    cdef void abandon(self, void *owner) noexcept
    cdef int ensure_pages(self, uint32_t lun, uint64_t pages) except -1
