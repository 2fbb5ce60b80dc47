"""The floor under the paths' figures: 4 KiB random reads of a file in the page cache, three ways, interleaved.

floor: a server process behind two bare rings; local: a loop of preadv without the GIL; python: os.preadv from Python.
Run by pytest-benchmark (its time is one round of the floor), or alone: python -m bench.bench_floor [--json].
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.rounds import (
    BLOCK,
    DEPTHS,
    Result,
    Rounds,
    each,
    placement,
    preadv_step,
    random_offsets,
    script,
    table,
)
from hvcore.dispatch.floor import Floor, local_preadv

REQUESTS = 100_000


@contextlib.contextmanager
def rounds(path: Path, depth: int) -> Iterator[Rounds]:
    with contextlib.ExitStack() as stack:
        floor = stack.enter_context(Floor(path, BLOCK, depth, placement()))
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        yield Rounds(
            depth,
            {
                "floor": lambda seed: Result(REQUESTS, *floor.run(random_offsets(seed, REQUESTS))),
                "local": lambda seed: Result(
                    REQUESTS, *local_preadv(path, random_offsets(seed, REQUESTS), BLOCK, depth)
                ),
                "python": each(preadv_step(fd, depth), REQUESTS),
            },
            bases=("floor",),
        )


def figures(compared: Rounds) -> dict[str, Any]:
    return {**compared.figures(), "notes": {"floor on CPUs": placement()}}


def compare(path: Path, depth: int) -> dict[str, Any]:
    with rounds(path, depth) as compared:
        compared.all()
    return figures(compared)


@pytest.mark.parametrize("depth", DEPTHS)
def test_floor(benchmark: Any, image: Path, depth: int) -> None:
    with rounds(image, depth) as compared:
        compared.benchmark(benchmark)
    benchmark.extra_info.update(figures(compared))
    print("\n" + table(benchmark.extra_info))


if __name__ == "__main__":
    script("The floor under the paths' figures.", compare)
