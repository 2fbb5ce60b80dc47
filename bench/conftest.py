"""The source tree last on the path: the benchmarks share modules and twins, and measure the installed hvcore."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The image that the benchmarks read."""
    from bench.image import image_file

    with image_file() as path:
        yield path
