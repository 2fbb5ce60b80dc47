"""Images and what guests do to them, for tests that cut the power or break the medium at every moment.

Each is named in ALL once; the tests run over all of them.
"""

from pathlib import Path

from hvcore.disk.image import open_image
from hvcore.vhd import create
from tests.reference.crash import Scenario, Step, fresh

W, T, F = "write", "trim", "flush"
FLUSH: Step = (F, 0, 0)
REOPEN: Step = ("reopen", 0, 0)
HERE: Step = ("here", 0, 0)


def flat(format: str) -> Scenario:
    sectors = 64

    def build(folder: Path) -> bytes:
        path = folder / "disk"
        create(path, sectors * 512, format)
        content = fresh(0, 0, sectors // 2) + bytes(sectors // 2 * 512)
        with path.open("r+b") as file:
            file.write(content)
        return content

    trim: tuple[Step, ...] = ((T, 8, 16),) if format == "raw" else ()
    return Scenario(
        name={"raw": "raw", "vhd": "fixed VHD"}[format],
        disk="disk",
        build=build,
        open=lambda path, mode: open_image(path, mode=mode, format=format),
        steps=(
            (W, 0, 8),
            (W, 4, 1),
            FLUSH,
            (W, 4, 8),
            *trim,
            (W, 20, 3),
            FLUSH,
            FLUSH,
            (W, 62, 2),
            (W, 0, 64),
            *trim,
            (W, 9, 2),
            REOPEN,
            (W, 1, 1),
            FLUSH,
            (W, 2, 30),
        ),
    )


ALL = (flat("raw"), flat("vhd"))
