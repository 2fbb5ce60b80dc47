from typing import final

from hvcore.disk.ops import Backend
from hvcore.dispatch.load import Requester
from hvcore.storage.vsc import Channel

@final
class ChannelRequester(Requester):
    def __new__(cls, channel: Channel, size: int, sector_size: int, *, lun: int = 0) -> ChannelRequester: ...

@final
class DiskRequester(Requester):
    def __new__(cls, disk: Backend) -> DiskRequester: ...
