from typing import Self, final

from hvcore.disk.ops import Backend

@final
class FileDisk(Backend):
    def __new__(
        cls,
        fd: int,
        size: int,
        *,
        base: int = 0,
        sector_size: int = 512,
        read_only: bool = True,
        can_trim: bool = False,
    ) -> Self: ...
    def record(self, fd: int) -> None: ...
    def extents(self) -> list[tuple[int, int, int | None]]: ...
