"""The peer from elsewhere: qemu-nbd over a Unix socket, through libnbd's own Python binding.

The binding belongs to the distribution's Python, so this is a program of its own: python3 nbd_peer.py IMAGE. Each
line on standard input is "depth count seed"; the answer is a line of JSON, {"seconds": 1.5, "latencies_ns": [2, 3]}.
Depth 1 is a loop of pread; above that, aio_pread with so many in flight. End-of-file ends it, and qemu-nbd with it.
"""

import json
import random
import sys
import time

import nbd

BLOCK = 4096


def one_by_one(handle: nbd.NBD, offsets: list[int]) -> list[int]:
    latencies = []
    for offset in offsets:
        begin = time.monotonic_ns()
        handle.pread(BLOCK, offset)
        latencies.append(time.monotonic_ns() - begin)
    return latencies


def in_flight(handle: nbd.NBD, offsets: list[int], depth: int) -> list[int]:
    latencies: list[int] = []
    idle = [nbd.Buffer(BLOCK) for _ in range(depth)]

    def submit(offset: int) -> None:
        buffer = idle.pop()
        begin = time.monotonic_ns()

        def done(error: int) -> int:
            if error:
                raise OSError(error, f"the read at {offset} failed")
            latencies.append(time.monotonic_ns() - begin)
            idle.append(buffer)
            return 1  # the command is retired

        handle.aio_pread(buffer, offset, completion=done)

    for offset in offsets:
        while not idle:
            handle.poll(-1)
        submit(offset)
    while len(idle) < depth:
        handle.poll(-1)
    return latencies


def main() -> None:
    handle = nbd.NBD()
    handle.connect_systemd_socket_activation(["qemu-nbd", "--format=raw", "--read-only", sys.argv[1]])
    size = handle.get_size()
    for line in sys.stdin:
        depth, count, seed = map(int, line.split())
        place = random.Random(seed)
        offsets = [place.randrange(size // BLOCK) * BLOCK for _ in range(count)]
        begin = time.monotonic()
        latencies = one_by_one(handle, offsets) if depth == 1 else in_flight(handle, offsets, depth)
        seconds = time.monotonic() - begin
        print(json.dumps({"seconds": seconds, "latencies_ns": latencies}), flush=True)


if __name__ == "__main__":
    main()
