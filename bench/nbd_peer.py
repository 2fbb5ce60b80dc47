"""A client of an NBD server on a Unix socket, through libnbd's own Python binding.

The binding belongs to the distribution's Python, so this is a program of its own: python3 nbd_peer.py SOCKET. Each line
on standard input is a JSON object {"depth", "count", "block", "seed", "sequential"}; the answer is a line of JSON,
{"seconds": 1.5, "latencies_ns": [2, 3]}. Depth 1 is a loop of pread; above that, aio_pread with so many in flight.
{"fill": true} writes the whole disk first. End-of-file ends it.
"""

import json
import random
import sys
import time
from typing import Any

import nbd

MIB = 1 << 20


def one_by_one(handle: nbd.NBD, offsets: list[int], block: int) -> list[int]:
    latencies = []
    for offset in offsets:
        begin = time.monotonic_ns()
        handle.pread(block, offset)
        latencies.append(time.monotonic_ns() - begin)
    return latencies


def in_flight(handle: nbd.NBD, offsets: list[int], block: int, depth: int) -> list[int]:
    latencies: list[int] = []
    idle = [nbd.Buffer(block) for _ in range(depth)]

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


def fill(handle: nbd.NBD, size: int) -> None:
    chunk = bytearray(range(256)) * (MIB // 256)
    for offset in range(0, size, MIB):
        handle.pwrite(chunk, offset)


def reads(handle: nbd.NBD, size: int, job: dict[str, Any]) -> dict[str, Any]:
    block, depth, count = job["block"], job["depth"], job["count"]
    blocks = size // block
    place = random.Random(job["seed"])
    start = place.randrange(blocks)
    numbers = ((start + i) % blocks if job["sequential"] else place.randrange(blocks) for i in range(count))
    offsets = [number * block for number in numbers]
    begin = time.monotonic()
    latencies = one_by_one(handle, offsets, block) if depth == 1 else in_flight(handle, offsets, block, depth)
    return {"seconds": time.monotonic() - begin, "latencies_ns": latencies}


def main() -> None:
    handle = nbd.NBD()
    handle.connect_unix(sys.argv[1])
    size = handle.get_size()
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        if job.get("fill"):
            fill(handle, size)
        else:
            answer = reads(handle, size, job)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
