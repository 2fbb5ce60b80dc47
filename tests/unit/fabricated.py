"""Results of no real run, for tests of what is done with results."""

from hvcore.report.model import (
    Comparison,
    ExactCounts,
    Explanation,
    Hop,
    Image,
    Latency,
    Machine,
    PathExplanation,
    PerRequest,
    Run,
)
from hvcore.report.steps import timed_steps

IMAGE = Image(path=None, format="vhdx", size_bytes=64 << 20, sector_size=512)
MACHINE = Machine(
    cpu_model="Example 9000",
    cpus=[0, 1],
    cpus_online=8,
    cpu_quota=1.5,
    kernel="6.1.0",
    python="3.11.7",
    hvcore="0.1.0",
    placement="not pinned",
    spinners=1,
)


def latency(p50: int) -> Latency:
    return Latency(min=p50 // 2, p50=p50, p90=p50 * 2, p99=p50 * 3, p99_9=p50 * 4, max=p50 * 10, mean=p50 * 1.25)


def run(path: str, requests: int, p50: int, counts: PerRequest, ide_mode: str | None = None) -> Run:
    return Run(
        path=path,
        partition="none" if path == "local" else "process",
        rw="randread",
        block_size=4096,
        queue_depth=1,
        requests=requests,
        seconds=2.0,
        errors=0,
        verified_bytes=requests * 4096,
        latency_ns=latency(p50),
        per_request=counts,
        hops=[Hop("media", 900, 2000)],
        ide_mode=ide_mode,
    )


COMPARISON = Comparison(
    image=IMAGE,
    machine=MACHINE,
    runs=[
        run("local", 1_000_000, 1000, PerRequest(0, 0, 0, 0, 0, 0, 0, 0)),
        run("synthetic", 200_000, 8000, PerRequest(2, 2, 0, 0, 0, 1.98, 2.003, 2.1)),
        run("emulated", 50_000, 32000, PerRequest(6, 2, 17, 0, 0, 5.9, 6, 0.004), "dma"),
        run("trapped", 12_500, 128_000, PerRequest(4128, 0, 2063, 2063, 4096, 0.99, 1.5, 33), "pio-multiple"),
        run("accelerated", 200_000, 8000, PerRequest(2, 2, 0, 0, 0, 1.98, 2.003, 2.1)),
    ],
)

EXPLANATION = Explanation(
    image=Image(path="/images/root.vhd", format="vhd", size_bytes=10 << 30, sector_size=512),
    machine=MACHINE,
    block_size=4096,
    requests=1000,
    paths=[
        PathExplanation(
            "synthetic",
            None,
            *timed_steps("synthetic", {"submit": (400, 900), "media": (1234, 2_500_000), "answer": (12_345, 99_960)}),
            ExactCounts(2, 2, 0, 0, 0, 1),
            latency(21_000),
        ),
        PathExplanation(
            "emulated", "pio", *timed_steps("emulated", {}), ExactCounts(6, 2, 2071, 0, 4096, 1), latency(1_234_000)
        ),
        PathExplanation(
            "trapped",
            "pio",
            *timed_steps("trapped", {"intercept": (5200, 7000)}, {"intercept": 7, "answer": 2056}),
            ExactCounts(4128, 0, 2063, 2063, 4096, 1),
            latency(1_500_000),
        ),
    ],
)
