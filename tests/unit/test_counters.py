import mmap
import resource
import threading

import pytest

from hvcore.metrics.counters import COUNTERS_BYTES, NAMES, context_switches, counters_snapshot


def test_names_in_order() -> None:
    assert NAMES == (
        "requests", "hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied", "doorbells",
        "blocking_waits", "media_accesses", "errors",
    )  # fmt: skip


@pytest.mark.parametrize("offset", [0, 128, 64, 4096 - COUNTERS_BYTES])
def test_snapshot(offset: int) -> None:
    with mmap.mmap(-1, 4096) as region:
        with memoryview(region) as view, view.cast("Q") as words:
            for i in range(16):
                words[offset // 8 + i] = 2**64 - 1 - i
        assert counters_snapshot(region, offset) == {name: 2**64 - 1 - i for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("offset", [1, 8, 32, 4096 - 64, 4096, 2**64 - 64, 2**64 - 1])
def test_no_block_there(offset: int) -> None:
    with mmap.mmap(-1, 4096) as region, pytest.raises(ValueError, match=f"no counters at offset {offset}"):
        counters_snapshot(region, offset)


def test_switches_are_the_threads_own() -> None:
    def measure() -> None:
        for _ in range(2):
            usage = resource.getrusage(resource.RUSAGE_THREAD)
            figures.append((usage.ru_nvcsw, usage.ru_nivcsw))
            figures.append(context_switches())

    for _ in range(3):
        figures: list[tuple[int, int]] = []
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
        for before, ours, after in zip(figures, figures[1:], figures[2:], strict=False):
            assert before[0] <= ours[0] <= after[0]
            assert before[1] <= ours[1] <= after[1]
