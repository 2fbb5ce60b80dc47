"""Both ends of a ring at once, each in a thread without the GIL. Under ThreadSanitizer: run.py in this folder."""

from concurrent.futures import ThreadPoolExecutor

import pytest

ringloop = pytest.importorskip("tests_race_ringloop", reason="built only with HVCORE_EXTRA=tests/race")

PAGE = 4096
ONE = [0, 1]
LINEAR = [0, 1, 2, 3]
SCATTERED = [3, 5, 1, 4]


def shared(pages):
    buffer = bytearray(PAGE * 6)
    return buffer, ringloop.Shared(buffer, pages, bytearray(32))


@pytest.mark.parametrize("pages", [ONE, LINEAR, SCATTERED])
@pytest.mark.parametrize("largest", [64, 3000])
def test_every_packet_arrives_once_in_order(pages, largest):
    """1.9: no packet lost, torn or doubled, and no wake-up lost in either direction."""
    count = 20_000
    _, ring = shared(pages)
    with ThreadPoolExecutor(2) as threads:
        consumer = threads.submit(ringloop.consume, ring, count, 3)
        producer = threads.submit(ringloop.produce, ring, count, largest, 7)
        assert producer.result()[:2] == (0, count)
        assert consumer.result()[:2] == (0, count)


@pytest.mark.parametrize("pages", [ONE, SCATTERED])
@pytest.mark.parametrize("host", [True, False])
def test_hostile_peer_at_any_moment(pages, host):
    """VA-1: words change between any two of our loads."""
    buffer, ring = shared(pages)
    with ThreadPoolExecutor(2) as threads:
        threads.submit(ringloop.scribble, ring, 5)
        assert threads.submit(ringloop.victim, ring, 200_000, 11, host).result()[0] == 0
    unused = set(range(6)) - set(pages)
    assert not any(any(buffer[page * PAGE : (page + 1) * PAGE]) for page in unused)
