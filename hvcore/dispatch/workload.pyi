from typing import Any, final

OPERATIONS: tuple[str, ...]
OFFSETS: tuple[str, ...]
SIZES_MAX: int
THETA_MAX: float

@final
class Requests:
    def __new__(cls, size: int, sector_size: int = 512, **parameters: Any) -> Requests: ...
    def take(self, count: int) -> list[tuple[str, int, int]]: ...
    def slot(self, rank: int) -> int: ...

def complete(parameters: dict[str, Any]) -> dict[str, Any]: ...
