"""Hostile images without end: changes of fields, guided by coverage of the Python code that reads them.

python tests/fuzz/fuzz_images.py [-max_total_time=SECONDS] [libFuzzer options, corpus folders]; needs atheris (PyPI).
An input that breaks a promise is left in a file named crash-..., and is run again by naming that file.
"""

import resource
import signal
import sys
import tempfile
from pathlib import Path

import atheris

# Last: hvcore is the installed one, the images are made by the tests' own builders.
sys.path.append(str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["hvcore.disk", "hvcore.vhd"]):
    import hvcore.disk.image
    import hvcore.vhd  # noqa: F401

from tests.reference.exercise import exercise
from tests.reference.hostile import seeds, written

SECONDS = 10  # for one image
MEMORY = 2 << 30
CHANGES = 6
SEEDS = seeds()
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None  # files that need no disk


def late(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"an image took more than {SECONDS} seconds")


def one(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    seed = SEEDS[provider.ConsumeIntInRange(0, len(SEEDS) - 1)]
    changes = []
    for _ in range(provider.ConsumeIntInRange(0, CHANGES)):
        which, where = provider.ConsumeIntInRange(0, 255), provider.ConsumeIntInRange(0, 255)
        value, copies = provider.ConsumeIntInRange(0, (1 << 64) - 1), provider.ConsumeIntInRange(0, 15)
        changes.append((which, where, value, copies))
    format = seed.format if provider.ConsumeBool() else None
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = written(Path(folder), seed, changes)
        signal.alarm(SECONDS)
        try:
            exercise(path, format)
        except BaseException:
            print(f"{seed.format} {seed.name}: {changes}", file=sys.stderr, flush=True)
            raise
        finally:
            signal.alarm(0)


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    atheris.Setup([sys.argv[0], "-max_len=160", "-len_control=0", *sys.argv[1:]], one)
    atheris.Fuzz()
