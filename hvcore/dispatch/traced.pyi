from hvcore.storage.vsc import Channel

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
    lun: int = 0,
) -> bytes: ...
