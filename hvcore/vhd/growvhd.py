from hvcore.disk.image import Judged
from hvcore.progress import Progress


def grow_vhd(chain: list[Judged], size: int, progress: Progress) -> None: ...
