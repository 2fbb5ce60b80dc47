from typing import Self, final

from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.vhdx.layout import VhdxLayout

@final
class VhdxDisk(Backend):
    def __new__(cls, file: ImageFile, layout: VhdxLayout) -> Self: ...
    def extents(self) -> list[tuple[int, int, int | None]]: ...
