"""The endpoints of vmbus-user one datagram at a time, and docs/vmbus-user.md against what they produce."""

import array
import fcntl
import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from hvcore.errors import GuestGone, HostError, ProtocolError
from hvcore.hypervisor.intercept import INTERCEPT_SIZE
from hvcore.linux.descriptors import receive
from hvcore.vmbus import message as m
from hvcore.vmbus.attach import (
    EVENT_PAGE_BYTES,
    GUEST_SLEEP_WORD,
    GUEST_TO_HOST_FLAGS,
    HOST_SLEEP_WORD,
    HOST_TO_GUEST_FLAGS,
    INTERCEPT_BYTES,
    POST_STATUS,
    Accept,
    Hello,
    PostStatus,
    Refusal,
)
from hvcore.vmbus.server import VmbusServer
from hvcore.vmbus.synic import FLAG_COUNT
from hvcore.vmbus.transport import (
    BATCH,
    MESSAGE_BURST,
    MESSAGE_RATE,
    GuestEndpoint,
    HostEndpoint,
    TokenBucket,
    listen,
    peer_user,
)
from tests.reference.attachment import VM, Shared, memfd, pair
from tests.reference.control import MEMORY_PAGES, ScriptedDevices

HELLO = Hello().encode()
CONTACT = m.InitiateContact(m.Version.V5_3, target_sint=2).encode()


def post(payload, connection=4, kind=1):
    return connection.to_bytes(4, "little") + kind.to_bytes(4, "little") + payload


def open_descriptors():
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


class Host:
    """A host endpoint that is driven by hand, with a bare socket at the other end."""

    def __init__(self, answer=None, attach=True, **options):
        self.shared = Shared()
        self.now = 0.0
        self.posted = []
        self.ended = []
        sock, self.guest = pair()
        self.guest.setblocking(False)
        self.endpoint = HostEndpoint(
            sock,
            lambda: answer or self.shared.attachment,
            lambda payload, connection: self.posted.append((payload, connection)),
            self.ended.append,
            clock=lambda: self.now,
            **options,
        )
        if attach:
            self.says(HELLO)
            datagram, ancillary, _, _ = self.guest.recvmsg(300, 100, socket.MSG_CMSG_CLOEXEC)
            self.accept = Accept.decode(datagram)
            self.descriptors = array.array("i", ancillary[0][2]) if ancillary else []
            for fd in self.descriptors:
                os.close(fd)

    def says(self, *datagrams):
        for datagram in datagrams:
            self.guest.send(datagram)
            self.endpoint.on_readable()

    def answers(self):
        found = []
        while True:
            try:
                found.append(self.guest.recv(300))
            except BlockingIOError:
                return found

    def statuses(self):
        return [PostStatus.decode(answer[8:]) for answer in self.answers() if answer[4:8] == b"\1\0\0\xc0"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.endpoint.close()
        self.guest.close()
        self.shared.close()


def documented():
    """(direction, bytes) of the example in the page."""
    text = (Path(__file__).parents[2] / "docs" / "vmbus-user.md").read_text()
    block = re.search(r"```hexdump\n(.*?)```", text, re.S)[1]
    parts = re.split(r"^(?=[<>])", block, flags=re.M)[1:]
    return [(part[0], bytes.fromhex("".join(part.split("\n")[1:]))) for part in parts]


def test_the_documented_dump_is_what_happens():
    dump = documented()
    assert [direction for direction, _ in dump] == list("><><><")
    with Host(attach=False) as host:
        server = VmbusServer(host.endpoint.send, ScriptedDevices([]), memory_pages=MEMORY_PAGES)
        host.endpoint._on_message = server.receive
        for direction, datagram in dump:
            if direction == ">":
                host.says(datagram)
            else:
                received, ancillary, _, _ = host.guest.recvmsg(300, 100, socket.MSG_CMSG_CLOEXEC)
                assert received == datagram
                for _, _, data in ancillary:
                    for fd in array.array("i", data):
                        os.close(fd)
        assert host.answers() == []
    assert dump[0][1] == HELLO
    assert dump[2][1] == post(CONTACT)


def rows(text, title):
    table = text[text.index(title) :].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_documented_numbers_are_those_of_the_code():
    text = (Path(__file__).parents[2] / "docs" / "vmbus-user.md").read_text()
    places = {
        row[2].split(":")[0]: int(row[0]) for row in rows(text, "4096 bytes, zero at first:") if row[2] != "reserved"
    }
    assert places == {
        "host-to-guest event flags": HOST_TO_GUEST_FLAGS,
        "guest-to-host event flags, likewise": GUEST_TO_HOST_FLAGS,
        "guest sleep word": GUEST_SLEEP_WORD,
        "host sleep word": HOST_SLEEP_WORD,
    }
    assert FLAG_COUNT // 8 == GUEST_TO_HOST_FLAGS
    sizes = [int(row[1]) for row in rows(text, "4096 bytes, zero at first:")]
    assert sum(sizes) == EVENT_PAGE_BYTES
    refusals = re.findall(r"^\| (\d) \| [^|]* \|$", text[text.index("| status | refusal |") :], re.M)
    assert [int(code) for code in refusals] == [code for code in Refusal if code]
    assert f"{MESSAGE_RATE} messages per second, burst {MESSAGE_BURST}" in text
    assert f"0x{POST_STATUS:X}" in text


def test_the_documented_intercept_pages_are_those_of_the_code():
    text = (Path(__file__).parents[2] / "docs" / "vmbus-user.md").read_text()
    assert INTERCEPT_SIZE == INTERCEPT_BYTES
    for title, size in (("16384 bytes:", 16384), ("of the virtual processor:", 4096)):
        end = 0
        for offset, length, *_ in rows(text, title):
            assert int(offset) == end
            end += int(length)
        assert end == size


def test_handshake():
    with Host() as host:
        memory = MEMORY_PAGES * 4096
        assert host.accept == Accept(0, memory, MESSAGE_RATE, MESSAGE_BURST, VM, 1, 4096, 2, 0)
        assert (len(host.descriptors), host.endpoint.attached) == (3, True)


@pytest.mark.parametrize(("hello", "version", "descriptors"), [((1, 1), 1, 3), ((1, 2), 2, 4), ((2, 9), 2, 4)])
def test_intercept_pages_are_for_guests_that_speak_version_2(hello, version, descriptors):
    with Host(attach=False) as host:
        pages = memfd(INTERCEPT_BYTES)
        host.shared.attachment = replace(host.shared.attachment, intercepts_fd=pages)
        host.says(Hello(*hello).encode())
        datagram, received, _ = receive(host.guest, 300, 5)
        accept = Accept.decode(datagram)
        assert (accept.version, accept.intercept_bytes) == (version, INTERCEPT_BYTES if version == 2 else 0)
        assert len(received) == descriptors
        if version == 2:
            assert os.fstat(received[3]).st_ino == os.fstat(pages).st_ino
        for fd in [pages, *received]:
            os.close(fd)


@pytest.mark.parametrize(
    ("hello", "refusal"),
    [
        (Hello(3, 9).encode(), Refusal.VERSION),
        (Hello(0, 0).encode(), Refusal.VERSION),
        (Hello(2, 1).encode(), Refusal.MALFORMED),
        (HELLO[:-1], Refusal.MALFORMED),
        (HELLO + b"\0", Refusal.MALFORMED),
        (b"X" + HELLO[1:], Refusal.MALFORMED),
        (post(CONTACT), Refusal.MALFORMED),
    ],
)
def test_bad_hello_is_refused(hello, refusal):
    with Host(attach=False) as host:
        host.says(hello)
        assert Accept.decode(host.guest.recv(300)).status == refusal
        assert host.guest.recv(300) == b""
        assert host.ended == [f"a guest was refused: {refusal.name}"]
        assert not host.endpoint.attached and host.endpoint.closed


@pytest.mark.parametrize(("hello", "version"), [((1, 7), 2), ((0, 1), 1)])
def test_the_newest_version_that_both_know(hello, version):
    with Host(attach=False) as host:
        host.says(Hello(*hello).encode())
        assert Accept.decode(host.guest.recv(300)).version == version


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"answer": Refusal.BUSY}, Refusal.BUSY),
        ({"answer": Refusal.NOT_RUNNING}, Refusal.NOT_RUNNING),
        ({"allowed_users": frozenset({os.getuid() + 1})}, Refusal.NOT_PERMITTED),
    ],
)
def test_refusals(options, refusal):
    with Host(**options) as host:
        assert (host.accept.status, len(host.descriptors)) == (refusal, 0)
        assert host.endpoint.closed


def test_an_allowed_user_attaches():
    with Host(allowed_users=frozenset({os.getuid()})) as host:
        assert host.endpoint.attached


@pytest.mark.parametrize("connection", [1, 4])
@pytest.mark.parametrize("payload", [b"", b"x", bytes(240)])
def test_posts_are_taken(connection, payload):
    with Host() as host:
        host.says(post(payload, connection))
        assert (host.posted, host.answers()) == ([(payload, connection)], [])


@pytest.mark.parametrize(
    ("datagram", "connection", "status"),
    [
        (b"\1", 0, 0x03),
        (bytes(7), 0, 0x03),
        (post(b"", 1 << 24 | 1), 1 << 24 | 1, 0x03),  # CM-17
        (post(bytes(241)), 4, 0x05),
        (post(bytes(9999)), 4, 0x05),
        (post(b"", 4, 2), 4, 0x05),
        (post(b"", 4, POST_STATUS), 4, 0x05),
        (post(b"", 0), 0, 0x12),
        (post(b"", 0x2005), 0x2005, 0x12),
    ],
)
def test_post_statuses(datagram, connection, status):  # 5.4
    with Host() as host:
        host.says(post(b""), datagram)
        assert host.statuses() == [PostStatus(connection, status, 2)]
        assert len(host.posted) == 1
        assert host.endpoint.refused == 1


def test_messages_to_the_guest():
    with Host() as host:
        host.endpoint.send(b"payload")
        assert host.answers() == [post(b"payload", 1)]


def test_nothing_is_sent_before_the_handshake():
    with Host(attach=False) as host:
        host.endpoint.send(b"payload")
        assert host.answers() == []


def test_the_rate_is_limited():  # VA-7
    with Host(rate=10, burst=2) as host:
        host.says(*[post(b"")] * 5)
        assert [status.status for status in host.statuses()] == [0x13]
        assert len(host.posted) == 4  # twice the burst
        assert (host.endpoint.wants_read, host.endpoint.resume_after()) == (False, 0.1)
        host.says(post(b""))  # waits in the socket
        host.now = 0.1
        assert (host.endpoint.wants_read, host.endpoint.resume_after()) == (True, None)
        host.endpoint.on_readable()
        assert (len(host.posted), len(host.statuses())) == (5, 0)


def test_token_bucket():
    now = [0.0]
    bucket = TokenBucket(4, 2, lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [0, 0, 0.25]
    now[0] = 0.125
    assert bucket.take() == 0.125
    now[0] = 0.25
    assert bucket.take() == 0
    now[0] = 99.0
    assert [bucket.take() for _ in range(3)] == [0, 0, 0.25]


def test_a_guest_that_does_not_read_is_not_read():  # HC-1: bounds what it can make the host keep
    with Host() as host:
        sent = 0
        while host.endpoint.wants_read:
            host.endpoint.send(sent.to_bytes(2, "little").ljust(240, b"\0"))
            sent += 1
        assert host.endpoint.wants_write
        host.says(post(b""))
        assert host.posted == []
        received = host.answers()
        host.endpoint.send(sent.to_bytes(2, "little"))  # there is room, but others wait longer (CM-6)
        host.endpoint.on_writable()
        assert (host.endpoint.wants_write, host.endpoint.wants_read) == (False, True)
        received += host.answers()
        assert [int.from_bytes(datagram[8:10], "little") for datagram in received] == list(range(sent + 1))
        host.endpoint.on_readable()
        assert len(host.posted) == 1


def test_one_guest_does_not_keep_the_loop():  # VA-8
    with Host() as host:
        for _ in range(BATCH + 1):
            host.guest.send(post(b""))
        host.endpoint.on_readable()
        assert len(host.posted) == BATCH


def test_end_of_file():
    with Host() as host:
        host.guest.close()
        host.endpoint.on_readable()
        assert host.ended == ["the guest closed its socket"]
        host.endpoint.on_hangup()
        assert (len(host.ended), host.endpoint.closed) == (1, True)


def test_hang_up():
    with Host() as host:
        host.endpoint.on_hangup()
        host.endpoint.on_hangup()
        assert len(host.ended) == 1


def test_sending_never_calls_back():
    with Host() as host:
        host.guest.close()
        host.endpoint.send(b"x")
        host.endpoint.send(b"y")
        assert (host.ended, host.endpoint.wants_read) == ([], True)
        host.endpoint.on_readable()
        assert len(host.ended) == 1


@pytest.mark.parametrize("attached", [False, True])
def test_descriptors_of_a_guest_never_arrive(attached):
    with Host(attach=attached) as host:
        before = open_descriptors()
        socket.send_fds(host.guest, [post(b"") if attached else HELLO], [0, 1, 2])
        host.endpoint.on_readable()
        assert host.ended == ["the guest sent descriptors"]
        assert len(open_descriptors()) == len(before) - 1  # the socket is closed, nothing came


def test_closing_is_quiet():
    with Host() as host:
        host.endpoint.close()
        host.endpoint.close()
        host.endpoint.send(b"x")
        assert (host.ended, host.guest.recv(10)) == ([], b"")


def test_a_named_socket_is_private_and_reaped(tmp_path):
    path = str(tmp_path / "vm")
    with listen(path) as first:
        assert Path(path).stat().st_mode & 0o777 == 0o600
        with pytest.raises(OSError, match="in use"):
            listen(path)
        first.accept()[0].close()  # the probe of the second
    with listen(path) as second, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
        guest.connect(path)
        with second.accept()[0] as accepted:
            assert peer_user(accepted) == os.getuid()


def test_another_file_is_not_reaped(tmp_path):
    path = tmp_path / "vm"
    path.write_text("mine")
    before = open_descriptors()
    with pytest.raises(OSError, match="in use"):
        listen(str(path))
    assert (path.read_text(), open_descriptors()) == ("mine", before)


# The guest's end


class FakeHost:
    """Answers the handshake with whatever it is told."""

    def __init__(self):
        self.sock, self.guest = pair()
        self.shared = Shared(4)
        self.accept = Accept(0, 4 * 4096, 1000, 1000, VM, 1, 4096)

    def fds(self):
        return [self.shared.memory, self.shared.doorbell, self.shared.page]

    def attach(self, datagram=None, fds=None):
        fds = self.fds() if fds is None else fds
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([self.accept.encode() if datagram is None else datagram], ancillary)
        return GuestEndpoint.attach(self.guest, timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        self.guest.close()
        self.shared.close()


def test_guest_attaches():
    with FakeHost() as host:
        before = len(open_descriptors())
        endpoint = host.attach()
        assert (endpoint.vm_id, endpoint.memory_bytes, host.sock.recv(100)) == (VM, 4 * 4096, HELLO)
        assert not os.get_inheritable(endpoint.doorbell_fd)
        endpoint.close()
        endpoint.close()
        assert len(open_descriptors()) == before - 1


def with_intercepts(size=INTERCEPT_BYTES):
    return Accept(0, 4 * 4096, 1, 1, VM, 1, 4096, 2, size).encode()


BAD = {
    "short": (lambda host: {"datagram": host.accept.encode()[:-1]}, "63 bytes"),
    "magic": (lambda host: {"datagram": bytes(64)}, "not an ACCEPT"),
    "long": (lambda host: {"datagram": host.accept.encode() + bytes(300)}, "truncated"),
    "version": (lambda host: {"datagram": Accept(0, 4 * 4096, 1, 1, VM, 1, 4096, 3).encode()}, "layout version 3"),
    "no descriptors": (lambda host: {"fds": []}, "0 descriptors"),
    "two descriptors": (lambda host: {"fds": host.fds()[:2]}, "2 descriptors"),
    "four descriptors": (lambda host: {"fds": [*host.fds(), 0]}, "4 descriptors"),
    "five descriptors": (lambda host: {"fds": [*host.fds(), 0, 1]}, "5 descriptors"),
    "six descriptors": (lambda host: {"fds": [*host.fds(), 0, 1, 2]}, "truncated"),
    "no intercept pages": (lambda host: {"datagram": with_intercepts()}, "3 descriptors, not 4"),
    "other intercept pages": (
        lambda host: {"datagram": with_intercepts(4096), "fds": [*host.fds(), host.shared.page]},
        "intercept pages of 4096 bytes",
    ),
    "intercept pages are smaller": (
        lambda host: {"datagram": with_intercepts(), "fds": [*host.fds(), host.shared.page]},
        "announced are 16384",
    ),
    "memory is no memfd": (lambda host: {"fds": [host.shared.doorbell, *host.fds()[1:]]}, "not a memfd"),
    "memory is smaller": (lambda host: {"fds": [host.shared.page, *host.fds()[1:]]}, "announced are 16384"),
    "page is larger": (lambda host: {"fds": [*host.fds()[:2], host.shared.memory]}, "announced are 4096"),
    "doorbell is a file": (lambda host: {"fds": [host.shared.memory, host.shared.page, host.shared.page]}, "eventfd"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_accept_is_refused_and_leaks_nothing(name):
    arguments, match = BAD[name]
    with FakeHost() as host:
        before = len(open_descriptors())
        with pytest.raises(ProtocolError, match=match):
            host.attach(**arguments(host))
        assert len(open_descriptors()) == before - 1  # its own socket


def test_unsealed_memory_is_refused():
    with FakeHost() as host:
        fd = memfd(4 * 4096, fcntl.F_SEAL_GROW)
        before = len(open_descriptors())
        with pytest.raises(ProtocolError, match="sealed"):
            host.attach(fds=[fd, *host.fds()[1:]])
        os.close(fd)
        assert len(open_descriptors()) == before - 2


@pytest.mark.parametrize(("status", "match"), [(4, "BUSY"), (77, "77")])
def test_a_refusal_is_told(status, match):
    with FakeHost() as host, pytest.raises(HostError, match=match):
        host.attach(Accept(status).encode(), [])


def test_a_host_that_hangs_up():
    with FakeHost() as host:
        host.sock.close()
        with pytest.raises(GuestGone):
            GuestEndpoint.attach(host.guest)


def test_a_silent_host():
    with FakeHost() as host, pytest.raises(TimeoutError):
        GuestEndpoint.attach(host.guest, timeout=0.001)


class Reading:
    """An attached guest whose reader writes everything down; `read()` ends it."""

    def __init__(self, host, start=True):
        self.endpoint = host.attach()
        host.sock.recv(100)
        self.seen = []
        if start:
            self.endpoint.start(
                lambda payload: self.seen.append(payload),
                lambda connection, status: self.seen.append((connection, status)),
                lambda reason: self.seen.append(reason),
            )


def test_what_the_guest_reads():
    with FakeHost() as host:
        guest = Reading(host)
        status = PostStatus(9, 0x12, 1).encode()
        for datagram in [
            post(b"one", 1), post(b"two", 2), post(b"three", 1, 7), b"short", post(bytes(300), 1),
            post(status, 0, POST_STATUS), post(status[:-1], 0, POST_STATUS), post(b"", 1),
        ]:  # fmt: skip
            host.sock.send(datagram)
        socket.send_fds(host.sock, [post(b"fds", 1)], [0])
        host.sock.close()
        guest.endpoint._thread.join()
        assert guest.seen == [b"one", (9, 0x12), b"", "the host closed the socket"]
        assert guest.endpoint.dropped == 6
        guest.endpoint.close()
        assert len(guest.seen) == 4


def test_closing_ends_the_reader():
    with FakeHost() as host:
        guest = Reading(host)
        guest.endpoint.close()
        assert guest.seen == ["the attachment is closed"]
        assert not guest.endpoint._thread.is_alive()
        with pytest.raises(GuestGone):
            guest.endpoint.send(b"", 4)


def test_guest_sends():
    with FakeHost() as host:
        guest = Reading(host)
        guest.endpoint.send(b"payload", 4)
        assert host.sock.recv(300) == post(b"payload")
        with pytest.raises(ValueError, match="241"):
            guest.endpoint.send(bytes(241), 4)
        guest.endpoint.close()


def test_sending_to_a_host_that_does_not_read_ends():  # VA-26
    with FakeHost() as host:
        guest = Reading(host)
        with pytest.raises(TimeoutError):
            while True:
                guest.endpoint.send(bytes(240), 4, timeout=0)
        guest.endpoint.close()


def test_sending_to_a_host_that_is_gone():
    with FakeHost() as host:
        guest = Reading(host)
        host.sock.close()
        with pytest.raises(GuestGone):
            guest.endpoint.send(b"", 4)
        guest.endpoint.close()


def test_a_rate_too_low_to_wait_for():  # VA-26
    with FakeHost() as host:
        host.accept = Accept(0, 4 * 4096, 1, 1, VM, 1, 4096)
        guest = Reading(host)
        guest.endpoint.send(b"", 4)
        with pytest.raises(TimeoutError, match="rate"):
            guest.endpoint.send(b"", 4, timeout=0)
        guest.endpoint.close()


def test_the_guest_keeps_to_the_rate():
    with FakeHost() as host:
        host.accept = Accept(0, 4 * 4096, 1 << 31, 2, VM, 1, 4096)
        guest = Reading(host)
        for number in range(9):  # beyond the burst; waits a moment that this rate makes short
            guest.endpoint.send(bytes([number]), 4)
        assert [host.sock.recv(300)[8] for _ in range(9)] == list(range(9))
        guest.endpoint.close()
