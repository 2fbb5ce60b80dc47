"""The host's event loop: who gets which event."""

import os
import signal
import threading
from collections.abc import Callable

from hvcore.partition.loop import READ, Loop


class Pipe:
    """A source that has something to read from the start."""

    def __init__(self, then: Callable[["Pipe"], None]) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.write(self.writing, b"x")
        self.then = then
        self.called = 0

    def fileno(self) -> int:
        return self.reading

    def interest(self) -> int:
        return READ

    def ready(self, events: int) -> None:
        self.called += 1
        os.read(self.reading, 1)
        self.then(self)

    def deadline(self) -> float | None:
        return None

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


def test_removed_in_the_same_round() -> None:
    loop = Loop()

    def first_only(source: Pipe) -> None:
        loop.remove(b if source is a else a)
        loop.stop()

    a, b = Pipe(first_only), Pipe(first_only)
    loop.add(a)
    loop.add(b)
    loop.run()
    assert a.called + b.called == 1
    for each in (a, b):
        each.close()
    loop.close()


def test_event_of_a_number_that_is_another_descriptor_by_now() -> None:
    loop = Loop()
    made: list[Pipe] = []

    def replace(source: Pipe) -> None:
        """The other goes, and its number and place are taken by one that is quiet."""
        other = b if source is a else a
        loop.remove(other)
        other.close()
        quiet = Pipe(lambda _: None)
        os.read(quiet.reading, 1)
        assert quiet.reading == other.fileno()
        made.append(quiet)
        loop.add(quiet)
        loop.stop()

    a, b = Pipe(replace), Pipe(replace)
    loop.add(a)
    loop.add(b)
    loop.run()
    (quiet,) = made
    assert quiet.called == 0
    for each in (quiet, a if a.called else b):
        each.close()
    loop.close()


def test_stop_by_a_signal_handler_and_by_a_thread() -> None:
    for how in ("signal", "thread"):
        loop = Loop()
        before = signal.signal(signal.SIGUSR1, lambda *_, loop=loop: loop.stop())
        try:
            thread = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGUSR1))
            if how == "thread":
                thread = threading.Thread(target=loop.stop)
            thread.start()
            loop.run()
            thread.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
            loop.close()
