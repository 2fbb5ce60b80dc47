"""No interleaving of the waiting protocol loses a wake-up, and the search finds each step that can be done wrong."""

import pytest

from tests.reference import waiting


@pytest.mark.parametrize(
    "who",
    [
        waiting.guest_waits,
        waiting.host_waits,
        waiting.two_guests_wait,
        waiting.watcher_waits,
        waiting.watcher_and_guest_wait,
        waiting.host_dies,
        waiting.worker_waits,
        waiting.all_wait,
        waiting.worker_waits_for_two,
        waiting.worker_dies,
    ],
)
def test_no_wake_up_is_lost(who):
    search = who()
    assert search.stuck() == []
    # Threads that never overlap have as many states as steps.
    assert search.states > 1000


def test_no_wake_up_of_a_leader_is_lost():
    search = waiting.spread_waits()
    assert search.stuck() == []
    assert search.states > 100


@pytest.mark.parametrize(
    ("who", "bug"),
    [
        (waiting.guest_waits, "no fence in ring_publish"),
        (waiting.guest_waits, "mask tested before the index is published"),
        (waiting.guest_waits, "wake without changing the word"),
        (waiting.guest_waits, "sleep word after the last look"),
        (waiting.guest_waits, "no last look"),
        (waiting.guest_waits, "only flags looked at"),
        (waiting.host_waits, "no fence in ring_publish"),
        (waiting.host_waits, "no fence in ring_want"),
        (waiting.host_waits, "no fence in ring_release"),
        (waiting.host_waits, "mask tested before the index is published"),
        (waiting.host_waits, "sleep word by a plain store"),
        (waiting.host_waits, "no last look"),
        # Only the flag says that there is room again: a packet would be found by the look at its ring.
        (waiting.host_waits, "flag raised after the sleep word"),
        (waiting.host_waits, "flag cleared after the rings"),
        (waiting.two_guests_wait, "no fence in ring_unmask and event_guest_sleeps"),
        (waiting.two_guests_wait, "wake without changing the word"),
        (waiting.two_guests_wait, "sleep word back to 0"),
        (waiting.two_guests_wait, "no last look"),
        (waiting.watcher_waits, "no fence in ring_publish"),
        (waiting.watcher_and_guest_wait, "no fence in ring_unmask and event_guest_sleeps"),
        (waiting.watcher_waits, "wake without changing the word"),
        (waiting.watcher_waits, "no last look"),
        (waiting.watcher_and_guest_wait, "sleep word back to 0"),
        (waiting.spread_waits, "progress by a plain store"),
        (waiting.spread_waits, "wake without changing the word"),
        (waiting.spread_waits, "no last look"),
        (waiting.host_dies, "no fence in Channel.end"),
        (waiting.host_dies, "no last look"),
        (waiting.host_dies, "the end wakes as a signal does"),
        (waiting.worker_waits, "no fence in emulated_post"),
        (waiting.worker_waits, "no fence in worker_post"),
        (waiting.worker_waits, "wake without changing the word"),
        (waiting.worker_waits, "sleep word by a plain store"),
        (waiting.worker_waits, "no last look"),
        (waiting.all_wait, "no fence in emulated_post"),
        (waiting.all_wait, "no fence in worker_post"),
        (waiting.all_wait, "sleep word by a plain store"),
        (waiting.worker_waits_for_two, "no fence in emulated_post"),
        (waiting.worker_waits_for_two, "no fence in vp_exchange"),
        (waiting.worker_waits_for_two, "no fence in intercept_answer"),
        (waiting.worker_waits_for_two, "wake without changing the word"),
        (waiting.worker_waits_for_two, "sleep word by a plain store"),
        (waiting.worker_waits_for_two, "no last look"),
        (waiting.worker_dies, "the end wakes as an answer does"),
        (waiting.worker_dies, "no last look"),
    ],
)
def test_the_search_finds(who, bug):
    assert who(bug).stuck()


def test_one_waiter_may_put_its_word_back_to_0():
    """Only a second waiter can set it again before the first one is asleep."""
    assert waiting.guest_waits("sleep word back to 0").stuck() == []
