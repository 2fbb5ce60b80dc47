"""No `noexcept nogil` function calls the interpreter: read from the C that Cython makes of the sources.

One such call in a data path function would crash a thread without the GIL, or take the GIL on every request.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "pyx"
DEFINITION = re.compile(
    r"^(?P<indent>[ \t]*)cdef[ \t]+(?P<inline>inline[ \t]+)?[\w \t*]*?(?P<name>\w+)[ \t]*"
    r"\((?:[^()]|\([^()]*\))*\)[ \t]*noexcept[ \t]+nogil[ \t]*:",
    re.MULTILINE,
)
# A function that takes the interpreter lock by itself, or a block that does.
TAKES_LOCK = re.compile(r"^(?P<line>(?!\s*#).*\bwith[ \t]+gil\b.*)$", re.MULTILINE)
# The one place where native threads call the interpreter, which says why it may: a disk written as a Python class.
LOCK_TAKERS = {"hvcore/disk/python.pyx": 1}
CLASS = re.compile(r"^cdef[ \t]+class[ \t]+(\w+)", re.MULTILINE)
# Macros of Cython that are plain C: they name no object and touch no thread state.
PLAIN_C = {"__Pyx_RefNannyDeclarations", "__Pyx_RefNannySetupContextNogil", "__Pyx_RefNannyFinishContextNogil"}
INTERPRETER = re.compile(r"\b(?:Py|_Py|__Pyx_)\w*(?=\s*\()")
# Runs setup.py as any build does, which brings build/<flavor>/c up to date, then translates the files named on the
# command line with the same directives.
TRANSLATE = """
import runpy, sys
from pathlib import Path
probes, sys.argv[1:] = sys.argv[1:], ["--quiet", "--name"]
build = runpy.run_path("setup.py", run_name="__main__")
from Cython.Build import cythonize
folder = Path(probes[0]).parent
directives = build["DIRECTIVES"] | {"freethreading_compatible": False}
cythonize(probes, include_path=["pyx"], build_dir=str(folder / "c"), compiler_directives=directives, quiet=True)
print(build["GENERATED"])
"""
# The finder must find these.
IMPURE = """
cdef int divides(int a, int b) noexcept nogil:
    with gil:
        return <int> len(str(a // b))

cdef int raises(int a) except -1 nogil:
    if a:
        raise ValueError
    return 0

cdef int swallows(int a) noexcept nogil:
    return raises(a)

cdef int pure(int a) noexcept nogil:
    return a + 1

def use():
    return divides(1, 2) + swallows(3) + pure(4)
"""


class Function(NamedTuple):
    module: str
    owner: str  # class, or nothing
    name: str
    inline_of_pxd: bool

    @property
    def c_name(self):
        parts = [*self.module.split("."), *([self.owner] if self.owner else [])]
        return f"__pyx_f_{''.join(f'{len(part)}{part}_' for part in parts)}{self.name}"


def functions(path, module):
    """The noexcept nogil functions that a source defines."""
    text = path.read_text(encoding="utf-8")
    classes = [(match.start(), match[1]) for match in CLASS.finditer(text)]
    for match in DEFINITION.finditer(text):
        owner = [name for start, name in classes if start < match.start()][-1] if match["indent"] else ""
        yield Function(module, owner, match["name"], path.suffix == ".pxd")


def all_functions():
    return [
        function
        for path in sorted(SOURCES.rglob("*.p[yx][xd]"))
        for function in functions(path, ".".join(path.relative_to(SOURCES).with_suffix("").parts))
    ]


def bodies(path):
    """C name -> body of each function of a generated file, without the comments that quote the source."""
    found = {}
    text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for match in re.finditer(r"^[^\s#][^\n]*\b(__pyx_f_\w+)\([^\n]*\)\s*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        found[match[1]] = match[2]
    return found


def calls(body):
    """Interpreter functions that the body names."""
    return sorted(set(INTERPRETER.findall(body)) - PLAIN_C)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Every generated function: of the modules, of the inline functions of each .pxd, and of the impure example."""
    folder = tmp_path_factory.mktemp("purity")
    inline = [function for function in all_functions() if function.inline_of_pxd]
    # Cython leaves out what nobody uses, so the probe takes the address of every inline function.
    lines = [f"from {each.module} cimport {each.name} as f{number}" for number, each in enumerate(inline)]
    lines += ["def addresses():", f"    return [{', '.join(f'<size_t> <void *> f{n}' for n in range(len(inline)))}]"]
    probe, impure = folder / "probe.pyx", folder / "impure.pyx"
    probe.write_text("\n".join(lines))
    impure.write_text(IMPURE)
    result = subprocess.run(
        [sys.executable, "-c", TRANSLATE, probe, impure], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    modules = {}
    for path in (ROOT / result.stdout.splitlines()[-1]).rglob("*.c"):
        modules |= bodies(path)
    found = {name: bodies(path) for name in ("probe", "impure") for path in (folder / "c").rglob(f"{name}.c")}
    return modules | found["probe"], found["impure"]


def test_every_function_is_found(generated):
    expected = all_functions()
    assert {"gpa_pointer", "disk_check", "disk_read"} <= {function.name for function in expected}
    assert not [function.c_name for function in expected if function.c_name not in generated[0]]


def test_no_data_path_function_calls_the_interpreter(generated):
    impure = {function.c_name: calls(generated[0].get(function.c_name, "")) for function in all_functions()}
    assert not {name: named for name, named in impure.items() if named}


def test_nothing_takes_the_interpreter_lock_but_what_is_named():
    found = {}
    for path in sorted(SOURCES.rglob("*.p[yx][xd]")):
        count = len(TAKES_LOCK.findall(path.read_text(encoding="utf-8")))
        if count:
            found[str(path.relative_to(SOURCES))] = count
    assert found == LOCK_TAKERS
    assert len(TAKES_LOCK.findall(IMPURE)) == 1


def test_an_impure_function_is_found(generated, tmp_path):
    source = tmp_path / "impure.pyx"
    source.write_text(IMPURE)
    found = {function.name: bool(calls(generated[1][function.c_name])) for function in functions(source, "impure")}
    assert found == {"divides": True, "swallows": True, "pure": False}
