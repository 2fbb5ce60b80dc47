# The controller's PCI configuration space (ide.md 1.2), in dwords; narrower accesses are the PCI bus's to compose.

from libc.stdint cimport uint32_t

from hvcore.ide.controller cimport IdeController

cdef uint32_t ide_pci_read(const IdeController *controller, uint32_t offset) noexcept nogil
cdef void ide_pci_write(IdeController *controller, uint32_t offset, uint32_t value) noexcept nogil
