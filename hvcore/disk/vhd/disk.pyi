from collections.abc import Iterator
from typing import Literal, Self, final
from uuid import UUID

from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.vhd.layout import VhdLayout

@final
class VhdDisk(Backend):
    parent: Backend | None
    def __new__(
        cls, file: ImageFile, layout: VhdLayout, *, write: bool = False, parent: Backend | None = None
    ) -> Self: ...
    @property
    def disk_id(self) -> UUID: ...
    @property
    def block_size(self) -> int: ...
    def entry(self, index: int) -> int: ...
    def find(self, offset: int) -> tuple[int, Literal["data", "zero", "parent"], int | None]: ...
    def extents(self) -> Iterator[tuple[int, int, Literal["data", "zero", "parent"], int | None]]: ...
