"""The two footers of a dynamic or differencing VHD, while its file is changed as a whole (disk-formats.md 15.5).

A power cut leaves a sector of 512 bytes as it was or as it will be, never half. The footer at the end counts; the copy
at the start may differ from it in size, or be gone, but must not lead to another dynamic header.
"""

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.create import sectors
from hvcore.disk.vhd.footer import FOOTER_BYTES, Footer, build
from hvcore.disk.vhd.layout import DIFFERS, HEAD_ONLY, VhdLayout


def settle(file: ImageFile, layout: VhdLayout) -> int:
    """Makes both footers what the one that counts says, and returns where the one at the end begins."""
    raw = build(layout.footer)
    place = layout.tail_offset
    if layout.footer_state == HEAD_ONLY:
        place = sectors(layout.file_size)
        extend(file, place, layout.footer)
    elif layout.footer_state == DIFFERS:
        file.write(0, raw)
        file.flush()
    return place


def extend(file: ImageFile, place: int, footer: Footer) -> None:
    """The file's footer is at `place` from now on, durably; what lies before it is there to be used."""
    file.resize(place + FOOTER_BYTES)
    file.write(place, build(footer))
    file.flush()


def cut(file: ImageFile, top: int, tail: int, footer: Footer) -> None:
    """Ends the file behind its content, which ends at `top`; the footer is at `tail`."""
    place = sectors(top)
    if place >= tail:
        return
    # Durable at its new place before the file ends there; until then the old one counts.
    file.write(place, build(footer))
    file.flush()
    file.resize(place + FOOTER_BYTES)
    file.flush()


def replace_footers(file: ImageFile, tail: int, footer: Footer) -> None:
    """Both footers, which differ from those before in the disk's size only."""
    raw = build(footer)
    for place in (0, tail):
        file.write(place, raw)
        file.flush()
