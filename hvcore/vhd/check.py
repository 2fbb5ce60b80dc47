"""Checking images: everything that is wrong with one, not only the first thing."""

import os
from dataclasses import dataclass

from hvcore.disk.image import FORMATS, measure, open_file, recognise, reported
from hvcore.disk.locks import lock_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.footer import COOKIE, FOOTER_BYTES
from hvcore.disk.vhdx.structures import SIGNATURE
from hvcore.errors import ImageError
from hvcore.progress import Progress, silent
from hvcore.vhd.check_chain import judge_parents
from hvcore.vhd.check_vhd import survey_vhd
from hvcore.vhd.check_vhdx import survey_vhdx
from hvcore.vhd.finding import DAMAGE
from hvcore.vhd.finding import Finding as Finding
from hvcore.vhd.survey import Survey


@dataclass(frozen=True)
class CheckResult:
    """What a check found; sizes are bytes.

    type: "fixed", "dynamic" or "differencing"; None: raw, or it cannot be told. blocks: of the disk, allocated_blocks:
    of those the ones that the file holds, in whole or in part; both 0 where there are no blocks, or they could not be
    looked at. unreferenced_bytes: of the file that nothing refers to. log: "empty", "to be replayed" or
    "without entries"; None: the format has none, or it cannot be told.
    """

    path: str
    format: str
    type: str | None
    findings: tuple[Finding, ...]
    blocks: int
    allocated_blocks: int
    unreferenced_bytes: int
    file_size: int
    log: str | None

    @property
    def clean(self) -> bool:
        """Nothing is damaged. A log that waits for its replay is no damage."""
        return not any(each.severity == DAMAGE for each in self.findings)


def check(
    path: str | os.PathLike[str], format: str | None = None, *, chain: bool = True, progress: Progress = silent
) -> CheckResult:
    """Looks at everything an image says of itself, by the rules of its format, and changes nothing.

    format: "vhdx", "vhd" or "raw"; None recognises VHDX and VHD. chain: also whether the parents of a differencing disk
    are there and are the ones meant; they are looked at themselves only as far as that needs. The data of the disk are
    not read, except where a dynamic VHD's bitmap says that sectors hold none.

    ImageError: the image could not be looked at. ImageInUse: a program writes it. ValueError: no such format.
    """
    judge_format(format)
    name = os.fspath(path)
    with reported(name), open_file(name, False) as file:
        lock_image(file.fileno(), write=False)
        # Measured and read under the lock: a writer that keeps locks cannot change them any more.
        file_size = measure(file.fileno(), False)
        format = format or recognised(file, file_size)
        survey = inspect(file, file_size, format, progress)
    if chain and survey.type == "differencing":
        judge_parents(name, format, survey.findings)
    return result_of(name, format, file_size, survey)


def judge_format(format: str | None) -> None:
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, not {format!r}")


def recognised(file: ImageFile, file_size: int) -> str:
    """The format by content; unlike for opening, a damaged VHD is one."""
    if file_size == 0:
        raise ImageError("the file is empty")
    head = file.read(0, min(8, file_size))
    tail = file.read(max(0, file_size - FOOTER_BYTES), min(9, file_size))
    if head != SIGNATURE and (head == COOKIE or COOKIE in (tail[:8], tail[1:])):
        return "vhd"
    return recognise(file, file_size)


def inspect(file: ImageFile, file_size: int, format: str, progress: Progress, trust_head: bool = False) -> Survey:
    """All of one file, its parents excepted; lays an overlay over a VHDX whose log is to be replayed."""
    if file_size == 0:
        raise ImageError("the file is empty")
    if format == "vhdx":
        return survey_vhdx(file, file_size, progress)
    if format == "vhd":
        return survey_vhd(file, file_size, progress, trust_head)
    survey = Survey()
    if file_size % 512:
        words = f"the file has {file_size} bytes, not a multiple of the sector size 512"
        survey.findings.damage("file", None, words)
    return survey


def result_of(name: str, format: str, file_size: int, survey: Survey) -> CheckResult:
    return CheckResult(
        path=name,
        format=format,
        type=survey.type,
        findings=tuple(survey.findings.listed),
        blocks=survey.blocks,
        allocated_blocks=survey.allocated_blocks,
        unreferenced_bytes=survey.unreferenced_bytes,
        file_size=file_size,
        log=survey.log,
    )
