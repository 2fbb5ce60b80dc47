"""Every figure that the documentation claims, beside its peers: python -m bench.run [--quick] [--json FILE].

Needs the compiled loops of this folder (HVCORE_EXTRA=bench python setup.py build_ext --inplace). Peers that are not
installed are left out by name; `pip install hvcore[bench]` and Debian's qemu-utils, nbdkit, fio and python3-libnbd
bring them all. Prints the table that `python -m bench.table FILE` makes of the JSON.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.image import flavor, image_file
from bench.measure import Contest, file_system, machine, placements

SCHEMA = "hvcore.bench/1"


def contests(path: Path, quick: bool, rounds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every contest by name, each a call that runs it."""
    from bench import growth, requests, rings, wake

    sizes = requests.Sizes(quick)

    def run(make: Callable[[], AbstractContextManager[Contest]]) -> Callable[[], dict[str, Any]]:
        def whole() -> dict[str, Any]:
            with make() as contest:
                found = contest.run(rounds)
            found["notes"] = contest.notes
            return found

        return whole

    pairs = placements()
    wakes = 10 if quick else 40
    found = {
        "commands": run(lambda: requests.commands(path, sizes, pairs[0])),
        **{
            f"commands, CPUs {pair[0]} and {pair[1]}": run(lambda pair=pair: requests.commands(path, sizes, pair))
            for pair in pairs[1:]
        },
        "reads, depth 1": run(lambda: requests.reads(path, sizes, 1)),
        "reads, depth 32": run(lambda: requests.reads(path, sizes, 32)),
        "formats": run(lambda: requests.formats(path, sizes)),
        "sequential": run(lambda: requests.sequential(path, sizes)),
        "paths": run(lambda: requests.paths(path, sizes)),
        "ring, 64 B": run(lambda: rings.one_way(64, quick)),
        "ring, 4096 B": run(lambda: rings.one_way(4096, quick)),
        "wake": lambda: wake.contest(path, rounds, wakes, list(pairs[0])),
        "wake, one CPU": lambda: wake.contest(path, rounds, wakes, [pairs[0][0]]),
        "idle": lambda: growth.idle(path),
        "growth": lambda: growth.scaling(path, max(2, rounds // 3), 4096 if quick else 65536),
        # Last, because the pages that they leave behind are written back later.
        "writes, depth 1": run(lambda: requests.writes(path, sizes, 1)),
        "writes, depth 32": run(lambda: requests.writes(path, sizes, 32)),
    }
    if pairs[0][0] == pairs[0][1]:
        del found["wake"]
    return found


def report(quick: bool, rounds: int, only: list[str]) -> dict[str, Any]:
    from bench.targets import rows

    begin, load = time.monotonic(), os.getloadavg()[0]
    found: dict[str, Any] = {}
    with image_file() as path:
        where = file_system(path)
        for name, measure in contests(path, quick, rounds).items():
            if only and not any(name.startswith(word) for word in only):
                continue
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            found[name] = measure()
            print(f"{found[name]['seconds']:.0f} s", file=sys.stderr)
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "flavor": flavor(),
        "rounds": rounds,
        "seconds": round(time.monotonic() - begin, 1),
        "load_average": [load, os.getloadavg()[0]],
        "nice": os.nice(0),
        "file_system": where,
        "rows": rows(found),
        "contests": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Every figure beside its peers, in one run.")
    parser.add_argument("--quick", action="store_true", help="fewer requests and 3 rounds: shows that it works")
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each contest (11; quick: 3)")
    parser.add_argument("--json", metavar="FILE", help="everything that was measured")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contests whose name begins so")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        made = report(arguments.quick, arguments.rounds or (3 if arguments.quick else 11), arguments.only)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(made, indent=1) + "\n")
        from bench.table import table

        print(table(made))


if __name__ == "__main__":
    main()
