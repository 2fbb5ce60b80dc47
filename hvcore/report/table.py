"""Comparison and explanation as people read them: at most 100 columns, plain text in a pipe.

Colours are the terminal's own (bold, dim, cyan), which are legible on dark and on light ground.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hvcore.report.doctor import Check
from hvcore.report.facts import NONE, WIDTH, digits, fact_rows, plural
from hvcore.report.machine import cpu_list
from hvcore.report.model import BASE_PATH, Comparison, Explanation, Image, Machine, PathExplanation, Step
from hvcore.sizes import format_size

EXACT = {
    "hand_overs": "hand-overs",
    "ring_packets": "ring packets",
    "port_accesses": "port accesses",
    "intercepts": "intercepts",
    "bytes_copied": "bytes copied",
}
MEASURED = {"doorbells": "doorbells", "blocking_waits": "blocking waits", "context_switches": "context switches"}


def console() -> Console:
    """Standard output: no wider than 100 columns on a terminal; in a pipe no colour and always 100."""
    screen = Console(highlight=False)
    screen.width = min(screen.width, WIDTH) if sys.stdout.isatty() else WIDTH
    return screen


def duration(ns: float | None) -> str:
    """Three significant digits and a unit: 12.3 µs."""
    if ns is None:
        return NONE
    value, unit = float(ns), "ns"
    for larger in ("µs", "ms", "s"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{digits(value) if unit != 'ns' else format(value, '.0f')} {unit}"


def count(value: float) -> str:
    """A cost per request: whole where it is whole."""
    return f"{value:,.0f}" if value == int(value) else digits(value) if value >= 0.01 else "<0.01"


def times(value: float | None) -> str:
    return NONE if value is None else f"{digits(value)} ×"


def rate(bytes_per_second: float) -> str:
    value, unit = bytes_per_second / 1024, "KiB/s"
    for larger in ("MiB/s", "GiB/s"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{digits(value)} {unit}"


def title(path: str, ide_mode: str | None) -> str:
    return f"{path} ({ide_mode})" if ide_mode else path


def fact_grid(rows: Iterable[tuple[str | Text, str | Text]]) -> Table:
    """Names and what they stand for, aligned in two columns; nothing in them is markup."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in rows:
        label = name if isinstance(name, Text) else Text(name, style="dim")
        facts.add_row(label, text if isinstance(text, Text) else Text(text))
    return facts


def _image_fact(image: Image) -> tuple[str, str]:
    name = image.path or "temporary"
    return "image", f"{name}, {image.format}, {format_size(image.size_bytes)}, sectors of {image.sector_size} bytes"


def _machine_facts(machine: Machine) -> list[tuple[str, str]]:
    online = plural(machine.cpus_online, "CPU")
    cpus = f"{machine.cpu_model}; {len(machine.cpus)} of {online} ({cpu_list(machine.cpus)})"
    if machine.cpu_quota is not None:
        cpus += f", quota {machine.cpu_quota:g}"
    spinning = f"at most {machine.spinners} spinning in each process" if machine.spinners else "waiters block at once"
    return [
        ("CPUs", cpus),
        ("placement", f"{machine.placement}; {spinning}"),
        ("software", f"Linux {machine.kernel}, Python {machine.python}, hvcore {machine.hvcore}"),
    ]


def _columns(names: Sequence[str], corner: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(corner, min_width=24)
    for name in names:
        table.add_column(name, justify="right", min_width=11)
    return table


def _section(table: Table, name: str) -> None:
    table.add_section()
    table.add_row(Text(name, style="bold cyan"))


def _figures(comparison: Comparison) -> Table:
    runs = comparison.runs
    table = _columns([title(run.path, run.ide_mode) for run in runs])
    if len({run.queue_depth for run in runs}) > 1:  # the local path has one request at a time
        table.add_row("queue depth", *[str(run.queue_depth) for run in runs])
    table.add_row("IOPS", *[f"{run.iops:,.0f}" for run in runs])
    table.add_row("throughput", *[rate(run.bytes_per_second) for run in runs])
    table.add_row("requests", *[f"{run.requests:,}" for run in runs])
    if any(run.verified_bytes for run in runs):
        table.add_row("verified", *[f"{run.verified_bytes / (1 << 20):,.1f} MiB" for run in runs])
    if any(run.errors for run in runs):
        table.add_row("errors", *[f"{run.errors:,}" for run in runs])
    _section(table, "latency")
    for key in ("min", "p50", "p90", "p99", "p99_9", "max", "mean"):
        table.add_row(f"  {key.replace('_', '.')}", *[duration(getattr(run.latency_ns, key)) for run in runs])
    for section, costs in (("exact", EXACT), ("as measured", MEASURED)):
        _section(table, f"per request, {section}")
        for key, name in costs.items():
            table.add_row(f"  {name}", *[count(getattr(run.per_request, key)) for run in runs])
    ratios = {ratio.path: ratio for ratio in comparison.ratios}
    if ratios:
        _section(table, f"over {BASE_PATH}")
        for key, name in (("iops", "IOPS"), ("p50", "p50"), ("p99", "p99")):
            cells = [times(getattr(ratios[run.path], key)) if run.path in ratios else "1" for run in runs]
            table.add_row(f"  {name}", *cells)
    return table


def comparison_table(comparison: Comparison) -> RenderableType:
    """Rates, latencies, counted costs and ratios, one column per path, and what they were measured on."""
    run = comparison.runs[0]
    depth = max(run.queue_depth for run in comparison.runs)
    workload = f"{run.rw}, {format_size(run.block_size)}, queue depth {depth}, {run.seconds:.1f} s per path"
    facts = [("workload", workload), _image_fact(comparison.image), *_machine_facts(comparison.machine)]
    return Group(_figures(comparison), fact_grid(facts))


def _steps(path: PathExplanation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_footer=True, width=WIDTH - 2)
    table.add_column("", justify="right", footer="", min_width=2)
    table.add_column(f"{title(path.path, path.ide_mode)} path", footer="whole request", ratio=1)
    table.add_column("p50", justify="right", footer=duration(path.total_ns.p50), min_width=8)
    table.add_column("p99", justify="right", footer=duration(path.total_ns.p99), min_width=8)

    def row(step: Step) -> None:
        table.add_row(str(step.number), Text(step.text), duration(step.p50_ns), duration(step.p99_ns))

    for step in path.steps:
        row(step)
    if path.way_back:
        table.add_row("", Text("way back", style="bold cyan"))
    for step in path.way_back:
        row(step)
    return table


def explanation_table(explanation: Explanation) -> RenderableType:
    """The numbered steps of each path with their times, then the exact costs side by side."""
    paths = explanation.paths
    counts = _columns([title(path.path, path.ide_mode) for path in paths], "per request, exact")
    for key, name in (EXACT | {"media_accesses": "media accesses"}).items():
        counts.add_row(name, *[count(getattr(path.per_request, key)) for path in paths])
    workload = f"single reads of {format_size(explanation.block_size)}, {explanation.requests:,} on each path, traced"
    facts = [("workload", workload), _image_fact(explanation.image), *_machine_facts(explanation.machine)]
    return Group(*map(_steps, paths), counts, fact_grid(facts))


def checks_table(checks: Sequence[Check]) -> RenderableType:
    """What `doctor` found."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("", "", "found", "what follows"):
        table.add_column(name)
    for check in checks:
        mark = Text("ok", style="green") if check.ok else Text("missing" if check.needed else "note", style="bold")
        table.add_row(mark, check.name, check.found, check.follows)
    return table


def facts_table(facts: Mapping[str, object]) -> RenderableType:
    """Keys and values of one thing, a line each; a whole number whose key ends in "size" is bytes."""
    return fact_grid(fact_rows(facts))
