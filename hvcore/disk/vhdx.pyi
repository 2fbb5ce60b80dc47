from typing import Self, final

from hvcore.disk.layout import VhdxLayout
from hvcore.disk.ops import Backend

@final
class VhdxDisk(Backend):
    def __new__(cls, fd: int, layout: VhdxLayout) -> Self: ...
    def extents(self) -> list[tuple[int, int, int | None]]: ...
