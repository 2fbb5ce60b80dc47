"""What the host says unasked: one thread of a guest looks after the channels that nobody waits on.

The watcher never reads a ring that a request's thread reads. While a channel is in use it looks by the clock, so that
no completion has to be signalled for its sake; when all are idle it unmasks their rings and sleeps until the host
signals.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdint cimport uint32_t

from hvcore.errors import GuestGone
from hvcore.linux.atomics cimport fetch_add32, load_acquire32, store_release32
from hvcore.linux.syscalls cimport futex_wait, futex_wake
from hvcore.linux.threads cimport (
    Monitor, monitor_destroy, monitor_enter, monitor_init, monitor_lock, monitor_unlock)
from hvcore.memory.region cimport Region
from hvcore.storage.queue cimport VSC_INTERRUPTED, VSC_OK, VSC_GONE, Vsc, vsc_attend
from hvcore.storage.vsc cimport Channel
from hvcore.vmbus.events cimport EventPage, event_end_guest, event_guest_pending, event_guest_sleeps, event_guest_wait
from hvcore.vmbus.ring cimport ring_poll

cdef enum:
    CHANNELS = 64
    LOOK_NS = 100000000          # between looks at channels in use

ctypedef struct Watch:
    Monitor monitor              # guards the list
    EventPage *events
    Vsc *channels[64]
    uint32_t count
    uint32_t word                # futex: changes whenever the watcher is to look again
    uint32_t ended


cdef bint watch_look(Watch *watch, bint *in_use) noexcept nogil:
    """Whether a channel has a notice."""
    cdef uint32_t i
    cdef bint found = False
    cdef Vsc *vsc
    in_use[0] = False
    monitor_lock(&watch.monitor)
    for i in range(watch.count):
        vsc = watch.channels[i]
        monitor_enter(&vsc.monitor, &vsc.wanted)
        if vsc_attend(vsc):
            in_use[0] = True
        if vsc.notices:
            found = True
        monitor_unlock(&vsc.monitor)
    monitor_unlock(&watch.monitor)
    return found


cdef int watch_sleep(Watch *watch, uint32_t seen) noexcept nogil:
    """Until the host signals a channel, or something changed since the watch word was `seen`: the waiter's half of the
    protocol in events.pxd; vsc_attend has unmasked the rings."""
    cdef uint32_t word = event_guest_sleeps(watch.events), i
    cdef bint ready = load_acquire32(&watch.word) != seen
    cdef Vsc *vsc
    monitor_lock(&watch.monitor)
    for i in range(watch.count):
        vsc = watch.channels[i]
        monitor_enter(&vsc.monitor, &vsc.wanted)
        if not vsc.corrupt and not load_acquire32(&vsc.gone):
            ready = (ready or not vsc.watched or ring_poll(&vsc.incoming)
                     or event_guest_pending(watch.events, vsc.relid))
        monitor_unlock(&vsc.monitor)
    monitor_unlock(&watch.monitor)
    return 0 if ready else event_guest_wait(watch.events, word, -1)


cdef int watch_wait(Watch *watch) noexcept nogil:
    cdef uint32_t seen
    cdef bint in_use
    cdef int status = 0
    while True:
        seen = load_acquire32(&watch.word)
        if load_acquire32(&watch.ended):
            return VSC_GONE
        if watch_look(watch, &in_use):
            return VSC_OK
        if status == -EINTR:
            return VSC_INTERRUPTED
        if in_use:
            status = futex_wait(&watch.word, seen, LOOK_NS)
        else:
            status = watch_sleep(watch, seen)


@cython.final
cdef class Watcher:
    """Waits for notices of a guest's channels. wait() is for one thread; the other calls may come from any."""
    cdef Watch watch
    cdef Region events
    cdef list channels
    cdef bint ready

    def __cinit__(self, Region events not None):
        self.events = events
        self.channels = []
        self.watch.events = <EventPage *> events.base
        if monitor_init(&self.watch.monitor) < 0:
            raise MemoryError
        self.ready = True

    def __dealloc__(self):
        if self.ready:
            monitor_destroy(&self.watch.monitor)

    def add(self, Channel channel not None):
        """Looks after a channel from now on; ValueError beyond 64."""
        cdef bint full
        with nogil:
            monitor_lock(&self.watch.monitor)
            full = self.watch.count == CHANNELS
            if not full:
                self.watch.channels[self.watch.count] = &channel.vsc
                self.watch.count += 1
                monitor_enter(&channel.vsc.monitor, &channel.vsc.wanted)
                channel.vsc.watch_word = &self.watch.word
                monitor_unlock(&channel.vsc.monitor)
            monitor_unlock(&self.watch.monitor)
        if full:
            raise ValueError(f"more than {CHANNELS} channels are not watched")
        channel.watcher = self
        self.channels.append(channel)
        self.call()

    def remove(self, Channel channel not None):
        """The channel is not looked at any more when this returns."""
        cdef uint32_t i
        with nogil:
            monitor_lock(&self.watch.monitor)
            for i in range(self.watch.count):
                if self.watch.channels[i] == &channel.vsc:
                    self.watch.count -= 1
                    self.watch.channels[i] = self.watch.channels[self.watch.count]
                    break
            monitor_enter(&channel.vsc.monitor, &channel.vsc.wanted)
            channel.vsc.watch_word = NULL
            monitor_unlock(&channel.vsc.monitor)
            monitor_unlock(&self.watch.monitor)
        self.channels = [known for known in self.channels if known is not channel]

    def wait(self):
        """Returns when a channel has notices (Channel.notices); GuestGone after close()."""
        cdef int result = VSC_INTERRUPTED
        while result == VSC_INTERRUPTED:
            with nogil:
                result = watch_wait(&self.watch)
            PyErr_CheckSignals()
        if result == VSC_GONE:
            raise GuestGone("the guest is closed")

    cdef void call(self) noexcept nogil:
        fetch_add32(&self.watch.word, 1)
        futex_wake(&self.watch.word, 1)
        event_end_guest(self.watch.events)   # changes the other word it may sleep on; other sleepers look again

    def close(self):
        """Ends wait(), now and later. Idempotent."""
        store_release32(&self.watch.ended, 1)
        self.call()
