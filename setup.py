"""Build of the Cython extensions; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# Explicit, floor by floor, so that a missing source is an error and never a wheel without extensions.
MODULES = {
    "linux": ["cpu"],
    "memory": ["region"],
    "metrics": ["counters", "events", "histogram", "trace"],
    "vmbus": ["packet", "ring"],
    "hypervisor": ["intercept"],
    "disk": [
        "ops",
        "medium",
        "pieces",
        "file",
        "crc",
        "vhdx.space",
        "vhdx.table",
        "vhdx.log_writer",
        "vhdx.lookup",
        "vhdx.session",
        "vhdx.allocate",
        "vhdx.requests",
        "vhdx.disk",
        "vhd.table",
        "vhd.disk",
        "ram",
        "null",
        "switch",
        "filter",
        "python",
        "vector",
    ],
    "scsi": [
        "plan",
        "unit",
        "inquiry",
        "capacity",
        "mode",
        "transfer",
        "unmap",
        "diagnostic",
        "opcodes",
        "reservation",
        "command",
        "media",
        "target",
    ],
    "storage": ["gate", "protocol", "queue", "transfer", "vsp", "vsc", "unit", "watch"],
    "ide": ["dma", "identify", "command", "controller", "device", "driver", "pci", "requester"],
    "dispatch": [
        "emulated",
        "host",
        "intercept",
        "load",
        "loop",
        "pattern",
        "pool",
        "requesters",
        "schedule",
        "series",
        "synthetic",
        "traced",
        "trapped",
        "worker",
        "workload",
    ],
}

FLAVOR = os.environ.get("HVCORE_FLAVOR", "release")
CFLAGS = ["-std=gnu11", "-g1", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wall", "-Wextra"]
# Cython's own generated code trips these two; ours is checked by the rest.
CFLAGS += ["-Wno-unused-function", "-Wno-unused-parameter"]
FLAVORS = {
    "release": (["-O2"], []),
    "debug": (["-O0"], []),
    "address": (["-O1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"], ["-fsanitize=address,undefined"]),
    # -Wno-tsan: the sanitizer overlooks full fences; they order a word before another, no data is passed by them.
    "thread": (["-O1", "-fsanitize=thread", "-Wno-tsan"], ["-fsanitize=thread"]),
    # One release store of the ring made plain: proof that ThreadSanitizer would see it.
    "canary": (["-O1", "-fsanitize=thread", "-Wno-tsan", "-DHVCORE_CANARY"], ["-fsanitize=thread"]),
}
if FLAVOR not in FLAVORS:
    raise SystemExit(f"HVCORE_FLAVOR={FLAVOR!r} is not one of {', '.join(FLAVORS)}")
COMPILE, LINK = FLAVORS[FLAVOR]

CHECKED = FLAVOR == "debug"
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKED,
    "wraparound": False,
    "initializedcheck": CHECKED,
    "cdivision": True,
    "freethreading_compatible": True,
    "embedsignature": False,
}
JOBS = len(os.sched_getaffinity(0))
BUILD = Path("build", FLAVOR)
GENERATED = BUILD / "c"


def extension(name: str, source: Path) -> Extension:
    return Extension(
        name,
        [str(source)],
        include_dirs=["pyx"],
        extra_compile_args=CFLAGS + COMPILE,
        extra_link_args=LINK,
        depends=["setup.py"],
    )


def stale() -> bool:
    """Cython tracks neither directives nor flags: a setup.py newer than the generated C rebuilds it all."""
    generated = [path.stat().st_mtime for path in GENERATED.rglob("*.c")]
    return bool(generated) and min(generated) < Path("setup.py").stat().st_mtime


extensions = [
    extension(f"hvcore.{floor}.{module}", Path("pyx", "hvcore", floor, *module.split(".")).with_suffix(".pyx"))
    for floor, modules in MODULES.items()
    for module in modules
]
# Folders whose .pyx files (loops of tests and benchmarks, never part of a wheel) are built as well, as top-level
# modules named by their path: tests/race/ringloop.pyx is tests_race_ringloop.
for folder in os.environ.get("HVCORE_EXTRA", "").split():
    for source in sorted(Path(folder).glob("*.pyx")):
        extensions.append(extension("_".join(source.with_suffix("").parts), source))
# Memoryview and function types live once, in a generated module of their own.
extensions.append(extension("hvcore._cython", Path("pyx", "hvcore", "_cython.c")))

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["pyx"],
        build_dir=str(GENERATED),
        shared_utility_qualified_name="hvcore._cython",
        compiler_directives=DIRECTIVES,
        nthreads=JOBS,
        force=stale(),
    ),
    options={"build": {"build_base": str(BUILD)}, "build_ext": {"parallel": JOBS}},
)
