from collections.abc import Iterator
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
    def resize(self, size: int) -> None: ...
    def extents(self) -> Iterator[tuple[int, int, str, int | None]]: ...

def pieces_of(file: ImageFile, base: int, size: int) -> Iterator[tuple[int, int, str, int | None]]: ...
