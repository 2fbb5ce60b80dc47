"""A VM's worker process as its host sees it: started, told of guests, and replaced when it dies."""

import json
import os
import socket

from hvcore.dispatch.host import HANDOVER_SIZE, Dispatch
from hvcore.errors import HostError
from hvcore.hypervisor.intercept import Intercepts
from hvcore.linux import descriptors
from hvcore.memory.region import Region
from hvcore.partition.process import end, kill, spawn

START_TIMEOUT = 30.0  # a loaded machine may take long to start an interpreter
ANSWER_TIMEOUT = 10.0
END_PATIENCE = 2.0

Drive = tuple[int, int, int, bool, str, int]  # see hvcore.dispatch.worker.Worker
GuestDrive = tuple[int, int, int, bool, str, int, bool, int]

# What a VM with disks on the trapped path has the hypervisor intercept; the worker adds the bus master's ports, which
# the controller's PCI function places.
INTERCEPTED_PORTS = {
    "ide": [(0x1F0, 8), (0x3F6, 1), (0x1E0, 1), (0x170, 8), (0x376, 1), (0x160, 1)],
    "pci": [(0xCF8, 8)],
}


class Emulator:
    """One worker process. Its end shows as pidfd turning readable; the owner then closes it and may start another."""

    def __init__(
        self,
        dispatch: Dispatch,
        drives: list[Drive],
        memory: Region | None,
        guest_drives: list[GuestDrive] | None = None,
        intercepts: Intercepts | None = None,
    ) -> None:
        """Starts the process and waits until it serves. HostError when it fails.

        memory, intercepts: of the guest that is there. guest_drives: those of the controller that the guest sees.
        """
        self._dispatch = dispatch
        self._attached = False
        self._intercepts: Intercepts | None = None
        self.shared = Region.create(HANDOVER_SIZE, "hvcore-worker")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = ours
        with theirs:
            self.process = spawn("hvcore.worker", [str(theirs.fileno())], [theirs.fileno()])
        try:
            self.pidfd = os.pidfd_open(self.process.pid)
        except BaseException:
            kill(self.process)
            ours.close()
            raise
        try:
            order = {"drives": drives, "guest_drives": guest_drives or []}
            self._tell(order, [self.shared.fd, dispatch.worker_bell], START_TIMEOUT)
            # First the memory: requests that waited for a worker go to it as soon as it is attached. Last the guest's
            # port accesses, which may ask for media.
            if memory is not None:
                self._show(memory, intercepts)
            dispatch.worker_attached(self.shared)
            self._attached = True
            if intercepts is not None:
                intercepts.worker_attached()
        except BaseException:
            self.close()
            raise

    def _tell(self, message: object, fds: list[int], timeout: float) -> None:
        try:
            self._sock.settimeout(timeout)
            descriptors.send(self._sock, json.dumps(message).encode(), fds)
            answer = self._sock.recv(4096)
        except OSError as error:
            raise HostError(f"the worker process does not answer: {error}") from None
        if json.loads(answer or b"{}") != {"done": True}:
            raise HostError("the worker process ended while it was starting")

    def memory(self, memory: Region | None, intercepts: Intercepts | None = None) -> None:
        """A guest's memory and port intercepts, or that there is none. No request may be in flight. HostError: the
        worker is of no use."""
        self._show(memory, intercepts)
        if intercepts is not None:
            intercepts.worker_attached()

    def _show(self, memory: Region | None, intercepts: Intercepts | None) -> None:
        regions = [region for region in (memory, intercepts.region if intercepts is not None else None) if region]
        epoch = intercepts.next_epoch() if intercepts is not None else 0
        fds = [region.fd for region in regions]
        self._tell({"memory": memory is not None, "epoch": epoch}, fds, ANSWER_TIMEOUT)
        self._intercepts = intercepts

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """At once: whatever it had in hand is lost."""
        kill(self.process)

    def close(self) -> None:
        """Ends the process, aborts what it had in hand, and gives everything back. Idempotent."""
        self._sock.close()
        end(self.process, END_PATIENCE)
        if self._attached:  # only now: until it ended the worker may still write into the guest's pages
            self._attached = False
            self._dispatch.worker_lost()
        if self._intercepts is not None:
            self._intercepts.worker_lost()
            self._intercepts = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self.shared.close()
