from collections.abc import Callable
from typing import Any, Self, final
from weakref import ref

from hvcore.disk.ops import Backend

NAMES: tuple[str, ...]
END_NS: int

def place_of(error: BaseException) -> str: ...
def method_of(target: Any, name: str, needed: bool) -> Any: ...
def finish(disk: ref[PythonDisk]) -> None: ...

@final
class PythonDisk(Backend):
    def __new__(
        cls,
        target: Any,
        size: int,
        *,
        sector_size: int = 512,
        read_only: bool = False,
        concurrent: bool = False,
        report: Callable[[str], object] | None = None,
    ) -> Self: ...
    @property
    def target(self) -> Any: ...
    @property
    def failures(self) -> dict[str, int]: ...
