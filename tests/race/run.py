"""Builds a sanitizer flavor and runs this folder's loops in it: python tests/race/run.py thread | address.

thread: ThreadSanitizer on the race tests, then on the canary, whose missing release store it must report.
address: AddressSanitizer and UBSan on every test of the tree (arguments after the flavor go to pytest).
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=0:exitcode=66",
    # The interpreter's own allocations are never all freed; leaks of ours are counted by tests.
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=66",
    # Each object its own malloc, so that an overrun meets a red zone.
    "PYTHONMALLOC": "malloc",
}


def build(flavor: str) -> dict[str, str]:
    """The environment in which the flavor runs."""
    env = os.environ | {"HVCORE_FLAVOR": flavor, "HVCORE_EXTRA": "tests/race"}
    subprocess.run([sys.executable, "setup.py", "-q", "build"], cwd=TOP, env=env, check=True)
    (library,) = (TOP / "build" / flavor).glob("lib.*")
    runtimes = ["libasan.so", "libubsan.so"] if flavor == "address" else ["libtsan.so"]
    find = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip() for name in runtimes]
    return (
        env
        | OPTIONS
        | {
            "LD_PRELOAD": " ".join(find),
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{library}{os.pathsep}{TOP}",
        }
    )


def pytest(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without address randomisation: the sanitizers' shadow maps do not fit every layout of newer kernels.
    command = ["setarch", platform.machine(), "-R", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s"]
    probe = [*command[:4], "-c", "import tests_race_ringloop as m; print(m.__file__)"]
    loaded = subprocess.run(probe, cwd=TOP, env=env, text=True, capture_output=True, check=False)
    if f"build/{env['HVCORE_FLAVOR']}/" not in loaded.stdout:
        sys.exit(f"the {env['HVCORE_FLAVOR']} build does not load: {loaded.stdout}{loaded.stderr}")
    return subprocess.run([*command, *arguments], cwd=TOP, env=env, text=True, capture_output=True, check=False)


def thread(arguments: list[str]) -> str:
    # A scribbling peer is a data race by intent: not for this flavor.
    run = pytest(build("thread"), "-q", "tests/race", "-k", "not hostile", *arguments)
    if run.returncode != 0 or "WARNING: ThreadSanitizer" in run.stdout + run.stderr:
        sys.exit(f"{run.stdout}{run.stderr}")
    canary = pytest(build("canary"), "-q", "tests/race/test_ring.py", "-k", "every_packet")
    report = canary.stdout + canary.stderr
    if "WARNING: ThreadSanitizer: data race" not in report or "ring_publish" not in report:
        sys.exit(f"ThreadSanitizer did not report the plain store of In:\n{report}")
    return f"{run.stdout}canary: {report.count('WARNING: ThreadSanitizer: data race')} reports, as it must\n"


def address(arguments: list[str]) -> str:
    run = pytest(build("address"), "-q", *(arguments or ["tests"]))
    if run.returncode != 0:
        sys.exit(f"{run.stdout}{run.stderr}")
    return run.stdout


if __name__ == "__main__":
    flavors = {"thread": thread, "address": address}
    if len(sys.argv) < 2 or sys.argv[1] not in flavors:
        sys.exit(__doc__)
    print(flavors[sys.argv[1]](sys.argv[2:]), end="")
