from collections.abc import Iterable
from typing import Self, final

from hvcore.memory.region import Region

@final
class Worker:
    def __new__(
        cls,
        shared: Region,
        bell: int,
        drives: Iterable[tuple[int, int, int, bool, str, int]],
        guest_drives: Iterable[tuple[int, int, int, bool, str, int, bool, int]] = (),
    ) -> Self: ...
    def start(self) -> None: ...
    def memory(self, guest: Region | None, intercepts: Region | None = None, epoch: int = 0) -> None: ...
    def close(self) -> None: ...
