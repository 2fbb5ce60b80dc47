"""Repairing images: what can be proved, and nothing else."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from hvcore.disk.image import measure, open_file, reported
from hvcore.disk.locks import lock_image
from hvcore.disk.medium import ImageFile
from hvcore.progress import Progress, silent
from hvcore.vhd.backup import Ranges, backup_path, write_backup
from hvcore.vhd.check import inspect, judge_format, recognised
from hvcore.vhd.check_vhd import VhdSurvey
from hvcore.vhd.check_vhdx import VhdxSurvey
from hvcore.vhd.finding import NOTE, Finding
from hvcore.vhd.repair_vhd import repair_vhd, vhd_ranges
from hvcore.vhd.repair_vhdx import repair_vhdx, vhdx_ranges
from hvcore.vhd.survey import Survey


@dataclass(frozen=True)
class RepairResult:
    """What a repair did.

    backup: the file that holds what it changed, as it was (hvcore.vhd.backup.restore puts it back); None: nothing
    needed a change. actions: what was done, in words, in order. remaining: damage and warnings that are still there.
    """

    path: str
    backup: str | None
    actions: tuple[str, ...]
    remaining: tuple[Finding, ...]


def repair(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    trust_head: bool = False,
    backup: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> RepairResult:
    """Does what check() says can be done without loss: replays a log, writes a header, region table or footer again
    from its twin, declares a log empty that never held anything, and the like. It never guesses data.

    format: as for check(). trust_head: put back the lost footer of a differencing VHD from the copy at the start; only
    for an image that was never a guest's fixed disk, as a guest writes what it likes there. backup: where to keep what
    will be changed (a new file); by default beside the image, NAME.repair-YYYYmmdd-HHMMSS.backup. It is durable before
    the first change. An interruption at any moment leaves the image no worse; the repair may then be repeated. Parents
    are not looked at.

    ImageError: the image or its backup cannot be opened, or the medium failed. ImageInUse: a program has it open.
    """
    judge_format(format)
    name = os.fspath(path)
    place: str | None = None
    actions: list[str] = []
    with reported(name), open_file(name, True) as file:
        lock_image(file.fileno(), write=True)
        file_size = measure(file.fileno(), True)
        format = format or recognised(file, file_size)
        with view(file) as seen:
            survey = inspect(seen, file_size, format, progress, trust_head)
            ranges = changed_ranges(seen, survey)
        if survey.steps:
            place = os.fspath(backup) if backup is not None else backup_path(name)
            write_backup(place, name, file, file_size, ranges)
            actions += carry_out(file, survey, progress)
            with view(file) as seen:
                survey = inspect(seen, measure(file.fileno(), True), format, progress, trust_head)
    remaining = tuple(each for each in survey.findings.listed if each.severity != NOTE)
    return RepairResult(name, place, tuple(actions), remaining)


def view(file: ImageFile) -> ImageFile:
    """The same open file, and its locks, to be read through an overlay."""
    return ImageFile(os.dup(file.fileno()))


def changed_ranges(seen: ImageFile, survey: Survey) -> Ranges:
    if isinstance(survey, VhdxSurvey):
        return vhdx_ranges(seen, survey)
    return vhd_ranges(survey) if isinstance(survey, VhdSurvey) else []


def carry_out(file: ImageFile, survey: Survey, progress: Progress) -> Iterator[str]:
    if isinstance(survey, VhdxSurvey):
        yield from repair_vhdx(file, survey, progress)
    elif isinstance(survey, VhdSurvey):
        yield from repair_vhd(file, survey)
