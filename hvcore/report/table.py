"""Comparison and explanation as people read them: at most 100 columns, plain text in a pipe.

Colours are the terminal's own (bold, dim, cyan), which are legible on dark and on light ground.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hvcore.report.doctor import Check
from hvcore.report.facts import NONE, WIDTH, digits, fact_rows, plural
from hvcore.report.machine import cpu_list
from hvcore.report.model import (
    BASE_PATH,
    Comparison,
    Explanation,
    Image,
    Machine,
    PathExplanation,
    Run,
    Step,
    Sweep,
    ratios,
)
from hvcore.sizes import format_size

if TYPE_CHECKING:
    from hvcore.report.load import JobResult, LoadResult

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
    return NONE if value is None else f"{digits(value)} ×" if value >= 0.01 else "<0.01 ×"


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
        # Side by side with many others, a path's IDE mode goes into a second line.
        head = name.replace(" (", "\n(") if len(names) > 3 else name
        table.add_column(head, justify="right", min_width=11)
    return table


def _section(table: Table, name: str) -> None:
    table.add_section()
    table.add_row(Text(name, style="bold cyan"))


def _figures(comparison: Comparison) -> Table:
    runs = comparison.runs
    table = _columns([title(run.path, run.ide_mode) for run in runs])
    if len({run.queue_depth for run in runs}) > 1:
        table.add_row("queue depth", *[str(run.queue_depth) for run in runs])
    table.add_row("IOPS", *[f"{run.iops:,.0f}" for run in runs])
    table.add_row("throughput", *[rate(run.bytes_per_second) for run in runs])
    table.add_row("requests", *[f"{run.requests:,}" for run in runs])
    if any(run.verified_bytes for run in runs):
        table.add_row("verified", *[f"{run.verified_bytes / (1 << 20):,.1f} MiB" for run in runs])
    if any(run.behind for run in runs):
        table.add_row("due, never started", *[f"{run.behind:,}" for run in runs])
    if any(run.errors for run in runs):
        table.add_row("errors", *[f"{run.errors:,}" for run in runs])
    _section(table, "latency")
    for key in ("min", "p50", "p90", "p99", "p99_9", "max", "mean"):
        table.add_row(f"  {key.replace('_', '.')}", *[duration(getattr(run.latency_ns, key)) for run in runs])
    for section, costs in (("exact", EXACT), ("as measured", MEASURED)):
        _section(table, f"per request, {section}")
        for key, name in costs.items():
            table.add_row(f"  {name}", *[count(getattr(run.per_request, key)) for run in runs])
    over = {ratio.path: ratio for ratio in comparison.ratios}
    if over:
        _section(table, f"over {BASE_PATH}")
        for key, name in (("iops", "IOPS"), ("p50", "p50"), ("p99", "p99")):
            cells = [times(getattr(over[run.path], key)) if run.path in over else "1" for run in runs]
            table.add_row(f"  {name}", *cells)
    return table


def _depth_facts(runs: Iterable[Run], depth: int) -> list[tuple[str, str]]:
    """Which paths do not have as many requests in flight as were asked for."""
    single = [run.path for run in runs if run.queue_depth == 1 < depth]
    takes = "takes" if len(single) == 1 else "take"
    return [("queue depth", f"{' and '.join(single)} {takes} one request at a time")] if single else []


def comparison_table(comparison: Comparison) -> RenderableType:
    """Rates, latencies, counted costs and ratios, one column per path, and what they were measured on."""
    run = comparison.runs[0]
    depth = max(run.queue_depth for run in comparison.runs)
    workload = f"{run.rw}, {format_size(run.block_size)}, queue depth {depth}, {run.seconds:.1f} s per path"
    facts = [
        ("workload", workload),
        *_depth_facts(comparison.runs, depth),
        _image_fact(comparison.image),
        *_machine_facts(comparison.machine),
    ]
    return Group(_figures(comparison), fact_grid(facts))


def _point(parameters: Mapping[str, Any], varying: Sequence[str]) -> str:
    words = {"rw": "{}", "block_size": "{}", "queue_depth": "qd {}", "ide_mode": "{}"}
    said = []
    for name in varying:
        value = parameters[name]
        said.append(words[name].format(format_size(value) if name == "block_size" else value))
    return ", ".join(said)


def sweep_table(sweep: Sweep) -> RenderableType:
    """A row for each combination: IOPS and p50 on each path, and its p50 over the synthetic one's."""
    points = sweep.points
    varying = [name for name in points[0].parameters if len({str(point.parameters[name]) for point in points}) > 1]
    varying = varying or ["block_size", "queue_depth"]
    paths = [run.path for run in points[0].runs]
    # Three figures for each of five paths do not fit side by side: each path has a line in the row of its combination.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name, justify in (("", "left"), ("path", "left"), ("IOPS", "right"), ("p50", "right"), ("p99", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("throughput", justify="right")
    table.add_column("IOPS ratio", justify="right")
    table.add_column("p50 ratio", justify="right")
    for point in points:
        over = {ratio.path: ratio for ratio in ratios(point.runs)}
        for number, run in enumerate(point.runs):
            mine = over.get(run.path)
            base = "1" if run.path == BASE_PATH else NONE
            table.add_row(
                Text("" if number else _point(point.parameters, varying), style="bold cyan"),
                run.path,
                f"{run.iops:,.0f}" + (f" ({run.errors:,} errors)" if run.errors else ""),
                duration(run.latency_ns.p50),
                duration(run.latency_ns.p99),
                rate(run.bytes_per_second),
                times(mine.iops) if mine else base,
                times(mine.p50) if mine else base,
                end_section=number + 1 == len(point.runs) and len(paths) > 1,
            )
    fixed = {name: value for name, value in points[0].parameters.items() if name not in varying}
    said = _point(fixed, [name for name in fixed if name != "ide_mode" or any(run.ide_mode for run in points[0].runs)])
    seconds = points[0].runs[0].seconds
    deepest = max(points, key=lambda point: int(point.parameters["queue_depth"]))
    facts = [
        ("workload", f"{said or 'as listed'}, {seconds:.1f} s per path"),
        *_depth_facts(deepest.runs, deepest.parameters["queue_depth"]),
        _image_fact(sweep.image),
    ]
    if BASE_PATH in paths:
        facts.insert(1, ("ratios", f"over {BASE_PATH} of the same row: above 1 is more IOPS, or slower"))
    return Group(table, fact_grid([*facts, *_machine_facts(sweep.machine)]))


def load_table(result: "LoadResult") -> RenderableType:
    """A column for each job, and one for all of them together."""
    jobs = [*result.jobs, *([result.total] if result.total else [])]
    tables = [_load_columns(jobs[first : first + 5]) for first in range(0, len(jobs), 5)]
    facts = [(job.name, _image_fact(job.image)[1]) for job in result.jobs if job.image]
    return Group(*tables, fact_grid([*facts, *_machine_facts(result.machine)]))


def _load_columns(jobs: Sequence["JobResult"]) -> Table:
    table = _columns([job.name for job in jobs])
    table.add_row("path", *[job.path for job in jobs])
    table.add_row("IOPS", *[f"{job.iops:,.0f}" for job in jobs])
    table.add_row("throughput", *[rate(job.bytes_per_second) for job in jobs])
    table.add_row("requests", *[f"{job.requests:,}" for job in jobs])
    table.add_row("measured", *[f"{job.seconds:.2f} s" for job in jobs])
    if any(job.verified_bytes for job in jobs):
        table.add_row("verified", *[f"{job.verified_bytes / (1 << 20):,.1f} MiB" for job in jobs])
    if any(job.errors for job in jobs):
        table.add_row("errors", *[f"{job.errors:,}" for job in jobs])
    if any(job.wrong_blocks for job in jobs):
        table.add_row("wrong reads", *[f"{job.wrong_blocks:,}" for job in jobs])
    if any(job.lag_ns for job in jobs):
        table.add_row("due, never started", *[f"{job.behind:,}" for job in jobs])
        table.add_row("started late, p99", *[duration(job.lag_ns.p99 if job.lag_ns else None) for job in jobs])
    _section(table, "latency")
    summaries = [job.latency.summary() for job in jobs]
    for key in ("min", "p50", "p90", "p99", "p99_9", "max", "mean"):
        table.add_row(f"  {key.replace('_', '.')}", *[duration(summary[key]) for summary in summaries])
    for name in ("read", "write", "flush", "trim"):
        if any(name in job.operations and len(job.operations) > 1 for job in jobs):
            _section(table, name)
            found = [job.operations.get(name) for job in jobs]
            table.add_row("  requests", *[f"{each.requests:,}" if each else NONE for each in found])
            for key in ("p50", "p99"):
                cells = [duration(getattr(each.latency_ns, key)) if each else NONE for each in found]
                table.add_row(f"  {key}", *cells)
    if any(len(job.series) > 1 for job in jobs):
        _section(table, "IOPS by the second")
        for key, pick in (("lowest", min), ("highest", max)):
            cells = [f"{pick(row['iops'] for row in _whole(job.series)):,.0f}" if job.series else NONE for job in jobs]
            table.add_row(f"  {key}", *cells)
    return table


def _whole(series: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Without a last second that was cut short."""
    return series[:-1] if len(series) > 1 and series[-1]["seconds"] < series[0]["seconds"] else series


def _steps(path: PathExplanation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_footer=True, width=WIDTH - 2)
    table.add_column("", justify="right", footer="", min_width=2)
    table.add_column(f"{title(path.path, path.ide_mode)} path", footer="whole request", ratio=1)
    sums = any(step.accesses for step in (*path.steps, *path.way_back))
    if sums:
        table.add_column("sum of", justify="right", min_width=11)
    table.add_column("p50", justify="right", footer=duration(path.total_ns.p50), min_width=8)
    table.add_column("p99", justify="right", footer=duration(path.total_ns.p99), min_width=8)

    def row(step: Step) -> None:
        times = [duration(step.p50_ns), duration(step.p99_ns)]
        if sums:
            times.insert(0, f"{count(step.accesses)} accesses" if step.accesses else "")
        table.add_row(str(step.number), Text(step.text), *times)

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
