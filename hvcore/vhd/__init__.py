"""Disk images by themselves, without a host or a VM: VHDX, VHD and raw files, read, written and put in order."""

from hvcore.disk.image import ImageInfo
from hvcore.vhd.check import CheckResult, check
from hvcore.vhd.child import create_child
from hvcore.vhd.compact import CompactResult, compact
from hvcore.vhd.compare import Difference, compare
from hvcore.vhd.convert import convert
from hvcore.vhd.create import create
from hvcore.vhd.extents import Extent
from hvcore.vhd.finding import Finding
from hvcore.vhd.image import Image, chain, info, open
from hvcore.vhd.merge import merge
from hvcore.vhd.rebase import rebase
from hvcore.vhd.repair import RepairResult, repair
from hvcore.vhd.resize import resize

__all__ = [
    "CheckResult",
    "CompactResult",
    "Difference",
    "Extent",
    "Finding",
    "Image",
    "ImageInfo",
    "RepairResult",
    "chain",
    "check",
    "compact",
    "compare",
    "convert",
    "create",
    "create_child",
    "info",
    "merge",
    "open",
    "rebase",
    "repair",
    "resize",
]
