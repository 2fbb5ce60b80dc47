from typing import Self, final

from hvcore.disk.ops import Backend

@final
class NullDisk(Backend):
    def __new__(cls, size: int, *, sector_size: int = 512) -> Self: ...
