"""One storvsp controller as a guest uses it: its primary channel and its sub-channels (storvsp.md 4.3)."""

import contextlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hvcore.errors import Error
from hvcore.storage.vsc import Channel
from hvcore.vmbus.client import ClientChannel

POLICIES = ("thread", "round-robin", "least-busy")


@dataclass(frozen=True, eq=False)
class OpenChannel:
    """An open VMBus channel and its storage VSC."""

    offered: ClientChannel
    channel: Channel
    gpadl: int
    first_page: int  # of its rings
    pages: int


def check_policy(policy: str) -> str:
    if policy not in POLICIES:
        raise ValueError(f"a queue policy is one of {', '.join(POLICIES)}, not {policy!r}")
    return policy


class Adapter:
    """`channels`: the primary channel, then the sub-channels that are open. Its calls may run in several threads.

    facts: what the host's library said of the controller's disks when the guest attached (path, ide_mode).
    """

    def __init__(self, primary: OpenChannel, facts: dict[str, Any]) -> None:
        self.primary = primary
        self.facts = facts
        self.removed = False
        self.subs: dict[int, OpenChannel] = {}  # by sub-channel index
        self._turn = itertools.count()
        self._threads = itertools.count()
        self._local = threading.local()
        self._renew()

    def _renew(self) -> None:
        self.channels: tuple[Channel, ...] = (
            self.primary.channel,
            *(self.subs[index].channel for index in sorted(self.subs)),
        )
        # Of a controller without sub-channels, so that a call need not choose.
        self.single: Channel | None = self.channels[0] if len(self.channels) == 1 else None

    @property
    def open(self) -> list[OpenChannel]:
        return [self.primary, *self.subs.values()]

    @property
    def identity(self) -> tuple[object, object]:
        """What its offers have in common (vmbus.md CM-20)."""
        offer = self.primary.offered.offer
        return offer.interface_type, offer.interface_instance

    def choose(self, policy: str) -> Channel:
        """The channel of one call: each thread's own, one after the other, or the one with the fewest requests."""
        channels = self.channels
        if policy == "least-busy":
            return min(channels, key=lambda channel: channel.in_flight)
        if policy == "round-robin":
            return channels[next(self._turn) % len(channels)]
        mine = getattr(self._local, "number", None)
        if mine is None:
            mine = self._local.number = next(self._threads)
        return channels[mine % len(channels)]

    def choose_all(self, policy: str) -> tuple[Channel, tuple[Channel, ...]]:
        """Of a batch: the channel to begin with, and the others over which it is spread."""
        first = self.choose(policy)
        if policy == "thread":
            return first, ()
        return first, tuple(channel for channel in self.channels if channel is not first)

    def add(self, index: int, opened: OpenChannel) -> None:
        self.subs[index] = opened
        self._renew()

    def drop(self, offered: ClientChannel) -> OpenChannel | None:
        """A sub-channel that was closed or rescinded; None: it is none of this controller's."""
        for index, opened in list(self.subs.items()):
            if opened.offered is offered:
                del self.subs[index]
                self._renew()
                return opened
        return None

    def end(self) -> None:
        """Every wait on its channels ends with GuestGone, now and later."""
        for opened in self.open:
            opened.channel.end()

    def close(self, close_channel: Callable[[ClientChannel], None]) -> None:
        """The primary channel, and with it all others (4.1)."""
        self.end()
        with contextlib.suppress(Error, OSError):
            close_channel(self.primary.offered)
