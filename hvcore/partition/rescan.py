"""Looking for a controller's units again when the host says that they changed (storvsp.md 4.4, 7, 8.2)."""

from collections.abc import Callable

from hvcore.errors import DiskError, ProtocolError
from hvcore.partition.adapter import Adapter
from hvcore.partition.changes import Change
from hvcore.partition.disk import Disk

REPORT_LUNS_BYTES = 8 + 8 * 256
PATIENCE = 30.0  # seconds for each command


def report_luns(adapter: Adapter) -> list[int]:
    """The LUNs that a controller has, ascending. ProtocolError: its list makes no sense."""
    cdb = bytes([0xA0, 0, 0, 0, 0, 0]) + REPORT_LUNS_BYTES.to_bytes(4, "big") + bytes(2)
    channel = adapter.primary.channel
    srb, scsi, _, data = channel.execute(cdb, allocation=REPORT_LUNS_BYTES, timeout=PATIENCE, patient=True)
    if srb & 0x3F != 1 or scsi or len(data) < 8:
        raise ProtocolError("the controller does not list its units")
    count = min(int.from_bytes(data[:4], "big"), len(data) - 8) // 8
    entries = [data[8 + 8 * n : 16 + 8 * n] for n in range(count)]
    return sorted({entry[1] for entry in entries if entry[0] == 0})  # flat, single-level addresses


def rescan(adapter: Adapter, known: list[Disk], make: Callable[[int], Disk]) -> list[Change]:
    """What changed among `known`, the adapter's disks; make(lun) is asked for each unit that is new.

    GuestGone, TimeoutError: the host does not answer.
    """
    changes = [Change("attention", disk) for disk in known if disk.new_attentions()]
    by_lun = {disk.lun: disk for disk in known}
    luns = report_luns(adapter)
    for lun, disk in by_lun.items():
        try:
            if lun not in luns or not disk.refresh():
                disk.removed = True
        except (DiskError, ProtocolError):
            continue  # it is there and does not say what it is: its requests will tell
        if disk.removed:
            changes.append(Change("removed", disk))
        elif disk.altered:
            changes.append(Change("changed", disk))
    for lun in luns:
        if lun not in by_lun or by_lun[lun].removed:
            try:
                changes.append(Change("added", make(lun)))
            except (DiskError, ProtocolError):
                continue  # gone again, or no disk
    return changes


def lost(known: list[Disk]) -> list[Change]:
    """The controller is gone, and all its disks with it."""
    for disk in known:
        disk.removed = True
    return [Change("removed", disk) for disk in known]
