"""The JSON objects are a contract: their keys are spelled out here."""

import dataclasses
import json

import pytest

from hvcore.report.model import Comparison, dump, ratio
from tests.unit.fabricated import COMPARISON, EXPLANATION, IMAGE, MACHINE

RUN_KEYS = {
    *("path", "partition", "rw", "block_size", "queue_depth", "requests", "seconds", "iops", "bytes_per_second"),
    *("errors", "verified_bytes", "latency_ns", "per_request", "hops", "ide_mode"),
    *("moved_bytes", "behind", "load"),
}
LATENCY_KEYS = {"min", "p50", "p90", "p99", "p99_9", "max", "mean"}
EXACT_KEYS = {"hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied"}
MACHINE_KEYS = {
    *("cpu_model", "cpus", "cpus_online", "cpu_quota", "kernel", "python", "hvcore", "placement", "spinners"),
}


def test_comparison_keys():
    found = json.loads(COMPARISON.to_json())
    assert found.keys() == {"schema", "image", "machine", "runs", "ratios"}
    assert found["schema"] == "hvcore.compare/1"
    assert found["image"].keys() == {"path", "format", "size_bytes", "sector_size"}
    assert found["machine"].keys() == MACHINE_KEYS
    for run in found["runs"]:
        assert run.keys() == RUN_KEYS
        assert run["latency_ns"].keys() == LATENCY_KEYS
        assert run["per_request"].keys() == EXACT_KEYS | {"doorbells", "blocking_waits", "context_switches"}
        assert [hop.keys() for hop in run["hops"]] == [{"name", "p50_ns", "p99_ns"}]
    for each in found["ratios"]:
        assert each.keys() == {"path", "over", "p50", "p99", "mean", "iops"}


def test_explanation_keys():
    found = json.loads(EXPLANATION.to_json())
    assert found.keys() == {"schema", "image", "machine", "block_size", "requests", "paths"}
    assert found["schema"] == "hvcore.explain/1"
    for path in found["paths"]:
        assert path.keys() == {"path", "ide_mode", "steps", "way_back", "per_request", "total_ns"}
        assert path["total_ns"].keys() == LATENCY_KEYS
        assert path["per_request"].keys() == EXACT_KEYS | {"media_accesses"}
        for step in path["steps"] + path["way_back"]:
            assert step.keys() == {"number", "text", "hop", "p50_ns", "p99_ns", "accesses"}


def test_rates_follow_from_requests_and_seconds():
    synthetic = json.loads(COMPARISON.to_json())["runs"][1]
    assert (synthetic["iops"], synthetic["bytes_per_second"]) == (100_000, 409_600_000)
    assert dataclasses.replace(COMPARISON.runs[1], requests=0, seconds=0.0).iops == 0


def test_ratios_are_over_the_synthetic_path():
    assert [(r.path, r.over, r.p50, r.iops) for r in COMPARISON.ratios] == [
        ("local", "synthetic", 0.125, 5),
        ("emulated", "synthetic", 4, 0.25),
        ("trapped", "synthetic", 16, 0.0625),
        ("accelerated", "synthetic", 1, 1),
    ]


def test_no_ratios_without_the_synthetic_path():
    assert Comparison(IMAGE, MACHINE, COMPARISON.runs[:1]).ratios == []


def test_ratio_over_nothing_is_none():
    run = COMPARISON.runs[2]
    nothing = dataclasses.replace(
        run, seconds=0.0, latency_ns=dataclasses.replace(run.latency_ns, p50=0, p99=0, mean=0)
    )
    found = ratio(run, nothing)
    assert (found.p50, found.p99, found.mean, found.iops) == (None, None, None, None)


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"iops": float("nan")})
