"""Console blocks of a page: what they show, and what the commands in them really print.

`python -m tests.reference.console docs/PAGE.md` puts into the page what its commands print now.
"""

import os
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.layout import read_header
from hvcore.disk.vhdx.log import update_header
from hvcore.vhd import create

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Ids are random, and a backup is named by the time.
VARYING = [
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"repair-\d{8}-\d{6}"), "repair-TIME"),
]


def blocks(page):
    """For each console block of the page (command, what is shown below it); the lines of a long command begin "> "."""
    for block in BLOCK.findall(page):
        yield commands(block)


def commands(block):
    found = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append([line[2:], []])
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0] += "\n" + line[2:]
        else:
            found[-1][1].append(line)
    return [(command, "\n".join(shown)) for command, shown in found]


def constant(text):
    """The text with a name for each thing that varies from run to run."""
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return text.rstrip("\n")


class Shell:
    """Runs commands one by one in the folder "images" of `folder`, where hvcore and python3 are the ones under test,
    and where killed.vhdx lies."""

    def __init__(self, folder):
        programs = folder / "programs"
        self.folder = folder / "images"
        programs.mkdir()
        self.folder.mkdir()
        for name, words in (("hvcore", f"{sys.executable} -m hvcore"), ("python3", sys.executable)):
            (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        self.code = 0
        killed_qemu(self.folder / "killed.vhdx")

    def run(self, command):
        """What the command prints; `$?` in it is the exit code of the one before."""
        done = subprocess.run(
            ["sh", "-c", f"(exit {self.code})\n{command}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        self.code = done.returncode
        return done.stdout


def killed_qemu(path):
    """An image as QEMU leaves it that is killed in a write to a new block: the headers name a log, but nothing is in
    it yet; the block's space and data are there, the block table does not know them. (Seen of QEMU 7.2, killed at its
    flush of the second header.)"""
    create(path, 64 << 20, block_size=8 << 20)
    with open(path, "r+b") as file:
        file.truncate(16 << 20)
        file.seek(8 << 20)
        file.write(b"\1" * 4096)
    with ImageFile(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as file:
        header = read_header(file, 16 << 20)
        header = update_header(file, header, file_write_guid=uuid.uuid4(), log_guid=uuid.uuid4())
        update_header(file, header)


def refill(page):
    """The page with what its commands print now."""
    with tempfile.TemporaryDirectory() as folder:
        shell = Shell(Path(folder))

        def filled(match):
            lines = []
            for command, _ in commands(match[1]):
                lines += ["$ " + command.replace("\n", "\n> "), shell.run(command).rstrip("\n")]
            return "\n".join(["```console", *filter(None, lines), "```"])

        return BLOCK.sub(filled, page)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(refill(Path(name).read_text()))
