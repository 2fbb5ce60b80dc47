"""Repairing a VHD: its footer from the copy at the start, that copy from the footer, a growth that was cut
(disk-formats.md 15.5)."""

from collections.abc import Iterator

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.footer import FOOTER_BYTES, build
from hvcore.vhd.backup import Ranges
from hvcore.vhd.check_vhd import HEAD, TAIL, TRUNCATE, VhdSurvey


def vhd_ranges(survey: VhdSurvey) -> Ranges:
    """(offset, length) of everything in the file that the repair may write; what it cuts off is zeros."""
    ranges = []
    if TAIL in survey.steps:
        ranges.append((survey.place, FOOTER_BYTES))
    if HEAD in survey.steps:
        ranges.append((0, FOOTER_BYTES))
    return ranges


def repair_vhd(file: ImageFile, survey: VhdSurvey) -> Iterator[str]:
    """Does the steps, durably each; yields what was done. One footer is good before, and never touched."""
    if survey.footer is None:
        return
    if TAIL in survey.steps:
        file.write(survey.place, build(survey.footer))
        file.flush()
        yield "wrote the footer at the end again from its copy at the start"
    if HEAD in survey.steps:
        file.write(0, build(survey.footer))
        file.flush()
        yield "wrote the copy of the footer at the start again"
    if TRUNCATE in survey.steps:
        cut = file.size() - survey.place
        file.resize(survey.place)
        file.flush()
        yield f"cut off {cut} zero bytes behind the footer"
