"""The command line as a process: what is printed where, and the exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

import hvcore
from tests.unit.fabricated import COMPARISON, EXPLANATION

# The command line with its workers replaced: each word of FAKE is a statement's name in this table.
PROGRAM = """
import os, signal, sys, types
import hvcore.cli, hvcore.partition
from hvcore.errors import DiskError, Error, ImageError
from tests.unit.fabricated import COMPARISON, EXPLANATION

def ready():
    print("ready", file=sys.stderr, flush=True)
    signal.pause()

def compare(options, progress):
    progress("synthetic: measuring", 0.5)
    {compare}
    return COMPARISON

def explain(options, progress):
    print(options, file=sys.stderr)
    return EXPLANATION

def module(name, **contents):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)

module("hvcore.report.compare", compare=compare)
module("hvcore.report.explain", explain=explain)
module("hvcore.partition.daemon", serve=lambda path, *, allow_python_disks: print("serving", path, allow_python_disks))
sys.exit(hvcore.cli.main())
"""


def command(*arguments, compare="pass"):
    return [sys.executable, "-c", PROGRAM.replace("{compare}", compare), *arguments]


def run(*arguments, **options):
    return subprocess.run(command(*arguments, **options), capture_output=True, text=True, timeout=60)


def test_bad_usage_is_one_line_and_exit_2():
    result = run("compare", "--bs", "4q")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "hvcore: --bs: '4q' is not a size (like 512, 4k, 64K, 1M, 2G)\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("Error('the host is gone')", "the host is gone"),
        ("ImageError('a.vhdx:\\n the log is torn')", "a.vhdx: the log is torn"),
        ("DiskError('medium error')", "medium error"),
        ("open('/nowhere/disk.vhd')", "[Errno 2] No such file or directory: '/nowhere/disk.vhd'"),
        ("ValueError('disk of 3 bytes')", "disk of 3 bytes"),
        ("BrokenPipeError(32, 'Broken pipe')", "[Errno 32] Broken pipe"),
        ("Error()", "Error"),
    ],
)
def test_failed_work_is_one_line_and_exit_1(error, line):
    result = run("compare", compare=f"raise {error}")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"hvcore: {line}\n")


def test_a_bug_keeps_its_traceback():
    result = run("compare", compare="raise RuntimeError('bug')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "RuntimeError: bug" in result.stderr


def test_compare_prints_one_json_object():
    result = run("compare", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == json.loads(COMPARISON.to_json())


def test_explain_prints_one_json_object():
    assert json.loads(run("explain", "--json").stdout) == json.loads(EXPLANATION.to_json())


@pytest.mark.parametrize("name", ["compare", "explain"])
def test_tables_in_a_pipe_are_plain(name):
    result = run(name)
    assert result.returncode == 0
    assert "synthetic" in result.stdout and "\x1b" not in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


def test_compare_hands_over_what_was_asked():
    arguments = [
        "disk.vhd",
        "--paths",
        "emulated,local",
        "--rw",
        "randwrite",
        "--overwrite",
        "--bs",
        "64K",
        "--qd",
        "8",
    ]
    arguments += ["--runtime", "0.5", "--ide-mode", "pio", "--format", "vhd", "--sector-size", "512", "--memory", "1G"]
    result = run("compare", *arguments, compare="print(options, file=sys.stderr)")
    assert result.stderr == (
        "CompareOptions(image='disk.vhd', paths=('emulated', 'local'), block_size=65536, ide_mode='pio', format='vhd', "
        "rw='randwrite', queue_depth=8, seconds=0.5, sector_size=512, overwrite=True, memory_bytes=1073741824, "
        "read_percent=70.0, load=None, warm_up=0.1)\n"
    )


def test_explain_hands_over_what_was_asked():
    result = run("explain", "--paths", "emulated", "--bs", "512", "--count", "7", "--ide-mode", "pio-string", "--json")
    assert result.stderr == (
        "ExplainOptions(image=None, paths=('emulated',), block_size=512, ide_mode='pio-string', format=None, count=7)\n"
    )


def test_serve_hands_over_the_socket():
    assert run("serve", "--socket", "/run/x").stdout == "serving /run/x False\n"
    assert run("serve", "--socket", "/run/x", "--allow-python-disks").stdout == "serving /run/x True\n"


def test_doctor_answers_here():
    found = json.loads(run("doctor", "--json").stdout)
    assert found["schema"] == "hvcore.doctor/1" and found["healthy"]
    assert "memfd sealing" in run("doctor").stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(arguments):
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(name in result.stdout for name in ("compare", "explain", "serve", "doctor", "vhd"))


def test_version_and_module():
    result = subprocess.run([sys.executable, "-m", "hvcore", "--version"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"hvcore {hvcore.__version__}\n", "")


def test_reader_who_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(command("compare"), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_work_is_put_away(number, code):
    work = "exec(\"try:\\n ready()\\nfinally:\\n print('put away', file=sys.stderr)\")"
    with subprocess.Popen(command("compare", compare=work), stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr.readline() == "ready\n"
            child.send_signal(number)
            assert child.communicate(timeout=60)[1] == "put away\n"
        finally:
            child.kill()
    assert child.returncode == code


def test_unprintable_names_do_not_break_the_answer():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command("compare"), capture_output=True, env=environment, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"synthetic" in result.stdout


def test_progress_is_for_terminals():
    ours, theirs = pty.openpty()
    try:
        environment = os.environ | {"TERM": "xterm"}
        result = subprocess.run(command("compare"), stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60)
        os.close(theirs)
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
    assert result.returncode == 0
    assert "synthetic: measuring" in shown
    assert b"measuring" not in result.stdout


def real(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hvcore", *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def words(text, start):
    """Of the first line that starts so."""
    return next(line.split() for line in text.splitlines() if line.strip().startswith(start))


def test_every_path_has_its_column():
    text = real("compare", "--runtime", "0.05", "--qd", "4")
    assert max(map(len, text.splitlines())) <= 100
    assert words(text, "emulated") == ["emulated", "trapped"]
    assert words(text, "local") == ["local", "synthetic", "(dma)", "(dma)", "accelerated"]
    assert words(text, "queue depth") == ["queue", "depth", "1", "4", "4", "1", "4"]
    assert words(text, "hand-overs") == ["hand-overs", "0", "2", "6", "32", "2"]
    assert words(text, "port accesses") == ["port", "accesses", "0", "0", "15", "15", "0"]
    assert words(text, "intercepts") == ["intercepts", "0", "0", "0", "15", "0"]
    assert "queue depth  local and trapped take one request at a time" in text


def test_every_path_is_explained():
    text = real("explain", "--count", "20", "--ide-mode", "pio-string")
    assert max(map(len, text.splitlines())) <= 100
    for path in ("local", "synthetic", "emulated (pio-string)", "trapped (pio-string)", "accelerated"):
        assert f" {path} path " in text
    assert words(text, "2   each port access")[-6:-4] == ["7", "accesses"]
    assert "16 accesses" in text and "–" not in text
