"""What a VM is made of, checked before anything is opened."""

import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from hvcore.disk.names import judge_class_name
from hvcore.disk.rules import parse
from hvcore.sizes import parse_size
from hvcore.storage.gate import check_limits

PATHS = ("synthetic", "emulated", "trapped", "accelerated")
IDE_MODES = ("dma", "pio", "pio-string", "pio-multiple")
FORMATS = ("raw", "vhd", "vhdx", "python")
IDE_DRIVES = 4
CONTROLLERS_MAX = 4
LUNS = 64  # of one SCSI controller
SUB_CHANNELS_MAX = 15
LIMITS = ("max_iops", "max_bandwidth", "min_iops", "min_bandwidth")
DISKS_MAX = CONTROLLERS_MAX * LUNS
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class DiskConfig:
    """One virtual disk of a VM.

    image: a file, or with format "python" a class that is the disk, "package.module:Class", made with `options` (see
    hvcore.disk.classes). path: "synthetic" (storvsp), "emulated" (through the IDE emulator), "trapped" (the guest
    drives the IDE controller by its ports) or "accelerated" (an IDE disk over a storvsp channel of its own, and at the
    ports too). format: "raw", "vhd", "vhdx", "python", or None to recognise VHD and VHDX by content. ide_mode: how the
    emulated and the trapped path move data. sector_size: 512 or 4096, for raw images and Python classes only.
    controller, lun: place of a synthetic disk; lun None takes the lowest that is free. shared: other VMs of the host
    may use the same image, whose disks all say so. min_iops ... max_bandwidth: limits, in operations of 8 KiB and in
    bytes per second, 0 for none (docs/qos-and-counters.md). inject: rules in front of the disk (see hvcore.disk.rules).
    """

    image: str
    path: str = "synthetic"
    format: str | None = None
    read_only: bool = False
    ide_mode: str = "dma"
    sector_size: int | None = None
    controller: int = 0
    lun: int | None = None
    shared: bool = False
    min_iops: int = 0
    max_iops: int = 0
    min_bandwidth: int = 0
    max_bandwidth: int = 0
    options: dict[str, Any] | None = field(default=None, hash=False)
    inject: list[dict[str, Any]] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.image, str):
            object.__setattr__(self, "image", os.fspath(self.image))
        if not self.image or "\0" in self.image:
            raise ValueError(f"a disk's image is the name of a file, not {self.image!r}")
        for name, value, allowed in (
            ("path", self.path, PATHS),
            ("ide_mode", self.ide_mode, IDE_MODES),
            ("format", self.format, (None, *FORMATS)),
            ("sector_size", self.sector_size, (None, 512, 4096)),
        ):
            if value not in allowed:
                known = ", ".join(str(one) for one in allowed if one is not None)
                raise ValueError(f"a disk's {name} is one of {known}, not {value!r}")
        for name, number, most in (("controller", self.controller, CONTROLLERS_MAX), ("lun", self.lun, LUNS)):
            if number is not None and not (type(number) is int and 0 <= number < most):
                raise ValueError(f"a disk's {name} is a number from 0 to {most - 1}, not {number!r}")
        if self.path != "synthetic" and (self.controller or self.lun is not None):
            raise ValueError(f"{self.image}: only a synthetic disk has a controller and a LUN to choose")
        check_limits(**self.limits)
        if self.sector_size == 4096 and self.path != "synthetic":
            raise ValueError(f"{self.image}: an IDE disk has sectors of 512 bytes, not 4096")
        if self.format == "python":
            judge_class_name(self.image)
            if self.shared:
                raise ValueError(f"{self.image}: each disk of a Python class is an object of its own, none is shared")
        elif self.options is not None:
            raise ValueError(f'{self.image}: options are for disks of format "python"')
        if not isinstance(self.options, dict | None):
            raise ValueError(f"{self.image}: options are a dict, not {self.options!r}")
        if self.inject is not None:
            parse(self.inject)

    @property
    def limits(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in LIMITS}


@dataclass(frozen=True)
class VmConfig:
    """A VM's name, guest memory in bytes, and disks in the order in which a guest sees them.

    controllers: its SCSI controllers. sub_channels: how many channels beside the primary a guest may have on each.
    """

    name: str
    memory: int
    disks: tuple[DiskConfig, ...]
    controllers: int = 1
    sub_channels: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a VM's name: letters, digits, '.', '_', '-', at most 64")
        if len(self.disks) > DISKS_MAX:
            raise ValueError(f"a VM has at most {DISKS_MAX} disks, not {len(self.disks)}")
        ide = sum(disk.path != "synthetic" for disk in self.disks)
        if ide > IDE_DRIVES:
            raise ValueError(f"a VM has at most {IDE_DRIVES} IDE disks (two channels of two), not {ide}")
        for name, number, least, most in (
            ("controllers", self.controllers, 1, CONTROLLERS_MAX),
            ("sub_channels", self.sub_channels, 0, SUB_CHANNELS_MAX),
        ):
            if type(number) is not int or not least <= number <= most:
                raise ValueError(f"{name} is a number from {least} to {most}, not {number!r}")

    @classmethod
    def make(cls, name: str, memory: str | int, disks: Any, controllers: int = 1, sub_channels: int = 0) -> Self:
        """From what a caller writes: a size as text, disks as DiskConfig or file names."""
        configs = [disk if isinstance(disk, DiskConfig) else DiskConfig(os.fspath(disk)) for disk in disks]
        return cls(name, parse_size(memory), tuple(configs), controllers, sub_channels)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """From the control socket. ValueError for anything that is not a VM's description."""
        try:
            known(value, cls, "a VM")
            disks = [disk_from_json(disk) for disk in value["disks"]]
            if isinstance(value["memory"], bool) or not isinstance(value["memory"], int | str):
                raise ValueError(f"memory is a number of bytes, not {value['memory']!r}")
            return cls(**(value | {"memory": parse_size(value["memory"]), "disks": tuple(disks)}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the description of a VM: {error}") from None


def known(value: Any, kind: type[DiskConfig | VmConfig], what: str) -> None:
    unknown = sorted(set(value) - set(kind.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown keys of {what}: {', '.join(unknown)}")


def disk_from_json(value: Any) -> DiskConfig:
    """From the control socket. ValueError for anything that is not a disk's description."""
    try:
        known(value, DiskConfig, "a disk")
        for key, kind in (("image", str), ("path", str), ("ide_mode", str), ("read_only", bool), ("shared", bool)):
            if key in value and not isinstance(value[key], kind):
                raise ValueError(f"a disk's {key} is not a {kind.__name__}: {value[key]!r}")
        return DiskConfig(**value)
    except TypeError as error:
        raise ValueError(f"not the description of a disk: {error}") from None
