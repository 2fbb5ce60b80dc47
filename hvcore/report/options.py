"""What `hvcore compare` and `hvcore explain` are asked to do, checked once for the command line and for Python callers.

A bad value is an OptionError that names the option as the command line spells it.
"""

import math
from dataclasses import dataclass

from hvcore.sizes import format_size, parse_size

PATHS = ("local", "synthetic", "emulated")
WORKLOADS = ("randread", "randwrite", "read", "write")
IDE_MODES = ("dma", "pio", "pio-string", "pio-multiple")
FORMATS = ("raw", "vhd", "vhdx")
SECTOR_SIZES = (512, 4096)
QUEUE_DEPTH_MAX = 256
BLOCK_SIZE_MAX = 16 << 20
COUNT_MAX = 1_000_000
RUNTIME_MAX = 86400.0


class OptionError(ValueError):
    """A value that an option does not take: bad usage, nothing was started."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option = option


def size_option(option: str, text: str | int) -> int:
    """Bytes of a size given to `option`."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise OptionError(option, str(error)) from None


def paths_option(text: str) -> tuple[str, ...]:
    """The paths of a comma-separated list, in the order given."""
    return tuple(name.strip() for name in text.split(","))


def _one_of(option: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise OptionError(option, f"{value!r} is not one of {', '.join(map(str, allowed))}")


def _within(option: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise OptionError(option, f"{value} is not between 1 and {most}")


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What both commands take. block_size in bytes; image None: a temporary one is made; format None: by content."""

    image: str | None = None
    paths: tuple[str, ...] = PATHS
    block_size: int = 4096
    ide_mode: str = "dma"
    format: str | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise OptionError("--paths", f"no path given; there are {', '.join(PATHS)}")
        for path in self.paths:
            _one_of("--paths", path, PATHS)
        if len(set(self.paths)) < len(self.paths):
            raise OptionError("--paths", "a path is given twice")
        _one_of("--ide-mode", self.ide_mode, IDE_MODES)
        if self.format is not None:
            _one_of("--format", self.format, FORMATS)
        if not 0 < self.block_size <= BLOCK_SIZE_MAX or self.block_size % SECTOR_SIZES[0]:
            raise OptionError(
                "--bs",
                f"{self.block_size} bytes is not a multiple of {SECTOR_SIZES[0]} bytes up to "
                f"{format_size(BLOCK_SIZE_MAX)}",
            )


@dataclass(frozen=True, kw_only=True)
class CompareOptions(_Options):
    """One workload over several paths. memory_bytes: guest memory of the VM; seconds: measured time of each path.

    sector_size None: the image's own, or 512 for a temporary image.
    """

    rw: str = "randread"
    queue_depth: int = 1
    seconds: float = 3.0
    sector_size: int | None = None
    overwrite: bool = False
    memory_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("--rw", self.rw, WORKLOADS)
        _within("--qd", self.queue_depth, QUEUE_DEPTH_MAX)
        if not (math.isfinite(self.seconds) and 0 < self.seconds <= RUNTIME_MAX):
            raise OptionError("--runtime", f"{self.seconds} seconds is not between 0 and {RUNTIME_MAX:.0f}")
        if self.sector_size is not None:
            _one_of("--sector-size", self.sector_size, SECTOR_SIZES)
            if self.sector_size != SECTOR_SIZES[0] and "emulated" in self.paths:
                raise OptionError(
                    "--sector-size",
                    f"an IDE disk has sectors of {SECTOR_SIZES[0]} bytes; leave the emulated path out with --paths",
                )
            if self.block_size % self.sector_size:
                raise OptionError("--bs", f"{self.block_size} bytes is not a multiple of the sector size")
        needed = self.block_size * self.queue_depth
        if self.memory_bytes <= 0 or self.memory_bytes % 4096:
            raise OptionError("--memory", f"{self.memory_bytes} bytes is not a positive multiple of 4096")
        if needed >= self.memory_bytes:
            raise OptionError(
                "--memory",
                f"queue depth {self.queue_depth} of {format_size(self.block_size)} needs more than "
                f"{format_size(needed)} of guest memory",
            )
        if self.writes and self.image is not None and not self.overwrite:
            raise OptionError("--rw", f"{self.rw} would destroy what is in {self.image}; say --overwrite if it may")

    @property
    def writes(self) -> bool:
        """Whether the workload changes the image."""
        return self.rw in ("randwrite", "write")


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(_Options):
    """Single traced reads. count: how many per path, after which medians are taken."""

    count: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("--count", self.count, COUNT_MAX)
