"""The IDE controller as a Python object: the device model without a bus."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import errno

from hvcore.disk.ops cimport (
    DISK_CLOSED,
    DISK_NO_SPACE,
    DISK_OK,
    DISK_READ_ERROR,
    DISK_READ_ONLY,
    DISK_WRITE_ERROR,
    Backend,
    DiskRef,
)
from hvcore.ide.abi cimport IDE_BUFFER_BYTES, IDE_BUS_MASTER_BASE, IDE_SECTOR
from hvcore.ide.channel cimport IDE_MEDIA_FLUSH, IDE_MEDIA_READ, IDE_MEDIA_TRIM, IdeMedia
from hvcore.ide.controller cimport (
    IDE_BAD_SIZE,
    IDE_BAD_SECTOR_SIZE,
    IdeController,
    IdeDriveSetup,
    ide_attach,
    ide_init,
    ide_irq,
    ide_media_complete,
    ide_media_pending,
    ide_read,
    ide_read_string,
    ide_reset,
    ide_write,
    ide_write_string,
)
from hvcore.ide.dma cimport IdeMemory
from hvcore.ide.pci cimport ide_pci_read, ide_pci_write


cdef int fetch(void *context, uint32_t address, void *destination, uint32_t bytes) noexcept nogil:
    cdef const Py_buffer *view = <const Py_buffer *> context
    cdef uint64_t size = <uint64_t> view.len
    if address > size or size - address < bytes:
        return -1
    memcpy(destination, <const uint8_t *> view.buf + address, bytes)
    return 0


cdef int store(void *context, uint32_t address, const void *source, uint32_t bytes) noexcept nogil:
    cdef const Py_buffer *view = <const Py_buffer *> context
    cdef uint64_t size = <uint64_t> view.len
    if address > size or size - address < bytes:
        return -1
    memcpy(<uint8_t *> view.buf + address, source, bytes)
    return 0


@cython.final
@cython.no_gc_clear                  # a cycle's collection must not drop the memory before __dealloc__ releases it
cdef class Controller:
    """A PIIX4-like IDE controller with two channels of two drives, its ports reached by calls (ide.md).

    drives: up to four images or None (primary master, primary slave, secondary master, secondary slave). An image is
    a disk backend, or any object with size, sector_size (512), read(offset, length) -> bytes, write(offset, data),
    flush() and perhaps read_only, physical_sector_size and trim(offset, length); an OSError from it is a medium error.
    memory: a writable buffer, guest memory for bus-master DMA; guest address = offset. Without it every PRD table is
    unreadable.
    bus_master: first of its 16 bus-master ports, a multiple of 16; 0: none until config_write() assigns them.
    short_table_interrupt: a PRD table that ends before the transfer ends the command with an interrupt (ide.md 5.2);
    False: without, as the bus-master specification has it.
    trim: advertise DATA SET MANAGEMENT for images that have trim.

    Media accesses are done inside the port call that causes them, unless media_held is set: then the drive stays BSY
    until run_media(). One call at a time; RuntimeError for a call from inside an image's method. The images stay the
    caller's: close() leaves them open.
    """

    def __cinit__(self):
        self.closed = True
        self.core = <IdeController *> calloc(1, sizeof(IdeController))
        if self.core == NULL:
            raise MemoryError("no memory for an IDE controller")

    def __init__(self, drives, memory=None, *, uint16_t bus_master=IDE_BUS_MASTER_BASE,
                 bint short_table_interrupt=True, bint trim=False):
        cdef IdeMemory reached
        cdef IdeDriveSetup setup
        cdef int number
        cdef Backend backend
        if self.images is not None:
            raise RuntimeError("a controller is initialised once")
        if bus_master % 16:
            raise ValueError(f"the bus-master ports begin at a multiple of 16, not at {bus_master:#x}")
        images = list(drives)
        if len(images) > 4:
            raise ValueError(f"an IDE controller has at most 4 drives, not {len(images)}")
        self.images = images + [None] * (4 - len(images))
        if memory is not None:
            PyObject_GetBuffer(memory, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
            self.has_memory = True
            reached.context = &self.view
            reached.size_bytes = self.view.len
            reached.fetch = fetch
            reached.store = store
        ide_init(self.core, bus_master, &reached if memory is not None else NULL)
        self.core.channels[0].short_table_silent = not short_table_interrupt
        self.core.channels[1].short_table_silent = not short_table_interrupt
        for number, image in enumerate(self.images):
            if image is None:
                continue
            memset(&setup, 0, sizeof(setup))
            if isinstance(image, Backend):
                backend = image
                if backend.ref.ops == NULL:
                    raise ValueError(f"drive {number}: the disk is closed")
                self.disks[number] = &backend.ref
                can_trim = backend.ref.can_trim
            else:
                can_trim = hasattr(image, "trim")
            if image.size % image.sector_size:
                raise ValueError(f"drive {number}: {image.size} bytes are not whole sectors of {image.sector_size}")
            setup.sector_size = image.sector_size
            setup.sectors = image.size // image.sector_size
            setup.physical_sector_size = getattr(image, "physical_sector_size", image.sector_size)
            setup.read_only = bool(getattr(image, "read_only", False))
            setup.can_trim = trim and can_trim
            self.buffers[number] = <uint8_t *> malloc(IDE_BUFFER_BYTES)
            if self.buffers[number] == NULL:
                raise MemoryError("no memory for a PIO buffer")
            setup.buffer = self.buffers[number]
            status = ide_attach(self.core, number, &setup)
            if status == IDE_BAD_SECTOR_SIZE:
                raise ValueError(
                    f"drive {number}: an IDE drive has sectors of 512 bytes, the image's are {image.sector_size}")
            if status == IDE_BAD_SIZE:
                raise ValueError(f"drive {number}: {image.size} bytes, an IDE drive has 1 to 2**48 sectors of 512")
        self.closed = False

    cdef int check(self) except -1:
        if self.closed:
            raise ValueError("the controller is closed")
        if self.busy:
            raise RuntimeError("a media access of this controller is running")
        return 0

    # Media

    cdef int access_object(self, const IdeMedia *media, int count) except? -100:
        """One access to an image that is a Python object."""
        cdef const uint8_t *source
        cdef uint8_t *to
        cdef Py_ssize_t length = <Py_ssize_t> media.sectors * IDE_SECTOR
        cdef int i
        cdef Py_buffer view
        image = self.images[media.drive]
        offset = media.lba * IDE_SECTOR
        try:
            if media.kind == IDE_MEDIA_FLUSH:
                image.flush()
            elif media.kind == IDE_MEDIA_TRIM:
                image.trim(offset, length)
            elif media.kind == IDE_MEDIA_READ:
                data = image.read(offset, length)
                PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
                try:
                    if view.len != length:
                        return DISK_READ_ERROR
                    source = <const uint8_t *> view.buf
                    for i in range(count):
                        memcpy(self.vectors[i].iov_base, source, self.vectors[i].iov_len)
                        source += self.vectors[i].iov_len
                finally:
                    PyBuffer_Release(&view)
            else:
                data = PyBytes_FromStringAndSize(NULL, length)
                to = <uint8_t *> PyBytes_AS_STRING(data)
                for i in range(count):
                    memcpy(to, self.vectors[i].iov_base, self.vectors[i].iov_len)
                    to += self.vectors[i].iov_len
                image.write(offset, data)
        except OSError as error:
            if media.kind == IDE_MEDIA_READ:
                return DISK_READ_ERROR
            return {errno.EROFS: DISK_READ_ONLY, errno.ENOSPC: DISK_NO_SPACE}.get(error.errno, DISK_WRITE_ERROR)
        return DISK_OK

    cdef int access(self, const IdeMedia *media) except? -100:
        cdef const DiskRef *disk = self.disks[media.drive]
        cdef uint64_t offset = media.lba * IDE_SECTOR
        cdef int kind = media.kind, count = 0, status
        cdef uint64_t length = <uint64_t> media.sectors * IDE_SECTOR
        cdef uint32_t i
        if media.buffer != NULL:
            self.vectors[0].iov_base = media.buffer
            self.vectors[0].iov_len = length
            count = 1
        else:
            for i in range(media.segment_count):
                self.vectors[count].iov_base = <uint8_t *> self.view.buf + media.segments[i].address
                self.vectors[count].iov_len = media.segments[i].bytes
                count += 1
            if media.tail_bytes:
                self.vectors[count].iov_base = self.sink
                self.vectors[count].iov_len = media.tail_bytes
                count += 1
        if disk == NULL:
            return self.access_object(media, count)
        if disk.ops == NULL:
            return DISK_CLOSED
        with nogil:
            if kind == IDE_MEDIA_FLUSH:
                status = disk.ops.flush(disk.state)
            elif kind == IDE_MEDIA_TRIM:
                status = disk.ops.trim(disk.state, offset, length)
            elif kind == IDE_MEDIA_READ:
                status = disk.ops.read(disk.state, offset, self.vectors, count, 0)
            else:
                status = disk.ops.write(disk.state, offset, self.vectors, count, 0)
        return status

    cdef int run(self, uint32_t channel) except -1:
        """One media request of the channel; 0 when there is none."""
        cdef IdeMedia *media = ide_media_pending(self.core, channel)
        cdef uint32_t generation
        cdef int status = DISK_READ_ERROR
        if media == NULL:
            return 0
        generation = media.generation
        self.busy = True
        try:
            status = self.access(media)
        finally:
            self.busy = False
            # Also when the image raised something of its own: the drive must not stay busy for ever.
            ide_media_complete(self.core, channel, generation, status)
        return 1

    cdef int settle(self) except -1:
        """Does what the port access left to do on the media."""
        if self.media_held:
            return 0
        while self.run(0) or self.run(1):
            pass
        return 0

    def run_media(self, uint32_t channel):
        """Does the media access that the channel waits for, if any; True when there was one. For media_held."""
        self.check()
        if channel > 1:
            raise ValueError(f"an IDE controller has channels 0 and 1, not {channel}")
        return bool(self.run(channel))

    # Ports

    def inb(self, uint16_t port):
        """An 8-bit IN."""
        self.check()
        value = ide_read(self.core, port, 1)
        self.settle()
        return value

    def inw(self, uint16_t port):
        """A 16-bit IN."""
        self.check()
        value = ide_read(self.core, port, 2)
        self.settle()
        return value

    def inl(self, uint16_t port):
        """A 32-bit IN."""
        self.check()
        value = ide_read(self.core, port, 4)
        self.settle()
        return value

    def outb(self, uint16_t port, uint8_t value):
        """An 8-bit OUT."""
        self.check()
        ide_write(self.core, port, 1, value)
        self.settle()

    def outw(self, uint16_t port, uint16_t value):
        """A 16-bit OUT."""
        self.check()
        ide_write(self.core, port, 2, value)
        self.settle()

    def outl(self, uint16_t port, uint32_t value):
        """A 32-bit OUT."""
        self.check()
        ide_write(self.core, port, 4, value)
        self.settle()

    def insw(self, uint16_t port, buffer):
        """REP INSW: fills a writable buffer, one word for each two of its bytes."""
        cdef Py_buffer view
        cdef uint8_t *to
        cdef uint64_t words
        cdef uint32_t done
        self.check()
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if view.len % 2:
                raise ValueError(f"the buffer's {view.len} bytes are not whole words")
            to = <uint8_t *> view.buf
            words = view.len // 2
            while words:
                done = ide_read_string(self.core, port, to, <uint32_t> min(words, <uint64_t> 0x10000000))
                self.settle()
                to += 2 * <uint64_t> done
                words -= done
        finally:
            PyBuffer_Release(&view)

    def outsw(self, uint16_t port, buffer):
        """REP OUTSW: writes the buffer's words."""
        cdef Py_buffer view
        cdef const uint8_t *source
        cdef uint64_t words
        cdef uint32_t done
        self.check()
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if view.len % 2:
                raise ValueError(f"the buffer's {view.len} bytes are not whole words")
            source = <const uint8_t *> view.buf
            words = view.len // 2
            while words:
                done = ide_write_string(self.core, port, source, <uint32_t> min(words, <uint64_t> 0x10000000))
                self.settle()
                source += 2 * <uint64_t> done
                words -= done
        finally:
            PyBuffer_Release(&view)

    def config_read(self, uint32_t offset):
        """A dword of PCI configuration space; offset: 0, 4, .. 252."""
        self.check()
        return ide_pci_read(self.core, offset)

    def config_write(self, uint32_t offset, uint32_t value):
        """Writes a dword of PCI configuration space."""
        self.check()
        ide_pci_write(self.core, offset, value)

    def irq(self, uint32_t channel):
        """The channel's interrupt line."""
        self.check()
        if channel > 1:
            raise ValueError(f"an IDE controller has channels 0 and 1, not {channel}")
        return bool(ide_irq(self.core, channel))

    def reset(self):
        """Power-on reset; the media keep their content."""
        self.check()
        ide_reset(self.core)
        self.settle()

    @property
    def port_accesses(self):
        """Accesses so far; a string transfer is one, or one more for each media access inside it."""
        self.check()
        return self.core.port_accesses

    @property
    def string_words(self):
        """Words moved by string transfers."""
        self.check()
        return self.core.string_words

    @property
    def media_requests(self):
        self.check()
        return self.core.channels[0].media_requests + self.core.channels[1].media_requests

    @property
    def interrupts(self):
        """Rises of the two interrupt lines."""
        self.check()
        return self.core.channels[0].interrupts + self.core.channels[1].interrupts

    def close(self):
        """Lets go of memory and images. Idempotent."""
        if self.busy:
            raise RuntimeError("a media access of this controller is running")
        self.closed = True
        self.images = [None] * 4
        if self.has_memory:
            self.has_memory = False
            PyBuffer_Release(&self.view)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        cdef int i
        if self.has_memory:
            self.has_memory = False
            PyBuffer_Release(&self.view)
        for i in range(4):
            free(self.buffers[i])
        free(self.core)
