"""What the benchmarks of disk requests share: the image, and the offsets of a round."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

import hvcore.metrics.histogram
from hvcore.report.bench import make_image

FILE_BYTES = 256 << 20
BLOCK = 4096

Offsets = npt.NDArray[np.uint64]


@contextlib.contextmanager
def image_file() -> Iterator[Path]:
    """A file of written bytes, so that every block is a page of its own in the cache; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="hvcore-bench-") as folder:
        path = Path(folder, "image")
        make_image(str(path), FILE_BYTES)
        yield path


def random_offsets(seed: int, requests: int) -> Offsets:
    blocks = np.random.default_rng(seed).integers(0, FILE_BYTES // BLOCK, requests, dtype=np.uint64)
    return blocks * np.uint64(BLOCK)


def flavor() -> str:
    """Of the compiled modules: the folder's below build/, else release, as an installation and a build in place are."""
    parts = Path(hvcore.metrics.histogram.__file__).parts
    return parts[parts.index("build") + 1] if "build" in parts[:-1] else "release"
