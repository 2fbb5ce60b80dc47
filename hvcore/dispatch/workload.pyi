from typing import Any, final

OPERATIONS: tuple[str, ...]
OFFSETS: tuple[str, ...]
SIZES_MAX: int
THETA_MAX: float

@final
class Requests:
    def __init__(self, size: int, sector_size: int = 512, **parameters: Any) -> None: ...
    def take(self, count: int) -> list[tuple[str, int, int]]: ...
    def slot(self, rank: int) -> int: ...

def complete(parameters: dict[str, Any]) -> dict[str, Any]: ...
