"""What a person sees: the essentials of the rendered text."""

import dataclasses
import io

import pytest
from rich.console import Console

from hvcore.report.doctor import Check
from hvcore.report.model import Point, Sweep
from hvcore.report.table import (
    WIDTH,
    checks_table,
    comparison_table,
    console,
    count,
    duration,
    explanation_table,
    facts_table,
    rate,
    sweep_table,
    times,
)
from tests.unit.fabricated import COMPARISON, EXPLANATION


def render(renderable, width=WIDTH, **options):
    screen = Console(file=io.StringIO(), width=width, highlight=False, **options)
    screen.print(renderable)
    return screen.file.getvalue()


def line(text, start):
    """The words of the one line that starts with `start`."""
    (found,) = [each.split() for each in text.splitlines() if each.strip().startswith(start)]
    return found


def test_comparison_shows_each_path():
    text = render(comparison_table(COMPARISON))
    assert line(text, "local") == ["local", "synthetic", "(dma)", "(pio-multiple)", "accelerated"]
    assert line(text, "emulated") == ["emulated", "trapped"]
    assert text.count("IOPS") == 2
    assert "500,000" in text and "100,000" in text and "25,000" in text
    assert line(text, "mean") == ["mean", "1.25", "µs", "10.0", "µs", "40.0", "µs", "160", "µs", "10.0", "µs"]
    assert line(text, "hand-overs") == ["hand-overs", "0", "2", "6", "4,128", "2"]
    assert line(text, "context switches") == ["context", "switches", "0", "2.10", "<0.01", "33", "2.10"]


def test_comparison_shows_ratios():
    text = render(comparison_table(COMPARISON))
    ratios = text[text.index("over synthetic") :]
    assert line(ratios, "IOPS") == ["IOPS", "5.00", "×", "1", "0.25", "×", "0.06", "×", "1.00", "×"]
    assert line(ratios, "p50") == ["p50", "0.12", "×", "1", "4.00", "×", "16.0", "×", "1.00", "×"]


def test_comparison_shows_machine_and_workload():
    text = render(comparison_table(COMPARISON))
    assert "randread, 4 KiB, queue depth 1, 2.0 s per path" in text
    assert "temporary, vhdx, 64 MiB, sectors of 512 bytes" in text
    assert "Example 9000; 2 of 8 CPUs (0-1), quota 1.5" in text
    assert "not pinned; at most 1 spinning in each process" in text


def test_explanation_shows_steps_times_and_counts():
    text = render(explanation_table(EXPLANATION))
    assert line(text, "4   the VSP has")[-4:] == ["1.23", "µs", "2.50", "ms"]
    assert line(text, "5   the VSP has the storage stack do that")[-2:] == ["–", "–"]
    assert text.count("way back") == 3
    assert [" ".join(each.split()[-4:]) for each in text.splitlines() if "whole request" in each] == [
        "21.0 µs 63.0 µs",
        "1.23 ms 3.70 ms",
        "1.50 ms 4.50 ms",
    ]
    assert "emulated (pio) path" in text
    assert line(text, "port accesses") == ["port", "accesses", "0", "2,071", "2,063"]
    assert line(text, "media accesses") == ["media", "accesses", "1", "1", "1"]


def test_steps_that_are_sums_say_of_how_many_accesses():
    text = render(explanation_table(EXPLANATION))
    assert text.count("sum of") == 1
    assert line(text, "2   each port access")[-6:] == ["7", "accesses", "5.20", "µs", "7.00", "µs"]
    assert "2,056 accesses" in text


def test_paths_that_take_one_request_at_a_time_are_named():
    assert "one request at a time" not in render(comparison_table(COMPARISON))
    runs = [
        dataclasses.replace(run, queue_depth=1 if run.path in ("local", "trapped") else 8) for run in COMPARISON.runs
    ]
    text = render(comparison_table(dataclasses.replace(COMPARISON, runs=runs)))
    assert "queue depth  local and trapped take one request at a time" in text
    assert line(text, "queue depth   ") == ["queue", "depth", "1", "8", "8", "1", "8"]
    parameters = {"rw": "randread", "block_size": 4096, "queue_depth": 8, "ide_mode": "dma"}
    swept = render(sweep_table(Sweep(COMPARISON.image, COMPARISON.machine, [Point(parameters, runs[3:])])))
    assert "trapped takes one request at a time" in swept


@pytest.mark.parametrize("table", [comparison_table(COMPARISON), explanation_table(EXPLANATION)])
def test_no_line_is_wider_than_the_limit(table):
    assert max(len(each) for each in render(table).splitlines()) <= WIDTH


@pytest.mark.parametrize("table", [comparison_table(COMPARISON), explanation_table(EXPLANATION)])
def test_no_figure_is_cut_on_a_narrow_terminal(table):
    assert "…" not in render(table, width=80)


def test_plain_without_a_terminal():
    assert "\x1b" not in render(comparison_table(COMPARISON))
    assert "\x1b[" in render(comparison_table(COMPARISON), force_terminal=True, color_system="standard")


def test_pipe_is_as_wide_as_allowed(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    assert console().width == WIDTH


def test_image_names_are_no_markup():
    assert "[bold]x.vhd" in render(facts_table({"file_name": "[bold]x.vhd", "parent": None}))


def test_checks_name_what_is_missing():
    text = render(checks_table([Check("memfd sealing", False, True, "refused", "no guest memory")]))
    assert line(text, "missing") == ["missing", "memfd", "sealing", "refused", "no", "guest", "memory"]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "–"),
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.00 µs"),
        (9_994, "9.99 µs"),
        (9_996, "10.0 µs"),
        (99_960, "100 µs"),
        (999_600, "1.00 ms"),
        (1_500_000_000, "1.50 s"),
        (5_000_000_000_000, "5,000 s"),
    ],
)
def test_durations_have_three_digits(ns, text):
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (2.0, "2"), (1.98, "1.98"), (0.001, "<0.01"), (4096, "4,096"), (12.34, "12.3")]
)
def test_counts_are_whole_where_they_are(value, text):
    assert count(value) == text


def test_rates_and_ratios():
    assert [rate(512), rate(409_600_000), rate(5 << 30)] == ["0.50 KiB/s", "391 MiB/s", "5.00 GiB/s"]
    assert [times(None), times(0.25), times(1234.0)] == ["–", "0.25 ×", "1,234 ×"]
