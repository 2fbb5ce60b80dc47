"""The images that a host has open. Each file is open once: disks that may share it share its backend."""

from collections.abc import Callable
from pathlib import Path

from hvcore.disk.image import ImageInfo
from hvcore.disk.ops import Backend
from hvcore.errors import Error, HostError, ImageError
from hvcore.partition.config import DiskConfig
from hvcore.scsi import LogicalUnit
from hvcore.vhd.live import open_live, settle


class OpenImage:
    """info: what the image is now; after a checkpoint that is the new child."""

    def __init__(self, disk: Backend, info: ImageInfo, key: tuple[object, ...], shared: bool) -> None:
        self.disk = disk
        self.info = info
        self.key = key
        self.shared = shared
        # What the disks of several VMs reserve and hear of together; a disk of one VM alone has a unit of its own.
        self.unit = LogicalUnit(disk) if shared else None
        self.users = 0


class Images:
    def __init__(self) -> None:
        self._open: dict[tuple[object, ...], OpenImage] = {}

    def open(self, config: DiskConfig, owner: object, report: Callable[[str], object] | None = None) -> OpenImage:
        """The image for one more disk of `owner`, a VM. ImageError, HostError: it cannot be opened.

        Two disks of one VM that name the same image share it, and so do those of several VMs that all say `shared`.
        Others are kept out by the image's lock, as they would be in another process. A disk of a Python class is an
        object of its own; report is told of its failures (see PythonDisk).
        """
        if config.format == "python":
            return self._open_class(config, owner, report)
        try:
            found = Path(config.image).stat()
        except (OSError, ValueError) as error:
            raise ImageError(f"{config.image}: {getattr(error, 'strerror', None) or error}") from None
        key: tuple[object, ...] = found.st_dev, found.st_ino, config.format, config.read_only, config.sector_size
        image = self._open.get((owner, *key))
        if image is None and config.shared:
            image = self._open.get(key)
        if image is None:
            mode = "r" if config.read_only else "r+"
            disk, info = open_live(config.image, mode=mode, format=config.format, sector_size=config.sector_size)
            key = key if config.shared else (owner, *key)
            image = self._open[key] = OpenImage(disk, info, key, config.shared)
        elif image.shared != config.shared:
            raise HostError(f"{config.image}: one disk shares the image and the other does not")
        image.users += 1
        return image

    def _open_class(self, config: DiskConfig, owner: object, report: Callable[[str], object] | None) -> OpenImage:
        from hvcore.disk.classes import open_class

        disk, info = open_class(
            config.image,
            config.options or {},
            read_only=config.read_only,
            sector_size=config.sector_size,
            report=report,
        )
        key = (owner, object())
        image = self._open[key] = OpenImage(disk, info, key, False)
        image.users = 1
        return image

    def release(self, image: OpenImage) -> None:
        """One disk less uses it; the last one closes it. Error: what it holds could not all be written."""
        image.users -= 1
        if image.users == 0:
            del self._open[image.key]
            image.disk.close()

    @staticmethod
    def settle(image: OpenImage) -> Error | None:
        """Makes the file a clean one that can be copied; what went wrong."""
        try:
            settle(image.disk)
        except Error as error:
            return error
        return None
