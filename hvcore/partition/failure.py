"""What a failed SRB means, as a DiskError."""

import errno

from hvcore.errors import DiskError

# Index of the first failed block, SRB status, SCSI status, sense, SRB status of each block.
Failure = tuple[int, int, int, bytes, bytes]

NO_SPACE = (0x7, 0x27, 0x07)
MISCOMPARE = 0xE
SRB_INVALID_LUN = 0x20
SCSI_STATUS = {  # storvsp.md 5.6
    0x08: "the disk is busy",
    0x18: "reservation conflict",
    0x28: "the disk takes no more requests (TASK SET FULL)",
    0x40: "the command was aborted by another initiator",
}
SENSE = {  # storvsp.md 10
    (0x2, 0x3A): "there is no medium",
    (0x3, 0x11): "unrecovered read error",
    (0x3, 0x03): "write fault",
    (0x4, 0x00): "hardware error",
    (0x5, 0x1A): "parameter list length error",
    (0x5, 0x20): "command not supported",
    (0x5, 0x21): "logical block address out of range",
    (0x5, 0x24): "invalid field in the command",
    (0x5, 0x26): "invalid field in the parameter list",
    (0x6, 0x29): "the disk was reset",
    (0x6, 0x2A): "the disk's capacity or parameters have changed",
    (0x7, 0x27): "the disk is write protected",
    (0xB, 0x00): "the command was aborted",
    (0xE, 0x1D): "the data differs from what the disk holds",
}
ERRNO = {0x2: errno.ENOMEDIUM, 0x3: errno.EIO, 0x5: errno.EINVAL, 0x7: errno.EROFS, 0xB: errno.EIO}


def sense_codes(sense: bytes) -> tuple[int, int, int]:
    """Sense key, ASC, ASCQ; zeros without sense."""
    return (sense[2] & 0xF, sense[12], sense[13]) if len(sense) >= 14 else (0, 0, 0)


def disk_error(number: int, failure: Failure, blocks: int | None = None) -> DiskError:
    """blocks: how many the batch had; None: it was a single request."""
    index, srb, scsi, sense, statuses = failure
    key, asc, ascq = sense_codes(sense)
    where = f"request {index} of {blocks}: " if blocks is not None else ""
    text = SCSI_STATUS.get(scsi, f"SCSI status {scsi:#04x}")
    if srb & 0x3F == SRB_INVALID_LUN:
        text = "the disk was removed"
    elif (key, asc, ascq) == NO_SPACE:
        text = "no space left for the image"
    elif sense:
        text = SENSE.get((key, asc), f"sense {key:x}/{asc:02x}/{ascq:02x}")
    error = DiskError(
        f"disk {number}: {where}{text} (SRB status {srb & 0x3F:#04x})",
        srb_status=srb & 0x3F,
        scsi_status=scsi,
        sense_key=key,
        asc=asc,
        ascq=ascq,
        index=index if blocks is not None else None,
        statuses=[status & 0x3F for status in statuses] if blocks is not None else None,
    )
    if srb & 0x3F == SRB_INVALID_LUN:
        error.errno = errno.ENODEV
    elif (key, asc, ascq) == NO_SPACE:
        error.errno = errno.ENOSPC
    elif scsi == 0x18:
        error.errno = errno.EBADE  # as Linux has it for a reservation conflict
    else:
        error.errno = errno.EBUSY if scsi in (0x08, 0x28) else ERRNO.get(key, errno.EIO)
    return error
