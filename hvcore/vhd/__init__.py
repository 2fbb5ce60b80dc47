"""Disk images by themselves, without a host or a VM: open, create, look inside."""

from hvcore.disk.image import ImageInfo
from hvcore.vhd.image import Extent, Image, create, info, open

__all__ = ["Extent", "Image", "ImageInfo", "create", "info", "open"]
