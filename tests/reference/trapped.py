"""The trapped path put together by hand: host, worker (a process, or a thread of this one) and a guest's ports."""

import contextlib
import os
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hvcore.disk.ops import Backend
from hvcore.dispatch.host import HANDOVER_SIZE, Dispatch
from hvcore.dispatch.pool import MediaPool
from hvcore.dispatch.worker import Worker
from hvcore.hypervisor.intercept import Intercepts
from hvcore.ide.requester import Channel, VirtualProcessor
from hvcore.memory.region import Region
from hvcore.partition.emulator import INTERCEPTED_PORTS, Emulator
from hvcore.scsi.target import Target

MEMORY = 0x80000
SCRATCH = 0x40000  # of guest memory, for string transfers of the tests
GUEST_MEDIA = 66 * 4096 + 2 * (4096 + 131072)  # handover.pxd
GUEST_MEDIA_BYTES = 4096 + 8192 + 131072
ANSWERED = 64
PATIENCE = 30.0


class Bench:
    """`disks` are the drives in order of place (primary master ..), None where there is none."""

    def __init__(self, disks: Sequence[Backend | None], *, trim: bool = False, process: bool = True) -> None:
        self.pool = MediaPool()
        self.dispatch = Dispatch(self.pool)
        self.indices: list[int | None] = []
        self.drives = []
        self.process = process
        for place, disk in enumerate(disks):
            self.indices.append(None)
            if disk is not None:
                index = self.indices[-1] = self.dispatch.add_disk(Target(disk), "synthetic", vm=1)
                self.dispatch.attach_drive(index, *divmod(place, 2))
                self.drives.append(
                    (
                        *divmod(place, 2),
                        disk.size // 512,
                        disk.read_only,
                        "",
                        512,
                        trim,
                        self.dispatch.trace_base(index),
                    )
                )
        self.emulator: Emulator | None = None
        self.thread: Worker | None = None
        self.shared: Region
        self.intercepts: Intercepts | None = None
        self.memory: Region | None = None
        self.start_worker()

    def start_worker(self) -> None:
        if self.process:
            self.emulator = Emulator(self.dispatch, [], self.memory, self.drives, self.intercepts)
            self.shared = self.emulator.shared
        else:
            self.shared = Region.create(HANDOVER_SIZE, "worker")
            self.thread = Worker(self.shared, self.dispatch.worker_bell, [], self.drives)
            self.thread.start()
            self.dispatch.worker_attached(self.shared)

    def stop_worker(self) -> None:
        if self.emulator is not None:
            self.emulator.close()
            self.emulator = None

    def show(self, memory: Region | None, intercepts: Intercepts | None) -> None:
        if self.emulator is not None:
            self.emulator.memory(memory, intercepts)
        elif self.thread is not None:
            if memory is None or intercepts is None:
                self.thread.memory(None)
            else:
                self.thread.memory(memory, intercepts.region, intercepts.next_epoch())
                intercepts.worker_attached()

    @contextlib.contextmanager
    def guest(self, size: int = MEMORY) -> Iterator["Ports"]:
        memory, events = Region.create(size, "guest"), Region.create(4096, "events")
        intercepts = Intercepts(INTERCEPTED_PORTS)
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.memory, self.intercepts = memory, intercepts
        self.dispatch.attach(memory, events, bell, intercepts)
        self.show(memory, intercepts)
        try:
            yield Ports(self, memory, intercepts.region)
        finally:
            self.dispatch.detach()
            self.show(None, None)
            self.memory = self.intercepts = None
            os.close(bell)
            for each in (memory, events, intercepts):
                each.close()

    def media(self) -> tuple[int, ...]:
        """Numbers of the media requests that the worker posted, and that the host answered, on both channels."""
        found: list[int] = []
        with memoryview(self.shared) as view:
            for channel in range(2):
                at = GUEST_MEDIA + channel * GUEST_MEDIA_BYTES
                found += struct.unpack_from("<I", view, at) + struct.unpack_from("<I", view, at + ANSWERED)
        return tuple(found)

    def counters(self, place: int) -> dict[str, int]:
        index = self.indices[place]
        assert index is not None
        return self.dispatch.counters(index)

    def close(self) -> None:
        self.stop_worker()
        if self.thread is not None:
            self.thread.close()
            self.dispatch.worker_lost()
            self.shared.close()
        self.dispatch.close()
        self.pool.close()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Memory:
    """Guest memory as a bytearray would be."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def __getitem__(self, at: slice) -> bytes:
        with memoryview(self._region) as view:
            return bytes(view[at])

    def __setitem__(self, at: slice, data: bytes) -> None:
        with memoryview(self._region) as view:
            view[at] = data

    def __eq__(self, other: object) -> bool:
        with memoryview(self._region) as view:
            return bool(view == other)

    __hash__ = None  # type: ignore[assignment]


class Ports:
    """The calls of hvcore.ide.Controller, as port accesses that are intercepted; each waits until the drives have ended
    what it began."""

    def __init__(self, bench: Bench, memory: Region, intercepts: Region) -> None:
        self.bench = bench
        self.processor = VirtualProcessor(memory, intercepts)
        self.region = memory
        self.memory = Memory(memory)
        self.pages = 16
        self.scratch = SCRATCH

    def channel(self, number: int = 0, **options: Any) -> Channel:
        return Channel(self.processor, number, self.allocate, **options)

    def allocate(self, pages: int) -> int:
        first, self.pages = self.pages, self.pages + pages
        return first

    def settle(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            before = self.bench.media()
            self.processor.inb(0x376)  # no side effect; the worker takes what the host answered first
            if before == self.bench.media() and before[0::2] == before[1::2]:
                return
            assert time.monotonic() < deadline, "a media access does not end"

    def __getattr__(self, name: str) -> Any:
        access = getattr(self.processor, name)

        def then_settle(*arguments: Any) -> Any:
            value = access(*arguments)
            self.settle()
            return value

        return then_settle

    def irq(self, channel: int) -> bool:
        return self.processor.irq(channel)

    def insw(self, port: int, buffer: bytearray) -> None:
        words = len(buffer) // 2
        assert self.processor.ins(port, self.scratch, words) == words
        buffer[:] = self.memory[self.scratch : self.scratch + len(buffer)]
        self.memory[self.scratch : self.scratch + len(buffer)] = bytes(len(buffer))
        self.settle()

    def outsw(self, port: int, buffer: bytes) -> None:
        self.memory[self.scratch : self.scratch + len(buffer)] = bytes(buffer)
        assert self.processor.outs(port, self.scratch, len(buffer) // 2) == len(buffer) // 2
        self.memory[self.scratch : self.scratch + len(buffer)] = bytes(len(buffer))
        self.settle()
