from typing import Self, final

from hvcore.disk.ops import Backend

@final
class RamDisk(Backend):
    def __new__(
        cls, size: int, *, sector_size: int = 512, read_only: bool = False, physical_sector_size: int | None = None
    ) -> Self: ...
