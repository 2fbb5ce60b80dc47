"""What `hvcore compare` and `hvcore explain` are asked to do, checked once for the command line and for Python callers.

A bad value is an OptionError that names the option as the command line spells it.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from hvcore.report.workload import NAMES as WORKLOADS
from hvcore.report.workload import READ_PERCENT, Workload
from hvcore.sizes import format_size, parse_size

# Those of hvcore.partition.config, which loads what a command line that only asks for help does without.
PATHS = ("local", "synthetic", "emulated", "trapped", "accelerated")
IDE_MODES = ("dma", "pio", "pio-string", "pio-multiple")
IDE_PATHS = ("emulated", "trapped", "accelerated")  # disks of these are IDE disks
IDE_MODE_PATHS = ("emulated", "trapped")  # an IDE controller moves their data
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

    sector_size None: the image's own, or 512 for a temporary image. read_percent: of randrw and rw. load: what is done,
    where rw, block_size and queue_depth do not say it all; warm_up: seconds before each path's measured time.
    """

    rw: str = "randread"
    queue_depth: int = 1
    seconds: float = 3.0
    sector_size: int | None = None
    overwrite: bool = False
    memory_bytes: int = 64 << 20
    read_percent: float = READ_PERCENT
    load: Workload | None = None
    warm_up: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("--rw", self.rw, WORKLOADS)
        _within("--qd", self.queue_depth, QUEUE_DEPTH_MAX)
        if not 0 <= self.read_percent <= 100:
            raise OptionError("--read-percent", f"{self.read_percent:g} is not between 0 and 100")
        if not (math.isfinite(self.seconds) and 0 < self.seconds <= RUNTIME_MAX):
            raise OptionError("--runtime", f"{self.seconds} seconds is not between 0 and {RUNTIME_MAX:.0f}")
        if self.sector_size is not None:
            _one_of("--sector-size", self.sector_size, SECTOR_SIZES)
            ide = [path for path in self.paths if path in IDE_PATHS]
            if self.sector_size != SECTOR_SIZES[0] and ide:
                raise OptionError(
                    "--sector-size",
                    f"an IDE disk has sectors of {SECTOR_SIZES[0]} bytes; leave {' and '.join(ide)} out with --paths",
                )
            if self.block_size % self.sector_size:
                raise OptionError("--bs", f"{self.block_size} bytes is not a multiple of the sector size")
        needed = self.workload.buffer_bytes
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
        return self.workload.writes

    @property
    def workload(self) -> Workload:
        return self.load or Workload.plain(self.rw, self.block_size, self.queue_depth, self.read_percent)


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(_Options):
    """Single traced reads. count: how many per path, after which medians are taken."""

    count: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("--count", self.count, COUNT_MAX)


AXES = {
    "rw": "rw",
    "bs": "block_size",
    "qd": "queue_depth",
    "ide-mode": "ide_mode",
}
SWEEP_MAX = 1000


def is_axis(text: str) -> bool:
    """Whether a word of the command line is an axis of --sweep: "qd=1,8"."""
    name, found, _ = text.partition("=")
    return bool(found) and (name in AXES or name in ("path", "paths"))


def sweep_option(options: CompareOptions, axes: Iterable[str]) -> list[CompareOptions]:
    """One CompareOptions for each combination of what the axes list, the first axis turning slowest. OptionError."""
    changes: dict[str, list[Any]] = {}
    for axis in axes:
        name, found, listed = axis.partition("=")
        if not found or not is_axis(axis):
            raise OptionError("--sweep", f"{axis!r} is not one of {', '.join(AXES)} or paths, '=' and a list")
        words = [word.strip() for word in listed.split(",")]
        field = "paths" if name in ("path", "paths") else AXES[name]
        if field in changes:
            raise OptionError("--sweep", f"{name} is given twice")
        if len(set(words)) < len(words):
            raise OptionError("--sweep", f"{name} lists a value twice")
        if field == "paths":
            changes[field] = [tuple(words)]
        elif field == "block_size":
            changes[field] = [size_option("--sweep bs", word) for word in words]
        elif field == "queue_depth":
            if not all(word.isascii() and word.isdigit() for word in words):
                raise OptionError("--sweep", f"{axis!r} does not list whole numbers")
            changes[field] = [int(word) for word in words]
        else:
            changes[field] = words
    if not changes:
        raise OptionError("--sweep", "nothing to sweep over")
    if math.prod(map(len, changes.values())) > SWEEP_MAX:
        raise OptionError("--sweep", f"more than {SWEEP_MAX} combinations")
    return [replace(options, **dict(zip(changes, each, strict=True))) for each in itertools.product(*changes.values())]
