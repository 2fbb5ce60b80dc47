"""The waiting protocol as threads of a model: the code's own steps, in its order and under its names.

Indices count packets. A ring has two places, one of which always stays free (RB-11), so a writer soon finds it full.
`bug` names one step that is done wrong.
"""

from functools import partial

from tests.reference.interleavings import (
    FENCE,
    Program,
    Search,
    Steps,
    compare_exchange,
    epoll_wait,
    eventfd_ring,
    exchange,
    futex_wait,
    futex_wake,
    load,
    store,
)

PLACES = 2


class Waiting:
    def __init__(self, bug: str = "") -> None:
        self.bug = bug

    def fence(self, where: str) -> Steps:
        if not (self.bug.startswith("no fence") and where in self.bug):
            yield FENCE

    # vmbus/ring.pyx

    def ring_publish(self, ring: str, index: int) -> Steps:
        """One packet; whether the reader must be signalled."""
        if self.bug == "mask tested before the index is published":
            masked = yield load(f"{ring} mask")
            yield store(f"{ring} in", index)
            yield FENCE
        else:
            yield store(f"{ring} in", index)
            yield from self.fence("ring_publish")
            masked = yield load(f"{ring} mask")
        return not masked and (yield load(f"{ring} out")) == index - 1

    def ring_has_room(self, ring: str, index: int) -> Steps:
        return PLACES - (index - (yield load(f"{ring} out"))) > 1

    def ring_want(self, ring: str, index: int) -> Steps:
        yield store(f"{ring} pending", 1)
        yield from self.fence("ring_want")
        if not (yield from self.ring_has_room(ring, index)):
            return False
        yield store(f"{ring} pending", 0)
        return True

    def ring_poll(self, ring: str, taken: int) -> Steps:
        return (yield load(f"{ring} in")) != taken

    def ring_release(self, ring: str, released: int, taken: int) -> Steps:
        """Whether the writer must be signalled: only the change from too little room to enough."""
        yield store(f"{ring} out", taken)
        yield from self.fence("ring_release")
        pending = yield load(f"{ring} pending")
        if not pending:
            return False
        index = yield load(f"{ring} in")
        return PLACES - (index - released) <= pending < PLACES - (index - taken)

    def ring_mask(self, ring: str) -> Steps:
        yield store(f"{ring} mask", 1)
        yield FENCE

    def ring_unmask(self, ring: str, taken: int) -> Steps:
        """Whether there is something to read."""
        yield store(f"{ring} mask", 0)
        yield from self.fence("ring_unmask")
        return self.bug != "only flags looked at" and (yield from self.ring_poll(ring, taken))

    # vmbus/events.pxd, host side

    def event_signal_guest(self, ring: str) -> Steps:
        if self.bug == "flag raised after the sleep word":
            yield from self.event_wake_guest()
            yield exchange(f"{ring} to_guest", 1)
        else:
            yield exchange(f"{ring} to_guest", 1)
            yield from self.event_wake_guest()

    def event_wake_guest(self) -> Steps:
        word = yield load("guest_sleep")
        if not word & 1:
            return
        if self.bug == "wake without changing the word":
            yield futex_wake("guest_sleep")
            return
        after = 0 if self.bug == "sleep word back to 0" else word + 1
        if (yield compare_exchange("guest_sleep", word, after)):
            yield futex_wake("guest_sleep")

    # vmbus/events.pxd, guest side

    def event_end_guest(self) -> Steps:
        if self.bug == "the end wakes as a signal does":
            yield from self.event_wake_guest()
            return
        word = yield load("guest_sleep")
        if word & 1:
            yield compare_exchange("guest_sleep", word, word + 1)
        yield futex_wake("guest_sleep")

    def event_signal_host(self) -> Steps:
        yield exchange("to_host", 1)
        yield from self.wake_host("host_sleep")

    def wake_host(self, sleep_word: str) -> Steps:
        if (yield load(sleep_word)) and (yield exchange(sleep_word, 0)):
            yield eventfd_ring("doorbell")

    def clear(self, flag: str) -> Steps:
        if (yield load(flag)):
            yield exchange(flag, 0)

    def event_guest_sleeps(self) -> Steps:
        word = yield load("guest_sleep")
        while not word & 1:
            if (yield compare_exchange("guest_sleep", word, word | 1)):
                word |= 1
                break
            word = yield load("guest_sleep")
        yield from self.fence("event_guest_sleeps")
        return word

    # storage/queue.pyx: a ring to the guest stands for its channel

    def vsc_block(self, ring: str, taken: int) -> Steps:
        if self.bug == "flag cleared after the rings":
            yield from self.clear(f"{ring} to_guest")
        if not (yield from self.ring_unmask(ring, taken)):
            if self.bug == "sleep word after the last look":
                ready = yield from self.vsc_ready(ring, taken)
                word = yield from self.event_guest_sleeps()
            else:
                word = yield from self.event_guest_sleeps()
                ready = self.bug != "no last look" and (yield from self.vsc_ready(ring, taken))
            if not ready:
                yield futex_wait("guest_sleep", word)
        yield from self.clear(f"{ring} to_guest")
        yield from self.ring_mask(ring)

    def vsc_ready(self, ring: str, taken: int) -> Steps:
        if self.bug != "only flags looked at" and (yield from self.ring_poll(ring, taken)):
            return True
        return (yield load(f"{ring} to_guest")) or (yield load("gone"))

    def vsc_wait(self, ring: str, taken: int) -> Steps:
        """What is taken then."""
        if not (yield from self.ring_poll(ring, taken)):
            yield from self.vsc_block(ring, taken)
        released = taken
        while (index := (yield load(f"{ring} in"))) != taken:
            taken = index
        if taken != released:
            yield from self.ring_release(ring, released, taken)
        return taken

    def guest_receives(self, ring: str, count: int) -> Steps:
        taken = 0
        while taken < count and not (yield load("gone")):
            taken = yield from self.vsc_wait(ring, taken)

    def vsc_drain(self, ring: str, taken: int) -> Steps:
        """What is taken then."""
        released = taken
        while (index := (yield load(f"{ring} in"))) != taken:
            taken = index
        if taken != released:
            yield from self.ring_release(ring, released, taken)
        return taken

    # storage/watch.pyx: nobody else reads the ring meanwhile, whose mask stays clear

    def watcher_receives(self, ring: str, count: int) -> Steps:
        taken = 0
        watched = False
        while taken < count:
            # vsc_attend
            if self.bug != "flag cleared after the rings":
                yield from self.clear(f"{ring} to_guest")
            taken = yield from self.vsc_drain(ring, taken)
            if not watched:
                watched = True
                if (yield from self.ring_unmask(ring, taken)):
                    taken = yield from self.vsc_drain(ring, taken)
            if taken == count:
                return
            # watch_sleep
            word = yield from self.event_guest_sleeps()
            if self.bug == "no last look" or not (yield from self.vsc_ready(ring, taken)):
                yield futex_wait("guest_sleep", word)

    # storage/queue.pyx: one thread leads a channel, another waits for that and for others

    def leader_completes(self, count: int) -> Steps:
        """vsc_wake_others, with a thread that waits for several channels."""
        for n in range(count):
            if self.bug == "progress by a plain store":
                yield store("progress", n + 1)
            else:
                yield exchange("progress", n + 1)
            yield from self.event_wake_guest()

    def spread_receives(self, count: int) -> Steps:
        while (seen := (yield load("progress"))) != count:
            word = yield from self.event_guest_sleeps()
            if self.bug == "no last look" or (yield load("progress")) == seen:
                yield futex_wait("guest_sleep", word)

    def guest_sends(self, count: int, completions: int) -> Steps:
        sent = taken = 0
        while sent < count or taken < completions:
            if sent < count:
                room = yield from self.ring_has_room("up", sent)
                if not room:
                    room = yield from self.ring_want("up", sent)
                if room:
                    sent += 1
                    yield store("up pending", 0)
                    if (yield from self.ring_publish("up", sent)):
                        yield from self.event_signal_host()
                    continue
            taken = yield from self.vsc_wait("down", taken)

    def guest_reads_socket(self) -> Steps:
        """The thread that finds that the host is gone, and tells every channel (Channel.end)."""
        yield epoll_wait("end of file")
        yield store("gone", 1)
        yield from self.fence("Channel.end")  # there the locked add to `progress`
        yield from self.event_end_guest()

    # dispatch/host.pyx, storage/vsp.pyx, dispatch/emulated.pyx: one request at a time

    def host_publishes(self, rings: tuple[str, ...]) -> Steps:
        """One packet after the other, each into the ring named."""
        for i, ring in enumerate(rings):
            if (yield from self.ring_publish(ring, rings[: i + 1].count(ring))):
                yield from self.event_signal_guest(ring)
        yield exchange("end of file", 1)

    def loop_thread(self, count: int, guest: bool, worker: bool) -> Steps:
        """Takes `count` requests of the guest, or has them itself without one; the worker completes them, or nobody."""
        taken = done = 0
        while done < count:
            # loop_pass
            if worker and (yield from self.emulated_ready(taken, done)):
                done += 1
                if guest and (yield from self.ring_publish("down", done)):
                    yield from self.event_signal_guest("down")
            elif (yield from self.vsp_ready(taken, done)) if guest else taken == done:
                taken += 1
                if guest and (yield from self.ring_release("up", taken - 1, taken)):
                    yield from self.event_signal_guest("down")
                if worker:
                    yield from self.emulated_post(taken)
                else:
                    done = taken
            elif (yield from self.loop_prepare_sleep(taken, done, guest, worker)):
                yield epoll_wait("doorbell")
                yield from self.loop_woken(guest, worker)
        if worker:
            # Worker.close
            yield store("stop", 1)
            yield exchange("worker_sleep", 0)
            yield futex_wake("worker_sleep")

    def vsp_ready(self, taken: int, done: int) -> Steps:
        return taken == done and (yield from self.ring_poll("up", taken))

    def emulated_ready(self, taken: int, done: int) -> Steps:
        return taken != done and (yield load("answered")) == taken

    def loop_prepare_sleep(self, taken: int, done: int, guest: bool, worker: bool) -> Steps:
        idle = True
        if guest:
            yield from self.ring_unmask("up", taken)
            idle = not (yield from self.vsp_ready(taken, done))
        if idle:
            for word in ("emulated host_sleep",) * worker + ("host_sleep",) * guest:
                yield from self.sleeps(word)
            if self.bug != "no last look":
                idle = not (guest and ((yield load("to_host")) or (yield from self.vsp_ready(taken, done))))
                idle = idle and not (worker and (yield from self.emulated_ready(taken, done)))
        if not idle:
            yield from self.loop_woken(guest, worker)
        return idle

    def sleeps(self, word: str) -> Steps:
        """A locked store."""
        if self.bug == "sleep word by a plain store":
            yield store(word, 1)
        else:
            yield exchange(word, 1)

    def loop_woken(self, guest: bool, worker: bool) -> Steps:
        if worker:
            yield store("emulated host_sleep", 0)
        if guest:
            yield store("host_sleep", 0)
            yield from self.clear("to_host")
            yield from self.ring_mask("up")

    def emulated_post(self, posted: int) -> Steps:
        yield store("posted", posted)
        yield from self.fence("emulated_post")
        change = self.bug != "wake without changing the word"
        if (yield load("worker_sleep")) and (not change or (yield exchange("worker_sleep", 0))):
            yield futex_wake("worker_sleep")

    # dispatch/worker.pyx

    def worker_thread(self) -> Steps:
        seen = 0
        while not (yield load("stop")):
            posted = yield load("posted")
            if posted != seen:
                seen = posted
                # worker_post
                yield store("answered", seen)
                yield from self.fence("worker_post")
                yield from self.wake_host("emulated host_sleep")
                continue
            yield from self.sleeps("worker_sleep")
            if self.bug == "no last look" or not (yield from self.worker_ready(seen)):
                yield futex_wait("worker_sleep", 1)
            yield store("worker_sleep", 0)

    def worker_ready(self, seen: int) -> Steps:
        return (yield load("posted")) != seen or (yield load("stop"))

    # dispatch/handover.pxd, dispatch/worker.pyx with a guest whose ports are intercepted, hypervisor/intercept.pyx

    def handover_wake(self) -> Steps:
        if (yield load("worker_sleep")) and (yield exchange("worker_sleep", 0)):
            if self.bug != "wake without changing the word":
                yield exchange("pages worker_sleep", 0)
            yield futex_wake("pages worker_sleep")

    def intercept_wake(self, word: str) -> Steps:
        if (yield load(word)) and (yield exchange(word, 0)):
            yield futex_wake(word)

    def host_posts(self) -> Steps:
        """As emulated_post does; how the answer is waited for is another model's."""
        yield store("posted", 1)
        yield from self.fence("emulated_post")
        yield from self.handover_wake()

    def vp_accesses(self, count: int) -> Steps:
        """vp_exchange and vp_wait, until the host says that the worker is gone."""
        for number in range(1, count + 1):
            yield store("vp posted", number)
            yield from self.fence("vp_exchange")
            yield from self.intercept_wake("pages worker_sleep")
            while not (yield from self.vp_ready(number)):
                yield from self.sleeps("vp sleep")
                if self.bug == "no last look" or not (yield from self.vp_ready(number)):
                    yield futex_wait("vp sleep", 1)
                yield store("vp sleep", 0)
            if (yield load("gone")):
                return

    def vp_ready(self, number: int) -> Steps:
        return (yield load("vp answered")) == number or (yield load("gone"))

    def worker_of_two(self, commands: int, accesses: int) -> Steps:
        """worker_thread and worker_sleep, until it has answered so many of host and guest."""
        seen = taken = 0
        while seen < commands or taken < accesses:
            if (yield load("posted")) != seen:
                seen += 1
                yield store("answered", seen)
                continue
            if (yield load("vp posted")) != taken:
                taken += 1
                yield store("vp answered", taken)
                yield from self.fence("intercept_answer")
                yield from self.intercept_wake("vp sleep")
                continue
            yield from self.sleeps("worker_sleep")
            yield from self.sleeps("pages worker_sleep")
            ready = (yield load("posted")) != seen or (yield load("vp posted")) != taken
            if self.bug == "no last look" or not ready:
                yield futex_wait("pages worker_sleep", 1)
            yield store("pages worker_sleep", 0)
            yield store("worker_sleep", 0)
        yield exchange("end of file", 1)

    def host_sees_the_worker_end(self) -> Steps:
        """Intercepts.worker_lost"""
        yield epoll_wait("end of file")
        yield store("gone", 1)
        if self.bug == "the end wakes as an answer does":
            yield from self.intercept_wake("vp sleep")
            return
        yield exchange("vp sleep", 0)
        yield futex_wake("vp sleep")


def words(*rings: str) -> dict[str, int]:
    """Shared memory at first: all masks set."""
    names = (
        "guest_sleep", "host_sleep", "to_host", "doorbell", "gone", "end of file",
        "worker_sleep", "emulated host_sleep", "posted", "answered", "stop", "progress",
        "pages worker_sleep", "vp posted", "vp answered", "vp sleep",
        *(f"{ring} {word}" for ring in rings for word in ("in", "out", "pending", "to_guest")),
    )  # fmt: skip
    return dict.fromkeys(names, 0) | {f"{ring} mask": 1 for ring in rings}


# Who runs at once. Each takes the name of the step that is wrong.


def guest_waits(bug: str = "") -> Search:
    """The host publishes for one thread of the guest, which sleeps on the futex."""
    w = Waiting(bug)
    host, guest = partial(w.host_publishes, ("down",) * 3), partial(w.guest_receives, "down", 3)
    return Search({"host": host, "guest": guest}, words("down"))


def host_waits(bug: str = "") -> Search:
    """The guest sends, and waits for room in the ring; the host, which sleeps on the doorbell, completes nothing."""
    w = Waiting(bug)
    host, guest = partial(w.loop_thread, 3, guest=True, worker=False), partial(w.guest_sends, 3, completions=0)
    return Search({"host": host, "guest": guest}, words("up", "down"))


def two_guests_wait(bug: str = "") -> Search:
    """Two threads of one guest, each with a channel of its own, sleep on the same word."""
    w = Waiting(bug)
    programs: dict[str, Program] = {
        "host": partial(w.host_publishes, ("down 1", "down 2", "down 1")),
        "guest 1": partial(w.guest_receives, "down 1", 2),
        "guest 2": partial(w.guest_receives, "down 2", 1),
    }
    return Search(programs, words("down 1", "down 2"))


def watcher_waits(bug: str = "") -> Search:
    """The watcher sleeps on an idle channel; the host publishes what nobody asked for."""
    w = Waiting(bug)
    host, watcher = partial(w.host_publishes, ("down",) * 3), partial(w.watcher_receives, "down", 3)
    return Search({"host": host, "watcher": watcher}, words("down"))


def watcher_and_guest_wait(bug: str = "") -> Search:
    """The watcher sleeps on the word on which a request of another channel sleeps too."""
    w = Waiting(bug)
    programs: dict[str, Program] = {
        "host": partial(w.host_publishes, ("down 1", "down 2")),
        "watcher": partial(w.watcher_receives, "down 1", 1),
        "guest": partial(w.guest_receives, "down 2", 1),
    }
    return Search(programs, words("down 1", "down 2"))


def spread_waits(bug: str = "") -> Search:
    """A thread that waits for several channels sleeps on the event page; the leader of one of them wakes it."""
    w = Waiting(bug)
    return Search({"leader": partial(w.leader_completes, 4), "waiter": partial(w.spread_receives, 4)}, words())


def host_dies(bug: str = "") -> Search:
    """The host ends between any two steps; then nobody may sleep on."""
    w = Waiting(bug)
    programs: dict[str, Program] = {
        "host": partial(w.host_publishes, ("down",)),
        "guest": partial(w.guest_receives, "down", 2),
        "socket": w.guest_reads_socket,
    }
    return Search(programs, words("down"), mortal="host")


def worker_waits(bug: str = "") -> Search:
    """Host and worker hand commands over and sleep in turns; then the worker is told to stop."""
    w = Waiting(bug)
    host = partial(w.loop_thread, 3, guest=False, worker=True)
    return Search({"host": host, "worker": w.worker_thread}, words())


def all_wait(bug: str = "") -> Search:
    """The whole emulated path: the host sleeps on the guest and on the worker at once."""
    w = Waiting(bug)
    programs: dict[str, Program] = {
        "guest": partial(w.guest_sends, 1, completions=1),
        "host": partial(w.loop_thread, 1, guest=True, worker=True),
        "worker": w.worker_thread,
    }
    return Search(programs, words("up", "down"))


def worker_waits_for_two(bug: str = "") -> Search:
    """Host and guest both post to a worker, which sleeps on one word that either wakes; the guest sleeps on its own."""
    w = Waiting(bug)
    programs: dict[str, Program] = {
        "host": w.host_posts,
        "guest": partial(w.vp_accesses, 2),
        "worker": partial(w.worker_of_two, 1, 2),
    }
    return Search(programs, words())


def worker_dies(bug: str = "") -> Search:
    """The worker ends between any two steps of its answers; then no access of the guest may wait on."""
    w = Waiting(bug)
    programs: dict[str, Program] = {
        "host": w.host_sees_the_worker_end,
        "guest": partial(w.vp_accesses, 2),
        "worker": partial(w.worker_of_two, 0, 2),
    }
    return Search(programs, words(), mortal="worker")
