"""Child partitions as the hypervisor sees them: memory, event page, doorbell; nothing of what runs in them."""

import os
from uuid import UUID

from hvcore.hypervisor.intercept import Intercepts
from hvcore.memory.region import Region
from hvcore.sizes import format_size
from hvcore.vmbus.attach import EVENT_PAGE_BYTES
from hvcore.vmbus.transport import Attachment

MEMORY_MIN = 1 << 20
MEMORY_MAX = 1 << 40

Ports = dict[str, list[tuple[int, int]]]  # device -> (first port, count) of what is intercepted


def machine_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class ChildPartition:
    """One attached child: made when a guest attaches, closed when it is gone, so that no guest sees what another left.

    The memory is charged to the hypervisor until close().
    """

    def __init__(
        self, hypervisor: "Hypervisor", memory_bytes: int, vm_id: UUID, intercepted: Ports | None = None
    ) -> None:
        self._hypervisor = hypervisor
        self._charged = memory_bytes
        self.memory = Region.create(memory_bytes, "hvcore-guest")
        self.events = Region.create(EVENT_PAGE_BYTES, "hvcore-events")
        self.intercepts = Intercepts(intercepted) if intercepted is not None else None
        # Only the guest writes it; the host waits on it and reads it never (docs/vmbus-user.md).
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.vm_id = vm_id

    @property
    def attachment(self) -> Attachment:
        """What the vmbus-user handshake hands out."""
        intercepts = self.intercepts.region.fd if self.intercepts is not None else None
        return Attachment(
            self.memory.fd, self.memory.size, self.doorbell, self.events.fd, self.vm_id, intercepts_fd=intercepts
        )

    def close(self) -> None:
        """Gives memory and doorbell back. Nothing of the host may use them any more. Idempotent."""
        if self.doorbell < 0:
            return
        os.close(self.doorbell)
        self.doorbell = -1
        self.memory.close()
        self.events.close()
        if self.intercepts is not None:
            self.intercepts.close()
        self._hypervisor.release(self._charged)


class Hypervisor:
    """Charges guest memory against a limit: `memory_limit` bytes for all partitions, by default half the machine's."""

    def __init__(self, memory_limit: int | None = None) -> None:
        self.memory_limit = machine_memory() // 2 if memory_limit is None else memory_limit
        self.memory_charged = 0

    def check(self, memory_bytes: int) -> None:
        """ValueError when no partition of this size can ever be made."""
        if memory_bytes % 4096 or not MEMORY_MIN <= memory_bytes <= MEMORY_MAX:
            raise ValueError(f"guest memory of {memory_bytes} bytes is not a multiple of 4096 of at least 1 MiB")
        if memory_bytes > self.memory_limit:
            raise ValueError(
                f"guest memory of {format_size(memory_bytes)} is more than all partitions together may have, "
                f"{format_size(self.memory_limit)}"
            )

    def create_child(self, memory_bytes: int, vm_id: UUID, intercepted: Ports | None = None) -> ChildPartition:
        """A partition with zeroed memory. MemoryError when the others leave too little.

        intercepted: the ports whose accesses go to the VM's worker; None: the partition has no port intercepts.
        """
        self.check(memory_bytes)
        if self.memory_charged + memory_bytes > self.memory_limit:
            raise MemoryError(
                f"guest memory of {format_size(memory_bytes)} does not fit: {format_size(self.memory_charged)} of "
                f"{format_size(self.memory_limit)} are in use"
            )
        self.memory_charged += memory_bytes
        try:
            return ChildPartition(self, memory_bytes, vm_id, intercepted)
        except BaseException:
            self.memory_charged -= memory_bytes
            raise

    def release(self, memory_bytes: int) -> None:
        self.memory_charged -= memory_bytes
