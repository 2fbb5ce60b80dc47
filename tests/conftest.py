"""Ground rules of every test: one hvcore for the test and its child processes, and nothing left behind."""

import contextlib
import gc
import importlib.util
import os
import select
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Last on the path: an installed hvcore, or a build folder on PYTHONPATH, goes before the source tree's package, which
# has compiled modules only after an in-place build. tests.reference and the like are found here in any case.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT)]


def _hvcore_folder() -> str:
    found = importlib.util.find_spec("hvcore")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent.parent)


# Python children of the tests find the same hvcore, whatever folder they are started in.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join([_hvcore_folder(), str(ROOT)])
# Inherited by every descendant, so that one whose parent is gone is still known as ours.
RUN = f"HVCORE_TEST_RUN={uuid.uuid4()}"
os.environ.update([RUN.split("=")])

# A run in the background of a shell ignores Ctrl-C, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("hvcore", derandomize=True, deadline=None)
settings.load_profile("hvcore")


def descriptors() -> dict[int, str]:
    """Open descriptors of this process and what they lead to."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        # The listing's own descriptor is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def processes() -> Iterator[Path]:
    """The folder of every process of this machine."""
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def children() -> set[int]:
    """Child processes of this process, ended but unreaped ones included."""
    found = set()
    lists = [thread / "children" for thread in Path("/proc/self/task").iterdir()]
    if lists[0].exists():
        for each in lists:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found |= {int(pid) for pid in each.read_text().split()}
        return found
    # A kernel without those lists. The name in parentheses may hold anything; the parent is the second word after it.
    for process in processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(process.name))
    return found


def descendants() -> set[int]:
    """Running processes that the tests started, directly or not, even if their parent is gone."""
    found = set()
    for process in processes():
        with contextlib.suppress(OSError):
            if RUN.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
    return found - {os.getpid()}


def command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        words = ""
    return f"{pid} {words or '(ended, not reaped)'}"


def put_away(pids: set[int]) -> None:
    """Ends what a failed test left, so that the next test is judged by itself."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def ended(pid: int, timeout_s: float) -> bool:
    """Waits for the end of any process; False when it is still running after the time."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], timeout_s)[0])
    finally:
        os.close(watch)


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary folder that tests and their children use unasked; sockets and state of the user are never touched."""
    # tmp_path stays where it always is, to be looked at after a failure.
    tmp_path_factory.getbasetemp()
    # Short, because the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hvcore-test-") as name, pytest.MonkeyPatch.context() as patch:
        scratch = Path(name, "tmp")
        for variable, folder in (("XDG_RUNTIME_DIR", "run"), ("XDG_STATE_HOME", "state"), ("TMPDIR", "tmp")):
            Path(name, folder).mkdir(mode=0o700)
            patch.setenv(variable, str(Path(name, folder)))
        patch.setattr(tempfile, "tempdir", str(scratch))
        yield scratch


@pytest.fixture(scope="module", autouse=True)
def small_collections() -> None:
    """What is alive before a module's tests stays out of their garbage collections: thousands of collected tests and
    their reports would make each one slow, and some tests ask for one after every step."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_process_left() -> Iterator[None]:
    """No process outlives its module's tests. One that has just lost its parent gets the time to notice."""
    yield
    left = {pid for pid in descendants() if not ended(pid, timeout_s=10)}
    names = [command(pid) for pid in sorted(left)]
    put_away(left)
    assert not names, f"processes left behind: {names}"


@pytest.fixture(autouse=True)
def nothing_left(scratch: Path) -> Iterator[None]:
    """A test leaves no child process, no open descriptor and no temporary file (other than in tmp_path)."""
    children_before, descriptors_before = children(), descriptors()
    yield
    left = children() - children_before
    names = [command(pid) for pid in sorted(left)]
    put_away(left)
    now = descriptors()
    if len(now) > len(descriptors_before):
        # Perhaps only garbage in a cycle.
        gc.collect()
        now = descriptors()
    grown = len(now) - len(descriptors_before)
    opened = [f"{fd} {target}" for fd, target in now.items() if descriptors_before.get(fd) != target]
    files = list(scratch.iterdir())
    for file in files:
        file.rename(scratch.parent / f"left-{uuid.uuid4()}")
    assert not names, f"child processes left behind: {names}"
    assert grown <= 0, f"{grown} descriptors left open, among {opened}"
    assert not files, f"temporary files left behind: {files}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line of what the tests of power cuts and faults have looked at; with -v, one per scenario."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    told = [(name, value, report) for report in reports for name, value in getattr(report, "user_properties", [])]
    cuts = {value[0]: value[1:] for name, value, _ in told if name == "crash_points"}
    faults = [value for name, value, _ in told if name == "faults"]

    def verdict(module: str, good: str) -> str:
        bad = sum(report.failed for report in reports if module in report.nodeid)
        return f"{bad} tests FAILED" if bad else good

    if cuts:
        states = sum(map(sum, cuts.values()))
        end = verdict("test_crash_points", "all opened, clean and complete")
        terminalreporter.write_line(f"crash points: {states:,} states in {len(cuts)} scenarios, {end}")
        if terminalreporter.verbosity > 0:
            for scenario, (first, later) in cuts.items():
                terminalreporter.write_line(f"  {scenario}: {first:,}, and {later:,} after its recoveries")
    if faults:
        runs = sum(runs for _, runs in faults)
        scenarios = len({scenario for scenario, _ in faults})
        end = verdict("test_faults", "nothing flushed was lost")
        terminalreporter.write_line(f"faults: {runs:,} runs of {scenarios} scenarios, {end}")
