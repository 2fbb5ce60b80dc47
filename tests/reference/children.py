"""Functions that child partitions and clients of the process tests run."""

import os
import signal
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import hvcore
from hvcore.partition.guest import Guest

BLOCK = 4096


def add(guest: Guest, a: int, b: int) -> dict[str, Any]:
    return {"sum": a + b, "disks": [disk.size for disk in guest.disks], "pid": os.getpid()}


def first_bytes(guest: Guest) -> bytes:
    return guest.disks[0].read(0, 4096)


def fail(guest: Guest, text: str) -> None:
    raise KeyError(text)


def device_error(guest: Guest) -> None:
    guest.disks[0].write(0, bytes(512))


def unpicklable(guest: Guest) -> Any:
    return lambda: guest


class Odd(Exception):
    """Pickles, and cannot be made again."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("odd")


def odd_exception(guest: Guest) -> None:
    raise Odd(1, 2)


def leave(guest: Guest, status: int) -> None:
    raise SystemExit(status)


def vanish(guest: Guest, status: int) -> None:
    os._exit(status)


def hang(guest: Guest) -> None:
    while True:
        signal.pause()


def report_and_hang(guest: Guest, descriptor: str) -> None:
    with open(descriptor, "wb", buffering=0) as pipe:
        pipe.write(b"here\n")
        hang(guest)


def rounds(blocks: int, seed: int) -> Iterator[list[tuple[int, bytes]]]:
    """Batches of writes without end: (block number, content), no block twice in one batch."""
    random = Random(seed)
    number = 0
    while True:
        number += 1
        yield [
            (block, number.to_bytes(8, "little") + block.to_bytes(8, "little") + random.randbytes(16) * 255)
            for block in random.sample(range(blocks), 16)
        ]


def write_rounds(guest: Guest, disk_number: int, seed: int, fifo: str) -> None:
    """Writes round after round, a flush after each, and says so after it."""
    disk = guest.disks[disk_number]
    with open(fifo, "wb", buffering=0) as said:
        for batch in rounds(disk.size // BLOCK, seed):
            disk.write_batch([block * BLOCK for block, _ in batch], b"".join(data for _, data in batch), queue_depth=16)
            disk.flush()
            said.write(b".")


def client(*images: str) -> None:
    """A client with a host, a worker, and a child that hangs; says who they are and waits to be killed."""
    fifo, *rest = images
    host = hvcore.Host()
    disks = [hvcore.DiskConfig(image, path="emulated", format="raw") for image in rest]
    vm = host.create_vm("client", "16M", disks)
    vm.start()
    child = vm.run("tests.reference.children:report_and_hang", fifo)
    with open(fifo, "rb") as said:
        assert said.readline() == b"here\n"
    print(host.pid, vm.describe()["worker"], child.pid, flush=True)
    signal.pause()


def read_for_ever(image: str) -> None:
    """A client whose own read is never answered: its host is stopped meanwhile. Ctrl-C ends it."""
    with hvcore.Host() as host, host.create_vm("blocked", "16M", [hvcore.DiskConfig(image, format="raw")]) as vm:
        vm.start()
        with vm.attach() as guest:
            print(host.pid, flush=True)
            sys.stdin.readline()
            try:
                print("reading", flush=True)
                guest.disks[0].read(0, 4096)
            except KeyboardInterrupt:
                print("interrupted", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
