from typing import final

from hvcore.disk.ops import Backend
from hvcore.dispatch.load import Requester
from hvcore.ide.requester import OUTCOMES as OUTCOMES
from hvcore.ide.requester import Channel as IdeChannel
from hvcore.storage.vsc import Channel

@final
class ChannelRequester(Requester):
    def __init__(self, channel: Channel, size: int, sector_size: int, *, lun: int = 0) -> None: ...

@final
class DiskRequester(Requester):
    def __init__(self, disk: Backend) -> None: ...

@final
class DriveRequester(Requester):
    def __init__(self, channel: IdeChannel, drive: int, mode: int, size: int, *, read_only: bool = False) -> None: ...
