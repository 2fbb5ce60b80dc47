"""A storage channel whose two ends, and the IDE emulator, live in this process: the data path without its processes."""

import contextlib
import os
from collections.abc import Iterator

from hvcore.disk.ops import Backend
from hvcore.dispatch.host import HANDOVER_SIZE, Dispatch
from hvcore.dispatch.pool import MediaPool
from hvcore.dispatch.worker import Worker
from hvcore.memory.region import Region
from hvcore.scsi.target import Target
from hvcore.storage.vsc import Channel

RING_PAGES = 9  # of each direction, control page included
MEMORY = 4 << 20
IDE_MODES = ("dma", "pio", "pio-string", "pio-multiple")


@contextlib.contextmanager
def channel_to(disk: Backend, place: str) -> Iterator[Channel]:
    """place: "synthetic", or an IDE mode."""
    memory, events = Region.create(MEMORY), Region.create(4096)
    doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    pages = list(range(1, 2 * RING_PAGES + 1))
    free = len(pages) + 1

    def allocate(count: int) -> int:
        nonlocal free
        free += count
        return free - count

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, doorbell)
        pool = MediaPool()
        stack.callback(pool.close)
        dispatch = stack.enter_context(Dispatch(pool))
        mode = IDE_MODES.index(place) if place in IDE_MODES else None
        index = dispatch.add_controller()
        ide = {} if mode is None else {"mode": mode}
        number = dispatch.add_disk(Target(disk), "synthetic" if mode is None else "emulated", **ide)
        dispatch.attach_unit(index, 0, number)
        if mode is not None:
            shared = Region.create(HANDOVER_SIZE)
            drive = (0, 0, disk.size // 512, disk.read_only, "serial", 512)
            worker = Worker(shared, dispatch.worker_bell, [drive])
            stack.callback(worker.close)
            worker.start()
            worker.memory(memory)
            dispatch.worker_attached(shared)
            stack.callback(dispatch.worker_lost)
        dispatch.attach(memory, events, doorbell)
        assert dispatch.open_channel(index, 0, 1, pages, RING_PAGES)
        channel = Channel(memory, events, doorbell, 1, pages, RING_PAGES, allocate, depth=64)
        stack.callback(channel.end)
        channel.start()
        yield channel
