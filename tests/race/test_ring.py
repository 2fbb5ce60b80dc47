"""Both ends of a ring at once, each in a thread without the GIL. Under ThreadSanitizer: run.py in this folder."""

import os
import select
from concurrent.futures import ThreadPoolExecutor

import pytest

ringloop = pytest.importorskip("tests_race_ringloop", reason="built only with HVCORE_EXTRA=tests/race")

PAGE = 4096
ONE = [0, 1]
LINEAR = [0, 1, 2, 3]
SCATTERED = [3, 5, 1, 4]


def shared(pages):
    buffer = bytearray(PAGE * 6)
    return buffer, ringloop.Shared(buffer, pages)


@pytest.fixture
def events():
    """An event page; the host waits on its doorbell as the data path does."""
    doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    with select.epoll() as epoll:
        epoll.register(doorbell, select.EPOLLIN | select.EPOLLET)
        yield ringloop.Events(bytearray(PAGE), doorbell, epoll.fileno())
    os.close(doorbell)


@pytest.mark.parametrize("pages", [ONE, LINEAR, SCATTERED])
@pytest.mark.parametrize("largest", [64, 3000])
@pytest.mark.parametrize("host", [True, False])
def test_every_packet_arrives_once_in_order(events, pages, largest, host):
    """1.9: no packet lost, torn or doubled, and no wake-up lost in either direction. host: the producer is the host."""
    count = 20_000
    _, ring = shared(pages)
    with ThreadPoolExecutor(2) as threads:
        consumer = threads.submit(ringloop.consume, events, ring, 0, count, 3, not host)
        producer = threads.submit(ringloop.produce, events, [ring], count, largest, 7, host)
        assert producer.result()[:2] == (0, count)
        assert consumer.result()[:2] == (0, count)


@pytest.mark.parametrize("largest", [64, 3000])
def test_two_threads_wait_on_one_sleep_word(events, largest):
    """Neither sleeps through its wake-up because of the other, whose signals change the same word."""
    count = 20_000
    rings = [shared(pages)[1] for pages in (ONE, SCATTERED)]
    with ThreadPoolExecutor(3) as threads:
        consumers = [
            threads.submit(ringloop.consume, events, ring, i, count, i + 3, False) for i, ring in enumerate(rings)
        ]
        producer = threads.submit(ringloop.produce, events, rings, count, largest, 7, True)
        assert producer.result()[:2] == (0, 2 * count)
        assert [consumer.result()[:2] for consumer in consumers] == [(0, count)] * 2


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
