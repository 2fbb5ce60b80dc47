"""The exceptions of hvcore: one tree, so that `except hvcore.Error` catches all that is not a caller's mistake.

Bad arguments are ValueError or TypeError, as everywhere in Python.
"""

from typing import Any


class Error(Exception):
    """Base of everything that hvcore raises of its own."""


class RingFull(Error):
    """The packet does not fit into the ring now: wait for the reader, then try again."""


class RingCorrupt(Error):
    """The peer broke a rule of the ring or packet format; the channel is dead (vmbus.md RB-43)."""


class ProtocolError(Error):
    """The peer sent a message that the protocol does not allow here."""


class _DeviceError(Error, OSError):
    """One message, and an errno that is set afterwards: OSError alone would lose that on its way through pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {**self.__dict__, "errno": self.errno}


class ImageError(_DeviceError):
    """A disk image cannot be opened or is damaged; the message names the file and what is wrong with it."""


class ImageDamaged(ImageError):
    """An image breaks a rule of its format.

    structure: the part of the file that does, in words. offset: where it begins in the file (bytes); None: it has no
    one place.
    """

    def __init__(self, message: str, *, structure: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.structure = structure
        self.offset = offset


class ImageDirty(ImageError):
    """An image was not closed cleanly and this way of opening cannot mend it; the message names the remedy."""


class ImageInUse(ImageError):
    """Another program has the image open in a way that excludes this one."""


class ParentError(ImageError):
    """The chain of a differencing disk is broken: a parent is missing, is not the one meant, or leads in a circle."""


class HostError(Error):
    """The host process refused a request or is gone."""


class GuestGone(Error):
    """The other side of the VMBus ended: nothing more will be answered."""


class DiskError(_DeviceError):
    """A disk request failed on the device.

    srb_status, scsi_status, sense_key, asc, ascq: as the device answered (storvsp.md 5.4, 6). For a batch, index is
    the first failed request and statuses the SRB status of each request (1 = success); otherwise None. ata_status,
    ata_error: of a disk behind an IDE controller (ide.md 1.4), otherwise None.
    """

    ata_status: int | None = None
    ata_error: int | None = None

    def __init__(
        self,
        message: str,
        *,
        srb_status: int = 0,
        scsi_status: int = 0,
        sense_key: int = 0,
        asc: int = 0,
        ascq: int = 0,
        index: int | None = None,
        statuses: list[int] | None = None,
    ) -> None:
        super().__init__(message)
        self.srb_status = srb_status
        self.scsi_status = scsi_status
        self.sense_key = sense_key
        self.asc = asc
        self.ascq = ascq
        self.index = index
        self.statuses = statuses
