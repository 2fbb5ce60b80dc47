"""A host behind a named socket, as a process of its own."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hvcore.partition.process import end
from tests.reference.vms import PATIENCE, until

SERVE = "import sys; from hvcore.partition.daemon import serve; serve(sys.argv[1])"


def start(path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(path)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def daemon(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Serves at `path`; is ended, by SIGTERM when nothing else ended it, and must then have left nothing."""
    with start(path) as process:
        try:
            until(lambda: listening(path), "it listens")
            yield process
        finally:
            process.terminate()
            end(process, PATIENCE)


def listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
