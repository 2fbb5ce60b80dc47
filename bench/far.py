"""The far end of a one-way stream between two processes: python -m bench.far KIND PLACE SIZE.

Each line on standard input is {"count": n}; when so many packets have been received, the answer is a line {}. PLACE: a
file that both have mapped, a socket's path, or the number of an inherited descriptor.
"""

import json
import mmap
import sys
from collections.abc import Callable
from typing import Any

DATA = 256 << 10  # bytes for packets, as bench.rings has it

Receive = Callable[[int], None]  # returns after so many packets


def shared(place: str) -> mmap.mmap:
    with open(place, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def polled(take: Callable[[], Any]) -> Receive:
    """Calls `take` until it gave so many packets that are not None."""

    def receive(count: int) -> None:
        for _ in range(count):
            while take() is None:
                pass

    return receive


def called(take: Callable[[], Any]) -> Receive:
    def receive(count: int) -> None:
        for _ in range(count):
            take()

    return receive


def ring(place: str, size: int) -> Receive:
    from hvcore.vmbus import Ring

    return polled(Ring.attach(shared(place)).receive)


def ring_list(place: str, size: int) -> Receive:
    from hvcore.vmbus import Ring

    take = Ring.attach(shared(place)).receive_batch

    def receive(count: int) -> None:
        while count:
            count -= len(take())

    return receive


def ring_buffer(place: str, size: int) -> Receive:
    from hvcore.vmbus import Ring

    take, buffer = Ring.attach(shared(place)).receive_into, bytearray(32 * size)

    def receive(count: int) -> None:
        while count:
            count -= take(buffer, size)

    return receive


def zmq(place: str, size: int) -> Receive:
    import zmq

    socket = zmq.Context().socket(zmq.PULL)
    socket.connect(place)
    return called(socket.recv)


def pipe(place: str, size: int) -> Receive:
    from multiprocessing.connection import Connection

    return called(Connection(int(place), writable=False).recv_bytes)


def subetha(place: str, size: int) -> Receive:
    import subetha

    return polled(subetha.SpscRing.open(place, DATA // 64).pop)


KINDS: dict[str, Callable[[str, int], Receive]] = {
    "ring": ring,
    "ring list": ring_list,
    "ring buffer": ring_buffer,
    "pyzmq": zmq,
    "Pipe": pipe,
    "subetha": subetha,
}


def main() -> None:
    kind, place, size = sys.argv[1:]
    receive = KINDS[kind](place, int(size))
    for line in sys.stdin:
        receive(json.loads(line)["count"])
        print("{}", flush=True)


if __name__ == "__main__":
    main()
