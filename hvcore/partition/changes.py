"""What comes, goes and changes among a guest's disks while it is attached, and who waits to hear of it."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.errors import GuestGone

if TYPE_CHECKING:
    from hvcore.partition.disk import Disk

KEPT = 1024


@dataclass(frozen=True)
class Change:
    """kind: "added", "removed", "changed" (its size, or whether it is read-only), or "attention": it reported a unit
    attention, which is in disk.attentions."""

    kind: str
    disk: "Disk"


class Changes:
    """A queue of changes; the oldest of more than KEPT are lost."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[Change] = deque(maxlen=KEPT)
        self._closed = False

    def put(self, changes: list[Change]) -> None:
        if changes:
            with self._condition:
                self._waiting.extend(changes)
                self._condition.notify_all()

    def take(self, timeout: float | None) -> list[Change]:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while not self._waiting:
                if self._closed:
                    raise GuestGone("the guest is closed, or its host is gone")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return []
                self._condition.wait(left)
            taken = list(self._waiting)
            self._waiting.clear()
            return taken

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
