from hvcore.ide.requester import Channel as IdeChannel
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
def run_traced_drive(
    channel: IdeChannel,
    drive: int,
    mode: int,
    buffer: object,
    size: int,
    *,
    block: int = 4096,
    requests: int = 1000,
    seed: int = 1,
    pattern_seed: int | None = None,
) -> bytes: ...
