"""What a SCSI command asks for, and what it led to."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MediaAccess:
    """What a command does to the medium: `action` over `length` bytes at `offset`; fua: not only to or from a cache.

    action: "read", "write", "flush", "verify", "trim", "write same", "compare and write", "status" (what of it takes
    space), or "parameters": a list decides what is done.
    """

    action: str
    offset: int = 0
    length: int = 0
    fua: bool = False


@dataclass(frozen=True, slots=True)
class ScsiResult:
    """status: SCSI status (0 GOOD, 2 CHECK CONDITION, ...); data_in: bytes for the guest; sense: 18 bytes, or none.

    srb_status: as in the SRB, with 0x80 when there is sense (storvsp.md 5.4); transferred: bytes moved either way.
    """

    status: int
    data_in: bytes = b""
    sense: bytes = b""
    srb_status: int = 1
    transferred: int = 0

    @property
    def sense_key(self) -> int:
        """0 without sense."""
        return self.sense[2] & 0x0F if self.sense else 0

    @property
    def asc(self) -> int:
        return self.sense[12] if self.sense else 0

    @property
    def ascq(self) -> int:
        return self.sense[13] if self.sense else 0
