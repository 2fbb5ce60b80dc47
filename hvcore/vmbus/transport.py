"""The two ends of a vmbus-user attachment over a connected SOCK_SEQPACKET socket (docs/vmbus-user.md).

HostEndpoint never blocks and is driven by an event loop; GuestEndpoint blocks and has a thread that reads.
"""

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Lock, Thread, current_thread
from uuid import UUID

from hvcore.errors import GuestGone, HostError, ProtocolError
from hvcore.linux import descriptors
from hvcore.vmbus.attach import (
    EVENT_PAGE_BYTES,
    INTERCEPT_BYTES,
    LAYOUT_VERSION,
    MAX_DATAGRAM,
    MESSAGE_HEADER,
    OLDEST_VERSION,
    POST_STATUS,
    Accept,
    Hello,
    PostStatus,
    Refusal,
)
from hvcore.vmbus.message import MAX_PAYLOAD
from hvcore.vmbus.synic import (
    CONNECTION_MASK,
    MESSAGE_CONNECTION,
    MESSAGE_PORT,
    MULTICLIENT_CONNECTION,
    VMBUS_MESSAGE,
    HypercallStatus,
)

MESSAGE_RATE = 1000  # messages per second
MESSAGE_BURST = 1024  # a GPADL of 8190 pages takes 293 messages
PAUSE = 0.1  # seconds without reading after a refusal for the rate
BATCH = 64  # datagrams per on_readable(): other guests wait no longer (VA-8)
CONNECTIONS = frozenset({MESSAGE_CONNECTION, MULTICLIENT_CONNECTION})

Clock = Callable[[], float]


class TokenBucket:
    """`burst` tokens, refilled with `rate` per second of `clock`."""

    def __init__(self, rate: float, burst: float, clock: Clock = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._then = clock()

    def take(self) -> float:
        """0.0 and one token less; or the seconds until there will be one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
        self._then = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


def listen(path: str) -> socket.socket:
    """A nonblocking listening socket at `path`, mode 0600. What a host that is gone left there is removed first;
    OSError when another host listens, or something else is there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        os.fchmod(sock.fileno(), 0o600)  # before bind(), so that the file never has another mode
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                if probe.connect_ex(path) != errno.ECONNREFUSED or not Path(path).is_socket():
                    raise
            Path(path).unlink()
            sock.bind(path)
        sock.listen()
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def peer_user(sock: socket.socket) -> int:
    """User id of the process that connected to a named socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a guest gets. The descriptors stay the host's; they are only sent.

    intercepts_fd: the pages of its port intercepts, None without; a guest that speaks only version 1 does not get them.
    """

    memory_fd: int
    memory_bytes: int
    doorbell_fd: int
    event_page_fd: int
    vm_id: UUID
    vp_count: int = 1
    intercepts_fd: int | None = None


class HostEndpoint:
    """The host's end of one connection; owns the socket.

    The loop watches fileno(): for reading while wants_read, for writing while wants_write. It calls on_readable() and
    on_writable() accordingly, on_hangup() for EPOLLHUP or EPOLLERR, and asks wants_read again after resume_after()
    seconds, when that is not None. One thread drives it all.

    admit() is asked when a valid HELLO came: an Attachment, or why not. allowed_users limits who may attach (only of
    use on a named socket; the ids of a socketpair are those of its maker); None allows all.
    on_message(payload, connection_id) gets what was posted. on_gone(reason) comes exactly once, from one of the on_
    calls and never from within send(), when the attachment ended other than by close(); the socket is then closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        admit: Callable[[], Attachment | Refusal],
        on_message: Callable[[bytes, int], None],
        on_gone: Callable[[str], None],
        *,
        allowed_users: frozenset[int] | None = None,
        rate: int = MESSAGE_RATE,
        burst: int = MESSAGE_BURST,
        clock: Clock = time.monotonic,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._admit = admit
        self._on_message = on_message
        self._on_gone = on_gone
        self._allowed_users = allowed_users
        self._rate = rate
        self._burst = burst
        self._clock = clock
        # Twice what is announced: datagrams that waited in the socket must not count against their sender.
        self._bucket = TokenBucket(rate, 2 * burst, clock)
        self._queue: deque[bytes] = deque()
        self._paused_until: float | None = None
        self._number = 0
        self._broken = False  # a send failed: the hang-up that follows ends it
        self.attached = False
        self.closed = False
        self.refused = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def wants_read(self) -> bool:
        """False while paused, and while the guest does not take what it is sent: that bounds the queue (HC-1)."""
        return not self.closed and not self._queue and self.resume_after() is None

    @property
    def wants_write(self) -> bool:
        return not self.closed and bool(self._queue)

    def resume_after(self) -> float | None:
        """Seconds until reading goes on after a refusal for the rate, or None when it is not paused."""
        if self._paused_until is None:
            return None
        left = self._paused_until - self._clock()
        if left > 0:
            return left
        self._paused_until = None
        return None

    def send(self, message: bytes) -> None:
        """A control message for the guest; one that is not attached, or gone, gets nothing."""
        if self.attached:
            self._post(MESSAGE_HEADER.pack(MESSAGE_PORT, VMBUS_MESSAGE) + message)

    def on_readable(self) -> None:
        for _ in range(BATCH):
            if not self.wants_read:
                return
            try:
                # No room for control data: descriptors of the guest are dropped by the kernel and seen as MSG_CTRUNC.
                datagram, _, flags, _ = self._sock.recvmsg(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(f"the guest's socket failed: {error.strerror}")
                return
            if not datagram:
                self._end("the guest closed its socket")
            elif flags & socket.MSG_CTRUNC:
                self._end("the guest sent descriptors")
            elif not self.attached:
                self._handshake(datagram)
            else:
                self._take(datagram, bool(flags & socket.MSG_TRUNC))

    def on_writable(self) -> None:
        while self._queue and not self.closed:
            if not self._write(self._queue[0]):
                return
            self._queue.popleft()

    def on_hangup(self) -> None:
        if not self.closed:
            self._end("the guest closed its socket")

    def close(self) -> None:
        """Ends the attachment from this side, without on_gone(). May be called again."""
        self.closed = True
        self.attached = False
        self._queue.clear()
        self._sock.close()

    def _end(self, reason: str) -> None:
        self.close()
        self._on_gone(reason)

    def _handshake(self, datagram: bytes) -> None:
        refusal, attachment, version = Refusal.ACCEPTED, None, LAYOUT_VERSION
        try:
            hello = Hello.decode(datagram)
        except ProtocolError:
            refusal = Refusal.MALFORMED
        else:
            version = min(LAYOUT_VERSION, hello.highest_version)
            if version < max(OLDEST_VERSION, hello.lowest_version):
                refusal = Refusal.VERSION
            elif self._allowed_users is not None and peer_user(self._sock) not in self._allowed_users:
                refusal = Refusal.NOT_PERMITTED
            else:
                answer = self._admit()
                if isinstance(answer, Attachment):
                    attachment = answer
                else:
                    refusal = answer
        # The socket is empty, so the answer fits; if it does not the peer is no guest worth waiting for.
        if attachment is None:
            with contextlib.suppress(OSError):
                self._sock.send(Accept(refusal).encode(), socket.MSG_NOSIGNAL)
            self._end(f"a guest was refused: {refusal.name}")
            return
        accept = Accept(
            Refusal.ACCEPTED,
            attachment.memory_bytes,
            self._rate,
            self._burst,
            attachment.vm_id,
            attachment.vp_count,
            EVENT_PAGE_BYTES,
            version,
        )
        shared = [attachment.memory_fd, attachment.doorbell_fd, attachment.event_page_fd]
        if version >= 2 and attachment.intercepts_fd is not None:
            accept = replace(accept, intercept_bytes=INTERCEPT_BYTES)
            shared.append(attachment.intercepts_fd)
        try:
            descriptors.send(self._sock, accept.encode(), shared)
        except OSError as error:
            self._end(f"the guest's socket failed: {error.strerror}")
            return
        self.attached = True

    def _take(self, datagram: bytes, truncated: bool) -> None:
        """One HvPostMessage (5.4): taken, or answered with its status."""
        self._number += 1
        connection, kind = 0, 0
        status = HypercallStatus.SUCCESS
        if len(datagram) < MESSAGE_HEADER.size:
            status = HypercallStatus.INVALID_HYPERCALL_INPUT
        else:
            connection, kind = MESSAGE_HEADER.unpack_from(datagram)
            if connection & ~CONNECTION_MASK:  # CM-17
                status = HypercallStatus.INVALID_HYPERCALL_INPUT
            elif truncated or kind != VMBUS_MESSAGE:
                status = HypercallStatus.INVALID_PARAMETER
            elif connection not in CONNECTIONS:
                status = HypercallStatus.INVALID_CONNECTION_ID
        if self._bucket.take():  # VA-7; each datagram costs, also one that is not taken
            status = HypercallStatus.INSUFFICIENT_BUFFERS
            self._paused_until = self._clock() + PAUSE
        if status:
            self.refused += 1
            answer = PostStatus(connection, status, self._number)
            self._post(MESSAGE_HEADER.pack(0, POST_STATUS) + answer.encode())
        else:
            self._on_message(datagram[MESSAGE_HEADER.size :], connection)

    def _post(self, datagram: bytes) -> None:
        if self._broken:
            return
        if self._queue or not self._write(datagram):
            self._queue.append(datagram)

    def _write(self, datagram: bytes) -> bool:
        """False when the socket is full."""
        try:
            self._sock.send(datagram, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            # Who sends must not be called back from within: the hang-up that this makes certain will tell.
            self._broken = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        return True


def _check_shared(fd: int, size: int, what: str) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise ProtocolError(f"the {what} is not a memfd") from None
    if not seals & fcntl.F_SEAL_SHRINK:
        raise ProtocolError(f"the {what} is not sealed against shrinking")
    if os.fstat(fd).st_size != size or size == 0 or size % 4096:
        raise ProtocolError(f"the {what} has {os.fstat(fd).st_size} bytes, announced are {size}")


class GuestEndpoint:
    """The guest's end: made by attach(), ended by close(). Owns the socket and the descriptors memory_fd, doorbell_fd,
    event_page_fd and intercepts_fd (None: no port is intercepted). send() may be called by several threads."""

    def __init__(self, sock: socket.socket, accept: Accept, shared: list[int]) -> None:
        """Takes what a handshake gave; use attach()."""
        self._sock = sock
        self.memory_fd, self.doorbell_fd, self.event_page_fd = shared[:3]
        self.intercepts_fd = shared[3] if len(shared) > 3 else None
        self.memory_bytes = accept.memory_bytes
        self.vm_id = accept.vm_id
        self.vp_count = accept.vp_count
        self._bucket = TokenBucket(max(1, accept.message_rate), max(1, accept.message_burst))
        self._sending = Lock()
        self._state = Condition()
        self._closing = False
        self._thread: Thread | None = None
        self.dropped = 0

    @classmethod
    def attach(cls, sock: socket.socket, timeout: float | None = 10.0) -> "GuestEndpoint":
        """The handshake over a connected socket, which is closed when it fails. HostError when the host refuses,
        ProtocolError when it does not speak vmbus-user, GuestGone when it closes, TimeoutError."""
        shared: list[int] = []
        try:
            sock.settimeout(timeout)
            sock.send(Hello().encode(), socket.MSG_NOSIGNAL)
            # Room for one more than there may be, so that the error can tell.
            datagram, shared, flags = descriptors.receive(sock, 256, 5)
            if not datagram:
                raise GuestGone("the host closed the socket during the handshake")
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise ProtocolError("ACCEPT was truncated: too many descriptors or bytes")
            accept = Accept.decode(datagram)
            if accept.status != Refusal.ACCEPTED:
                reasons = {refusal.value: refusal.name for refusal in Refusal}
                raise HostError(f"the host refused the attachment: {reasons.get(accept.status, accept.status)}")
            known = OLDEST_VERSION <= accept.version <= LAYOUT_VERSION
            if not known or accept.event_page_bytes != EVENT_PAGE_BYTES:
                raise ProtocolError(f"ACCEPT of layout version {accept.version}")
            count = 4 if accept.intercept_bytes else 3
            if len(shared) != count:
                raise ProtocolError(f"ACCEPT with {len(shared)} descriptors, not {count}")
            _check_shared(shared[0], accept.memory_bytes, "guest memory")
            _check_shared(shared[2], EVENT_PAGE_BYTES, "event page")
            if accept.intercept_bytes:
                if accept.intercept_bytes != INTERCEPT_BYTES:
                    raise ProtocolError(f"ACCEPT with intercept pages of {accept.intercept_bytes} bytes")
                _check_shared(shared[3], INTERCEPT_BYTES, "port intercepts")
            if str(Path(f"/proc/self/fd/{shared[1]}").readlink()) != "anon_inode:[eventfd]":
                raise ProtocolError("the doorbell is not an eventfd")
            sock.settimeout(None)
            return cls(sock, accept, shared)
        except BaseException as error:
            for fd in shared:
                os.close(fd)
            sock.close()
            if isinstance(error, ConnectionError):
                raise GuestGone("the host closed the socket during the handshake") from None
            raise

    def send(self, message: bytes, connection_id: int, timeout: float | None = 10.0) -> None:
        """Posts one control message; keeps to the rate that the host announced, and waits while the socket is full.
        GuestGone when the host is gone, TimeoutError when it would take nothing for `timeout` seconds."""
        if len(message) > MAX_PAYLOAD:
            raise ValueError(f"message of {len(message)} bytes, the limit is {MAX_PAYLOAD}")
        datagram = MESSAGE_HEADER.pack(connection_id, VMBUS_MESSAGE) + message
        poll = select.poll()
        with self._sending:
            with self._state:
                while not self._closing and (wait := self._bucket.take()):
                    if timeout is not None and wait > timeout:
                        raise TimeoutError("the host announced a lower rate")
                    self._state.wait(wait)
            while True:
                if self._closing:
                    raise GuestGone("the attachment is closed")
                try:
                    self._sock.send(datagram, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    return
                except BlockingIOError:
                    poll.register(self._sock, select.POLLOUT)
                    if not poll.poll(None if timeout is None else timeout * 1000):
                        raise TimeoutError("the host does not take messages") from None
                except OSError as error:
                    raise GuestGone(f"the host is gone: {error.strerror}") from None

    def start(
        self,
        on_message: Callable[[bytes], None],
        on_refused: Callable[[int, int], None],
        on_gone: Callable[[str], None],
    ) -> None:
        """Starts the thread that reads: VmbusClient's receive, refused and gone. on_gone comes last, exactly once,
        also after close()."""
        self._thread = Thread(target=self._read, args=(on_message, on_refused, on_gone), name="vmbus-user", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the attachment, waits for the reading thread and closes the descriptors. May be called again."""
        with self._state:
            first = not self._closing
            self._closing = True
            self._state.notify_all()
        if not first:
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the reader and any sender
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join()
        with self._sending:
            self._sock.close()
        for fd in (self.memory_fd, self.doorbell_fd, self.event_page_fd, self.intercepts_fd):
            if fd is not None:
                os.close(fd)

    def _read(
        self,
        on_message: Callable[[bytes], None],
        on_refused: Callable[[int, int], None],
        on_gone: Callable[[str], None],
    ) -> None:
        reason = "the host closed the socket"
        try:
            while datagram := self._receive():
                self._dispatch(datagram, on_message, on_refused)
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                reason = f"the socket to the host failed: {error.strerror}"
        finally:
            on_gone("the attachment is closed" if self._closing else reason)

    def _receive(self) -> bytes:
        """The next whole datagram; empty at the end."""
        while True:
            datagram, _, flags, _ = self._sock.recvmsg(MAX_DATAGRAM)
            if not datagram or not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                return datagram
            self.dropped += 1  # 6.5

    def _dispatch(
        self, datagram: bytes, on_message: Callable[[bytes], None], on_refused: Callable[[int, int], None]
    ) -> None:
        sender, kind = MESSAGE_HEADER.unpack_from(datagram.ljust(MESSAGE_HEADER.size, b"\0"))
        payload = datagram[MESSAGE_HEADER.size :]
        if kind == VMBUS_MESSAGE and sender == MESSAGE_PORT:
            on_message(payload)
        elif kind == POST_STATUS and len(payload) >= PostStatus.BYTES:
            status = PostStatus.decode(payload)
            on_refused(status.connection_id, status.status)
        else:
            self.dropped += 1  # 6.5
