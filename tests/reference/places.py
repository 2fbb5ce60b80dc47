"""One VM with the same content on a disk of each path and IDE mode, and the model of each disk: a bytearray."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hvcore
from hvcore.partition.client import VirtualMachine
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest
from tests.reference.vms import IDE_MODES, MIB, content, make_image

SIZE = 2 * MIB + 512 * 37  # a VHDX then has a block that is not full
DATA = content(SIZE)
PLACES = ("synthetic", *IDE_MODES)
FORMATS = ("raw", "vhd", "vhdx")


class Place:
    """One disk, its image, and what it has to hold."""

    def __init__(self, vm: VirtualMachine, guest: Guest, disk: Disk, image: Path, format: str) -> None:
        self.vm = vm
        self.guest = guest
        self.disk = disk
        self.image = image
        self.format = format
        self.model = bytearray(DATA)

    @property
    def writable(self) -> bool:
        return self.format != "vhdx"

    @property
    def trims(self) -> bool:
        return self.format == "raw"

    def wrote(self, offset: int, data: bytes) -> None:
        self.model[offset : offset + len(data)] = data


@contextmanager
def attached(folder: Path, format: str) -> Iterator[dict[str, Place]]:
    """Each place by its name. VHDX images are read-only, the others are not."""
    images = [make_image(folder / name, format, DATA) for name in PLACES]
    disks = [
        hvcore.DiskConfig(
            str(image),
            path="synthetic" if name == "synthetic" else "emulated",
            format=format,
            read_only=format == "vhdx",
            ide_mode=name if name in IDE_MODES else "dma",
        )
        for name, image in zip(PLACES, images, strict=True)
    ]
    with hvcore.Host() as host, host.create_vm("api", "32M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            yield {
                name: Place(vm, guest, disk, image, format)
                for name, disk, image in zip(PLACES, guest.disks, images, strict=True)
            }
