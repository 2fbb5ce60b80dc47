"""A controller with several disks whose two ends live in this process: VSC channels and the host's data path."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from hvcore.disk.ops import Backend
from hvcore.dispatch.host import Dispatch
from hvcore.dispatch.pool import MediaPool
from hvcore.memory.region import Region
from hvcore.scsi.target import Target
from hvcore.storage.vsc import Channel

RING_PAGES = 33  # of each direction, control page included
MEMORY = 32 << 20


@contextlib.contextmanager
def channels_to(
    disks: Sequence[Backend], sub_channels: int = 0, pool_threads: int = 2
) -> Iterator[tuple[list[Channel], Dispatch]]:
    """Channels of a controller with the disks at LUN 0, 1, ...: primary and sub-channels; and the host's data path."""
    memory, events = Region.create(MEMORY), Region.create(4096)
    doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    free = 1

    def allocate(count: int) -> int:
        nonlocal free
        if free + count > MEMORY // 4096:
            raise MemoryError("no pages left")
        free += count
        return free - count

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, doorbell)
        pool = MediaPool(pool_threads)
        stack.callback(pool.close)
        dispatch = stack.enter_context(Dispatch(pool))
        index = dispatch.add_controller(sub_channels=sub_channels)
        for lun, disk in enumerate(disks):
            number = dispatch.add_disk(Target(disk, id=bytes([lun]) * 16), "synthetic")
            dispatch.attach_unit(index, lun, number)
        dispatch.attach(memory, events, doorbell)
        channels: list[Channel] = []
        for sub in range(sub_channels + 1):
            first = allocate(2 * RING_PAGES)
            pages = list(range(first, first + 2 * RING_PAGES))
            channel = Channel(memory, events, doorbell, sub + 1, pages, RING_PAGES, allocate, depth=256)
            assert dispatch.open_channel(index, sub, sub + 1, pages, RING_PAGES)
            stack.callback(channel.end)
            if sub == 0:
                channel.start()
            else:
                channel.inherit(channels[0])
            channels.append(channel)
        yield channels, dispatch
