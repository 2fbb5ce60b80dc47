from hvcore.disk.image import Judged
from hvcore.progress import Progress


def compact_vhd(chain: list[Judged], zeros: bool, progress: Progress) -> tuple[int, int]:
    raise NotImplementedError
