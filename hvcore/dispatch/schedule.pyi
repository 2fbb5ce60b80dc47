from typing import final

ARRIVALS: tuple[str, ...]
RATE_MAX: float

@final
class Arrivals:
    def __new__(cls, rate: float, arrivals: str = "constant", seed: int = 1) -> Arrivals: ...
    def take(self, count: int) -> list[int]: ...
    def left(self, end_ns: int) -> int: ...
