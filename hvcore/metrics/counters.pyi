from typing_extensions import Buffer

COUNTERS_BYTES: int
NAMES: tuple[str, ...]

def counters_snapshot(buffer: Buffer, offset: int = 0) -> dict[str, int]: ...
def context_switches() -> tuple[int, int]: ...
