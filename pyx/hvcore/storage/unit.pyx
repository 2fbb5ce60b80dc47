"""One LUN behind a channel: the calls that a guest's applications make once per request.

Nothing here is Python between the caller and the ring: what a call costs beside the request itself is its arguments,
one look at its buffer, and giving the interpreter up once.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.storage.protocol cimport VstorPacket, VstorScsiRequest
from hvcore.storage.vsc cimport Channel, Transfer, deadline_of, vsc_srb

cdef uint8_t[6] TEST_UNIT_READY = [0, 0, 0, 0, 0, 0]


cdef class Unit:
    """Base of a disk that a guest sees.

    Its class has `_queue()`, the channel of the next request where the adapter has several; `_check(offset, length)`,
    which raises for a range or a disk that is not there; and `_error(failure, blocks)`, the exception for what
    Channel.transfer() returns. All calls may run at the same time from several threads.
    """

    cdef public object _adapter              # `single`: its channel when it has one only
    cdef public uint64_t size                # bytes
    cdef public uint32_t sector_size
    cdef public uint8_t lun
    cdef public bint removed

    cdef Channel channel_of(self):
        channel = self._adapter.single
        return channel if channel is not None else self._queue()

    cdef int64_t place(self, offset, uint64_t length) except -1:
        """The offset of a range that is on the disk; ValueError for any other."""
        cdef int overflow = 0
        cdef long long place = PyLong_AsLongLongAndOverflow(offset, &overflow)
        # Overflow leaves -1. A sector is a power of two; length and place are compared without a sum that could wrap.
        if (self.removed or place < 0 or (<uint64_t> place | length) & (self.sector_size - 1) or length > self.size
                or <uint64_t> place > self.size - length):
            self._check(offset, length)
            raise ValueError(f"{length} bytes at {offset} are not within the disk of {self.size} bytes")
        return place

    def ready(self, timeout=None):
        """TEST UNIT READY: returns when the device says that it is, else DiskError. Moves no data."""
        cdef VstorPacket packet
        cdef VstorScsiRequest *srb = &packet.u.scsi
        if self.removed:
            self._present()
        vsc_srb(&packet, TEST_UNIT_READY, 6, 0, 2)
        srb.lun = self.lun
        self.channel_of().exchange(&packet, 0, NULL, NULL, True, deadline_of(timeout))
        if srb.srb_status & 0x3F != 1 or srb.scsi_status:
            sense = bytes(srb.payload[:20]) if srb.srb_status & 0x80 else b""
            raise self._error((0, srb.srb_status, srb.scsi_status, sense, b""), None)

    def readinto(self, offset, buffer, timeout=None):
        """Fills a writable buffer; one of guest.alloc() without a copy."""
        self.move(False, offset, buffer, timeout, False)

    def write(self, offset, data, timeout=None, *, bint fua=False):
        """Writes a buffer; durable after the next flush(), or with fua when this returns."""
        self.move(True, offset, data, timeout, fua)

    def read(self, offset, length, timeout=None):
        """`length` bytes from `offset`."""
        cdef Transfer transfer
        cdef int overflow = 0
        cdef long long size = PyLong_AsLongLongAndOverflow(length, &overflow)
        if size < 0:
            self._check(offset, length)
        cdef int64_t place = self.place(offset, size)
        memset(&transfer, 0, sizeof(transfer))
        result = PyBytes_FromStringAndSize(NULL, size)
        cdef Channel channel = self.channel_of()
        failure = channel.run(&transfer, place, size, <uint8_t *> PyBytes_AS_STRING(result), size, self.sector_size,
                              self.lun, 0, deadline_of(timeout))
        if failure is not None:
            raise self._error(failure, None)
        return result

    cdef int move(self, bint write, offset, buffer, timeout, bint fua) except -1:
        cdef Transfer transfer
        cdef Py_buffer view
        cdef int64_t place
        cdef Channel channel
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE if write else PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            place = self.place(offset, view.len)
            channel = self.channel_of()
            memset(&transfer, 0, sizeof(transfer))
            transfer.write = write
            transfer.fua = fua
            failure = channel.run_on(&transfer, place, view.len, buffer, &view, self.sector_size, self.lun, 0,
                                     deadline_of(timeout))
        finally:
            PyBuffer_Release(&view)
        if failure is not None:
            raise self._error(failure, None)
        return 0
