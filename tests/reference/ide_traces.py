"""The register traces of ide.md section 9 (tests/wire/ide_traces.txt, where their language is explained)."""

import re
from pathlib import Path
from typing import Any

MEMORY = 0x80000
TRACES = {
    heading: steps
    for heading, steps in re.findall(
        r"^(T\d\d[^\n]*)\n(.*?)(?=^T\d\d|\Z)",
        re.sub(r"^#.*\n", "", (Path(__file__).parents[1] / "wire" / "ide_traces.txt").read_text(), flags=re.MULTILINE),
        flags=re.MULTILINE | re.DOTALL,
    )
}


def options(heading: str) -> dict[str, str]:
    """disk: sectors, in hexadecimal; trim; short_table."""
    return {"disk": "20000"} | dict(option.partition("=")[::2] for option in heading.split()[1:])


class Player:
    """Plays a trace on anything with the calls of hvcore.ide.Controller, a disk like PatternDisk and the memory."""

    def __init__(self, heading: str, ide: Any, disk: Any, memory: Any) -> None:
        self.steps = TRACES[heading]
        self.ide = ide
        self.disk = disk
        self.memory = memory
        self.line = False
        self.rises = 0

    def look(self) -> None:
        line = self.ide.irq(0)
        self.rises += line and not self.line
        self.line = line

    def values(self, text: str, width: int) -> list[int]:
        if text.startswith("sector "):
            data = self.disk.sector(int(text[7:], 16))
            return [int.from_bytes(data[i : i + width], "little") for i in range(0, 512, width)]
        found = []
        for token in text.split():
            value, _, times = token.partition("*")
            found += [int(value, 16)] * int(times or 1)
        return found

    def play(self) -> None:
        for step in re.split(r"[;\n]", self.steps):
            if step.strip():
                self.step(step.strip())

    def step(self, step: str) -> None:
        step, _, wanted = (part.strip() for part in step.partition("="))
        name, *rest = step.split()
        times = int(rest.pop()[1:]) if rest and rest[-1].startswith("*") else 1
        numbers = [int(number, 16) for number in rest]
        if name == "^":
            assert self.line and self.rises == 1
            self.rises = 0
        elif name == "v":
            assert not self.line
        elif name == "-":
            assert not self.line and self.rises == 0
        elif name == "high":
            assert self.line and self.rises == 0
        elif name in ("o8", "o16", "o32"):
            out = {"o8": self.ide.outb, "o16": self.ide.outw, "o32": self.ide.outl}[name]
            for _ in range(times):
                out(*numbers)
        elif name in ("i8", "i16", "i32"):
            inp = {"i8": self.ide.inb, "i16": self.ide.inw, "i32": self.ide.inl}[name]
            read = [inp(numbers[0]) for _ in range(times)]
            assert not wanted or read == self.values(wanted, 2)
        elif name == "insw":
            buffer = bytearray(2 * times)
            self.ide.insw(numbers[0], buffer)
            words = [int.from_bytes(buffer[i : i + 2], "little") for i in range(0, len(buffer), 2)]
            assert words == self.values(wanted, 2)
        elif name == "set":
            data = bytes(self.values(wanted, 1))
            self.memory[numbers[0] : numbers[0] + len(data)] = data
        elif name == "mem":
            data = bytes(self.values(wanted, 1))
            assert self.memory[numbers[0] : numbers[0] + len(data)] == data
        elif name == "disk":
            assert self.disk.sector(numbers[0]) == b"".join(w.to_bytes(2, "little") for w in self.values(wanted, 2))
        elif name == "written":
            assert sorted(self.disk.written) == numbers
        elif name == "flushed":
            assert self.disk.flushes == numbers[0]
        else:
            raise AssertionError(f"no such step: {step}")
        self.look()
