"""Job files: what to load which disks with, in TOML (docs/load.md). Everything in one is checked before anything runs.

A mistake is a JobError that names file, line where it can be found, and key.
"""

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvcore.dispatch.load import DEPTH_MAX
from hvcore.dispatch.schedule import ARRIVALS, RATE_MAX
from hvcore.dispatch.workload import OFFSETS, OPERATIONS, SIZES_MAX, THETA_MAX
from hvcore.partition.config import IDE_MODES
from hvcore.report.options import (
    BLOCK_SIZE_MAX,
    FORMATS,
    IDE_PATHS,
    PATHS,
    RUNTIME_MAX,
    SECTOR_SIZES,
    OptionError,
)
from hvcore.report.workload import Workload
from hvcore.sizes import parse_size

FILE_BYTES_MAX = 1 << 20
JOBS_MAX = 64
IMAGE_BYTES = 64 << 20
MEMORY = 64 << 20
RUNTIME = 3.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class JobError(OptionError):
    """A job file that makes no sense."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One disk and its load. image None: a temporary raw one of size_bytes, with known content."""

    name: str
    workload: Workload
    path: str = "synthetic"
    image: str | None = None
    size_bytes: int = IMAGE_BYTES
    format: str | None = None
    sector_size: int | None = None
    ide_mode: str = "dma"
    overwrite: bool = False
    verify: bool = True


@dataclass(frozen=True, kw_only=True)
class JobFile:
    """All jobs of a file, which run together. seconds, warm_up: of time; requests: None, or how many each job makes."""

    jobs: tuple[Job, ...]
    seconds: float | None = RUNTIME
    requests: int | None = None
    warm_up: float = 0.0
    series: bool = True
    memory_bytes: int = MEMORY


class _Wrong(ValueError):
    """A value that a key does not take."""


def _number(least: float, most: float, above: bool = False) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _Wrong(f"{value!r} is not a number")
        if not (least <= value <= most) or (above and value == least):
            raise _Wrong(f"{value!r} is not {'above' if above else 'between'} {least:g} and {most:,.0f}")
        return float(value)

    return check


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _Wrong(f"{value!r} is not a whole number between {least} and {most}")
        return value

    return check


def _size(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise _Wrong(f'{value!r} is not a size: a number of bytes, or text like "64k"')
        try:
            size = parse_size(value)
        except ValueError as error:
            raise _Wrong(str(error)) from None
        if not least <= size <= most:
            raise _Wrong(f"{value!r} is not a size between {least} and {most} bytes")
        return size

    return check


def _choice(*allowed: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, bool) or value not in allowed:
            raise _Wrong(f"{value!r} is not one of {', '.join(map(str, allowed))}")
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"{value!r} is not true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _Wrong(f"{value!r} is not the name of a file")
    return value


def _blocks(value: Any) -> dict[int, float]:
    one = _size(512, BLOCK_SIZE_MAX)
    if not isinstance(value, dict):
        return {one(value): 1.0}
    if not 1 <= len(value) <= SIZES_MAX:
        raise _Wrong(f"a table of 1 to {SIZES_MAX} block sizes, not {len(value)}")
    found = {one(size): _number(0, 1e9)(weight) for size, weight in value.items()}
    if len(found) < len(value):
        raise _Wrong("a block size is given twice")
    if not any(found.values()):
        raise _Wrong("no block size has a weight above 0")
    for size in found:
        if size % min(found):
            raise _Wrong(f"{size} bytes are not a multiple of the smallest block size, {min(found)}")
    return found


_SHARE = _number(0, 1e9)
FILE_KEYS: dict[str, Callable[[Any], Any]] = {
    "runtime": _number(0, RUNTIME_MAX, above=True),
    "requests": _whole(1, 1 << 40),
    "warm_up": _number(0, RUNTIME_MAX),
    "series": _flag,
    "memory": _size(1 << 20, 1 << 40),
}
JOB_KEYS: dict[str, Callable[[Any], Any]] = {
    "image": _text,
    "size": _size(1 << 20, 1 << 50),
    "format": _choice(*FORMATS),
    "sector_size": _choice(*SECTOR_SIZES),
    "path": _choice(*PATHS),
    "ide_mode": _choice(*IDE_MODES),
    "overwrite": _flag,
    "verify": _flag,
    **dict.fromkeys(OPERATIONS, _SHARE),
    "block_size": _blocks,
    "offsets": _choice(*OFFSETS),
    "theta": _number(0, THETA_MAX, above=True),
    "first": _size(0, 1 << 62),
    "length": _size(512, 1 << 62),
    "queue_depth": _whole(1, DEPTH_MAX),
    "rate": _number(0, RATE_MAX, above=True),
    "arrivals": _choice(*ARRIVALS),
    "seed": _whole(0, (1 << 40) - 1),
}


class _Reader:
    """Checks the parsed file; knows where its keys stand in the text."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()

    def wrong(self, section: str, key: str | None, reason: object) -> JobError:
        line = self._line(section, key)
        place = f"{self.path}:{line}" if line else self.path
        named = f"{section}.{key}" if key else section
        return JobError(place, f"{named}: {reason}")

    def _line(self, section: str, key: str | None) -> int | None:
        """Of a key in the ordinary spelling; other spellings of TOML have none."""
        quoted = re.escape(section).replace(r"\.", r"\s*\.\s*")
        head = re.compile(rf"\s*\[\s*{quoted}\s*\]")
        inside = False
        for number, line in enumerate(self.lines, start=1):
            if re.match(r"\s*\[", line):
                inside = bool(head.match(line))
                if inside and key is None:
                    return number
            elif inside and key is not None and re.match(rf'\s*"?{re.escape(key)}"?\s*[.=]', line):
                return number
        return None

    def take(self, section: str, table: Any, known: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
        if not isinstance(table, dict):
            raise self.wrong(section, None, "not a table")
        found = {}
        for key, value in table.items():
            if key not in known:
                raise self.wrong(section, key, f"there is no such key; there are {', '.join(known)}")
            try:
                found[key] = known[key](value)
            except _Wrong as error:
                raise self.wrong(section, key, error) from None
        return found


def _job(reader: _Reader, name: str, values: dict[str, Any], folder: Path) -> Job:
    section = f"job.{name}"
    shares = {key: values[key] for key in OPERATIONS if values.get(key)}
    if any(key in values for key in OPERATIONS) and not shares:
        raise reader.wrong(section, None, "no operation has a share above 0")
    workload = Workload(
        operations=shares or {"read": 1.0},
        block_sizes=values.get("block_size", {4096: 1.0}),
        **{key: values[key] for key in Workload.__dataclass_fields__ if key in values},
    )
    image = values.get("image")
    job = Job(
        name=name,
        workload=workload,
        image=None if image is None else str(folder / image),
        size_bytes=values.get("size", IMAGE_BYTES),
        **{key: values[key] for key in Job.__dataclass_fields__ if key in values and key not in ("image", "name")},
    )
    sector = job.sector_size or 512
    for size in workload.block_sizes:
        if size % sector:
            raise reader.wrong(section, "block_size", f"{size} bytes are not a multiple of the {sector} of a sector")
    if workload.first % sector:
        raise reader.wrong(section, "first", f"byte {workload.first} is not the first of a sector")
    if workload.length is not None and workload.length < workload.largest:
        raise reader.wrong(section, "length", f"no block of {workload.largest} bytes fits into {workload.length}")
    if job.image is None:
        end = workload.first + (workload.largest if workload.length is None else workload.length)
        if end > job.size_bytes:
            raise reader.wrong(section, "size", f"the range ends at byte {end}, the image at {job.size_bytes}")
        if job.size_bytes % (1 << 20):
            raise reader.wrong(section, "size", "a temporary image is a number of MiB")
        if job.format not in (None, "raw"):
            raise reader.wrong(section, "format", "a temporary image is raw")
    elif workload.writes and not job.overwrite:
        raise reader.wrong(section, "image", "the job would destroy what is in it; set overwrite = true if it may")
    if job.path == "local" and workload.queue_depth > 1:
        raise reader.wrong(section, "queue_depth", "the local path has one request at a time")
    if sector != 512 and job.path in IDE_PATHS:
        raise reader.wrong(section, "sector_size", "an IDE disk has sectors of 512 bytes")
    return job


def parse(text: str, path: str = "job") -> JobFile:
    """The jobs of a TOML text; image names are taken from the folder of `path`. JobError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(path, f"not TOML: {error}") from None
    reader = _Reader(path, text)
    unknown = sorted(set(data) - {"global", "job"})
    if unknown:
        raise reader.wrong(unknown[0], None, "there is no such section; there are global and job.NAME")
    shared = reader.take("global", data.get("global", {}), FILE_KEYS | JOB_KEYS)
    sections = data.get("job", {})
    if not isinstance(sections, dict) or not 1 <= len(sections) <= JOBS_MAX:
        raise reader.wrong("job", None, f"a file has 1 to {JOBS_MAX} sections job.NAME")
    folder = Path(path).parent
    jobs = []
    for name, table in sections.items():
        if not _NAME.fullmatch(name):
            raise reader.wrong(f"job.{name}", None, "a job's name is letters, digits, '_' and '-', at most 64")
        own = reader.take(f"job.{name}", table, JOB_KEYS)
        defaults = {key: value for key, value in shared.items() if key in JOB_KEYS}
        if own.keys() & set(OPERATIONS):  # one job's shares are not mixed with those of all
            defaults = {key: value for key, value in defaults.items() if key not in OPERATIONS}
        jobs.append(_job(reader, name, defaults | own, folder))
    _disjoint(reader, jobs)
    runtime = shared.get("runtime", None if "requests" in shared else RUNTIME)
    return JobFile(
        jobs=tuple(jobs),
        seconds=runtime,
        requests=shared.get("requests"),
        warm_up=shared.get("warm_up", 0.0),
        series=shared.get("series", True),
        memory_bytes=shared.get("memory", MEMORY),
    )


def _disjoint(reader: _Reader, jobs: list[Job]) -> None:
    """Two jobs on one image keep no account of each other's writes."""
    for number, job in enumerate(jobs):
        for other in jobs[:number]:
            if job.image is None or job.image != other.image or not (job.workload.writes or other.workload.writes):
                continue
            if job.path == "local" or other.path == "local":
                raise reader.wrong(f"job.{job.name}", "image", "the local path and a VM do not share one to write to")
            mine, theirs = _range(job), _range(other)
            if mine[0] < theirs[1] and theirs[0] < mine[1]:
                raise reader.wrong(f"job.{job.name}", "image", f"job {other.name} has it, too: give each its own range")


def _range(job: Job) -> tuple[float, float]:
    length = job.workload.length
    return job.workload.first, math.inf if length is None else job.workload.first + length


def read(path: str) -> JobFile:
    """The jobs of a file. JobError, OSError."""
    with open(path, "rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise JobError(path, f"a job file has at most {FILE_BYTES_MAX} bytes")
    try:
        return parse(data.decode(), path)
    except UnicodeDecodeError:
        raise JobError(path, "not UTF-8, as TOML is") from None
