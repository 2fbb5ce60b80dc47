"""PCI configuration space of the IDE controller (ide.md 1.2)."""

from libc.stdint cimport uint32_t

from hvcore.ide.abi cimport PCI_BUS_MASTER, PCI_IO
from hvcore.ide.controller cimport ide_pci_apply

cdef enum:
    CONFIG_ID = 0x00
    CONFIG_COMMAND = 0x04
    CONFIG_CLASS = 0x08
    CONFIG_BAR4 = 0x20
    CONFIG_TIMING = 0x40
    CONFIG_SECONDARY_TIMING = 0x44
    CONFIG_UDMA = 0x48
    CONFIG_MANUFACTURER = 0xF8


cdef uint32_t ide_pci_read(const IdeController *controller, uint32_t offset) noexcept nogil:
    if offset == CONFIG_ID:
        return 0x71118086
    if offset == CONFIG_COMMAND:
        return controller.pci.command
    if offset == CONFIG_CLASS:
        return 0x01018001
    if offset == CONFIG_BAR4:
        return controller.pci.bar4
    if offset == CONFIG_TIMING:
        return controller.pci.timing
    if offset == CONFIG_SECONDARY_TIMING:
        return controller.pci.secondary_timing
    if offset == CONFIG_UDMA:
        return controller.pci.udma
    if offset == CONFIG_MANUFACTURER:
        return 0x00000F30
    return 0


cdef void ide_pci_write(IdeController *controller, uint32_t offset, uint32_t value) noexcept nogil:
    cdef uint32_t writable = PCI_IO | PCI_BUS_MASTER
    if offset == CONFIG_COMMAND:
        # The write-one-to-clear status bits are never set here, so there is nothing to clear.
        controller.pci.command = (controller.pci.command & ~writable) | (value & writable)
    elif offset == CONFIG_BAR4:
        controller.pci.bar4 = (value & 0xFFF0) | 1
    elif offset == CONFIG_TIMING:
        controller.pci.timing = value
    elif offset == CONFIG_SECONDARY_TIMING:
        controller.pci.secondary_timing = value
    elif offset == CONFIG_UDMA:
        controller.pci.udma = value
    ide_pci_apply(controller)
