from typing import final

ARRIVALS: tuple[str, ...]
RATE_MAX: float

@final
class Arrivals:
    def __init__(self, rate: float, arrivals: str = "constant", seed: int = 1) -> None: ...
    def take(self, count: int) -> list[int]: ...
    def left(self, end_ns: int) -> int: ...
