"""Starting processes of hvcore: spawned, never forked, in a session of their own, with the descriptors they need."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import hvcore

PACKAGE_ROOT = str(Path(hvcore.__file__).parent.parent)


def spawn(
    module: str, arguments: Iterable[str] = (), descriptors: Iterable[int] = (), *, search: Iterable[str] = ()
) -> "subprocess.Popen[bytes]":
    """Runs `python -m module`. The descriptors keep their numbers; all else is closed. search: more of sys.path."""
    environment = dict(os.environ)
    # -P: the current directory is not searched, so that no file there can stand in for a module of ours. hvcore itself
    # is found where this process found it.
    paths = [PACKAGE_ROOT, *search]
    if inherited := environment.get("PYTHONPATH"):
        paths.append(inherited)
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(descriptors),
        env=environment,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[bytes]", patience: float) -> int:
    """Waits for a process that was told to end, kills it when it does not, and reaps it; its exit status."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        return kill(process)


def kill(process: "subprocess.Popen[bytes]") -> int:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    return process.wait()
