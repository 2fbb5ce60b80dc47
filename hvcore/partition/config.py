"""What a VM is made of, checked before anything is opened."""

import os
import re
from dataclasses import asdict, dataclass
from typing import Any, Self

from hvcore.sizes import parse_size

PATHS = ("synthetic", "emulated")
IDE_MODES = ("dma", "pio", "pio-string", "pio-multiple")
FORMATS = ("raw", "vhd", "vhdx")
IDE_DRIVES = 4
DISKS_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class DiskConfig:
    """One virtual disk of a VM.

    image: a file. path: "synthetic" (storvsp) or "emulated" (through the IDE emulator). format: "raw", "vhd", "vhdx",
    or None to recognise VHD and VHDX by content. ide_mode: how the emulated path moves data. sector_size: 512 or 4096,
    for raw images only.
    """

    image: str
    path: str = "synthetic"
    format: str | None = None
    read_only: bool = False
    ide_mode: str = "dma"
    sector_size: int | None = None

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
        if self.sector_size == 4096 and self.path == "emulated":
            raise ValueError(f"{self.image}: an IDE disk has sectors of 512 bytes, not 4096")


@dataclass(frozen=True)
class VmConfig:
    """A VM's name, guest memory in bytes, and disks in the order in which a guest sees them."""

    name: str
    memory: int
    disks: tuple[DiskConfig, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a VM's name: letters, digits, '.', '_', '-', at most 64")
        if len(self.disks) > DISKS_MAX:
            raise ValueError(f"a VM has at most {DISKS_MAX} disks, not {len(self.disks)}")
        emulated = sum(disk.path == "emulated" for disk in self.disks)
        if emulated > IDE_DRIVES:
            raise ValueError(f"a VM has at most {IDE_DRIVES} emulated disks (two IDE channels of two), not {emulated}")

    @classmethod
    def make(cls, name: str, memory: str | int, disks: Any) -> Self:
        """From what a caller writes: a size as text, disks as DiskConfig or file names."""
        configs = [disk if isinstance(disk, DiskConfig) else DiskConfig(os.fspath(disk)) for disk in disks]
        return cls(name, parse_size(memory), tuple(configs))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "memory": self.memory, "disks": [asdict(disk) for disk in self.disks]}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """From the control socket. ValueError for anything that is not a VM's description."""
        try:
            known = DiskConfig.__dataclass_fields__
            disks = []
            if set(value) - set(cls.__dataclass_fields__):
                unknown = sorted(set(value) - set(cls.__dataclass_fields__))
                raise ValueError(f"unknown keys of a VM: {', '.join(unknown)}")
            for disk in value["disks"]:
                if set(disk) - set(known):
                    raise ValueError(f"unknown keys of a disk: {', '.join(sorted(set(disk) - set(known)))}")
                for key, kind in (("image", str), ("path", str), ("ide_mode", str), ("read_only", bool)):
                    if key in disk and not isinstance(disk[key], kind):
                        raise ValueError(f"a disk's {key} is not a {kind.__name__}: {disk[key]!r}")
                disks.append(DiskConfig(**disk))
            if isinstance(value["memory"], bool) or not isinstance(value["memory"], int | str):
                raise ValueError(f"memory is a number of bytes, not {value['memory']!r}")
            return cls(value["name"], parse_size(value["memory"]), tuple(disks))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the description of a VM: {error}") from None
