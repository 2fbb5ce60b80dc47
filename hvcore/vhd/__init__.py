"""Disk images by themselves, without a host or a VM: VHDX, VHD and raw files, read, written and put in order."""

from hvcore.disk.image import ImageInfo
from hvcore.vhd.compare import Difference, compare
from hvcore.vhd.convert import convert
from hvcore.vhd.create import create
from hvcore.vhd.extents import Extent
from hvcore.vhd.image import Image, chain, info, open

__all__ = ["Difference", "Extent", "Image", "ImageInfo", "chain", "compare", "convert", "create", "info", "open"]
