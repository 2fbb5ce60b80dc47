"""The SCSI target: CDBs in, statuses, data and sense out, over any disk backend, without a bus."""

from hvcore.scsi.result import MediaAccess, ScsiResult
from hvcore.scsi.target import Target, absent, report_luns
from hvcore.scsi.unit import LogicalUnit

__all__ = ["LogicalUnit", "MediaAccess", "ScsiResult", "Target", "absent", "report_luns"]
