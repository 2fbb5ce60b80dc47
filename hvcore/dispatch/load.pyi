from typing import Any

from hvcore.disk.ops import Backend
from hvcore.storage.vsc import Channel

class Requester: ...

def fill_pattern(buffer: object, offset: int, seed: int) -> None: ...
def holds_pattern(buffer: object, offset: int, seed: int) -> bool: ...
def run_channel(
    channel: Channel,
    buffer: object,
    size: int,
    sector_size: int,
    *,
    rw: str = "randread",
    block: int = 4096,
    depth: int = 1,
    seconds: float | None = None,
    requests: int | None = None,
    seed: int = 1,
    pattern_seed: int | None = None,
) -> dict[str, Any]: ...
def run_traced(
    channel: Channel,
    buffer: object,
    size: int,
    sector_size: int,
    *,
    block: int = 4096,
    requests: int = 1000,
    seed: int = 1,
    pattern_seed: int | None = None,
) -> bytes: ...
def run_disk(
    disk: Backend,
    *,
    rw: str = "randread",
    block: int = 4096,
    seconds: float | None = None,
    requests: int | None = None,
    seed: int = 1,
    pattern_seed: int | None = None,
) -> dict[str, Any]: ...
