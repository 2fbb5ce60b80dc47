"""The Markdown table of a report: python -m bench.table FILE."""

import argparse
import json
from typing import Any

COUNTS = {
    "hand_overs": "hand-overs", "ring_packets": "ring packets", "port_accesses": "port accesses",
    "intercepts": "intercepts", "bytes_copied": "bytes copied",
}  # fmt: skip


def number(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / (1 << 20):.2f} MiB" if value >= 1 << 20 else f"{value / 1024:.0f} KiB"
    if unit == "ns":
        return f"{value / 1000:.2f} µs" if value >= 1000 else f"{value:.0f} ns"
    return f"{value:.3g} {unit}".strip()


def cells(aim: dict[str, Any], unit: str) -> tuple[str, str, str]:
    """Measured, spread, verdict."""
    if "value" not in aim:
        return "–", "–", aim["verdict"]
    measured = number(aim["value"], unit)
    if "ratio" not in aim:
        return measured, "–", aim["verdict"]
    measured = f"{aim['ratio']:.2f} x {aim['base']} ({measured} to {number(aim['base value'], unit)})"
    low, high = aim["spread"]
    if "counts" in aim:
        counted = ", ".join(f"{aim['counts'].get(key, 0):g} {name}" for key, name in COUNTS.items())
        measured += f"; {counted}"
    return measured, f"{low:.2f} to {high:.2f}", aim["verdict"]


def table(report: dict[str, Any]) -> str:
    machine = report["machine"]
    load = report["load_average"]
    where = machine["placements"][0]
    lines = [
        f"{machine['cpu_model']}, CPUs {machine['cpus']}, Linux {machine['kernel']}, Python {machine['python']}, "
        f"hvcore {machine['hvcore']} ({report['flavor']} build), image on {report['file_system']}, in the page cache. "
        f"Guest and host on CPU {where[0]} and {where[1]}. Load average {load[0]:.2f} before, {load[1]:.2f} after. "
        f"Medians of {report['rounds']} interleaved rounds; the spread is that of the ratio over the rounds.",
        "",
        "| measure | target | measured | spread | verdict |",
        "|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        for index, aim in enumerate(row["aims"]):
            measured, spread, verdict = cells(aim, row["unit"])
            first = (row["measure"], row["target"]) if index == 0 else ("", "")
            lines.append(f"| {first[0]} | {first[1]} | {measured} | {spread} | {verdict} |")
    missing = [
        f"{name}: {note}" for one in report["contests"].values() for name, note in one["notes"].items()
        if isinstance(note, str) and note.startswith("left out")
    ]  # fmt: skip
    if missing:
        lines += ["", *(f"- {line}" for line in dict.fromkeys(missing))]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The Markdown table of a report of bench.run.")
    parser.add_argument("file")
    with open(parser.parse_args().file) as file:
        print(table(json.load(file)))


if __name__ == "__main__":
    main()
