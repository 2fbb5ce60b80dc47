"""`hvcore compare` interrupted while it measures leaves nothing behind (conftest looks for processes and files)."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def descendants(pid):
    """Processes below `pid`, as the kernel knows them now."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle(number):
    command = [sys.executable, "-m", "hvcore", "compare", "--runtime", "600"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 30
        # Host and worker are there: the VM is up and what follows is measuring.
        while len(below := descendants(running.pid)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(below) == 2
        running.send_signal(number)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 128 + number
    assert out == "" and "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)
