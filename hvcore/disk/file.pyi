from typing import Self, final

from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend

@final
class FileDisk(Backend):
    def __new__(
        cls,
        file: ImageFile,
        size: int,
        *,
        base: int = 0,
        sector_size: int = 512,
        read_only: bool = True,
        can_trim: bool = False,
    ) -> Self: ...
    def extents(self) -> list[tuple[int, int, int | None]]: ...
