"""JSON-RPC lines on a stream: cut, queued, matched, with and without descriptors."""

import json
import os
import socket
from collections.abc import Iterator

import pytest

from hvcore.errors import HostError
from hvcore.partition.rpc import LINE_MAX, Caller, Connection, LineReader


def test_lines_in_pieces() -> None:
    reader = LineReader()
    assert reader.feed(b"") == []
    assert reader.feed(b"one\ntw") == [b"one"]
    assert reader.feed(b"o\n\nthree") == [b"two", b""]
    assert [reader.feed(bytes([byte])) for byte in b"\n4\n"] == [[b"three"], [], [b"4"]]


def test_line_that_is_too_long() -> None:
    reader = LineReader()
    assert reader.feed(b"x" * LINE_MAX) == []
    with pytest.raises(ValueError, match="longer than"):
        reader.feed(b"x")


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    with theirs:
        theirs.settimeout(10)
        yield connection, theirs
        connection.close()


def test_descriptors_travel_with_their_reply(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    reading, writing = os.pipe()
    connection.reply({"id": 1})
    connection.reply({"id": 2}, [writing])
    assert connection.wants_write and connection.flush() and not connection.wants_write
    with pytest.raises(OSError):
        os.fstat(writing)  # it was the connection's, and is sent
    data = b""
    received: list[int] = []
    while data.count(b"\n") < 2:
        part, fds, _, _ = socket.recv_fds(peer, 4096, 4)
        data += part
        received += fds
    (fd,) = received
    os.write(fd, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(fd)
    os.close(reading)


def test_unsent_descriptors_are_closed(pair: tuple[Connection, socket.socket]) -> None:
    connection, _ = pair
    reading, writing = os.pipe()
    connection.reply({"id": 1}, [writing])
    connection.close()
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_peer_that_does_not_read(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    for number in range(100):
        connection.reply({"id": number, "text": "x" * 10000})
    assert connection.flush() and connection.wants_write
    seen = LineReader()
    lines: list[bytes] = []
    while len(lines) < 100:
        lines += seen.feed(peer.recv(1 << 16))
        assert connection.flush()
    assert [json.loads(line)["id"] for line in lines] == list(range(100))


def test_peer_that_is_gone(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    peer.close()
    connection.reply({})
    assert not connection.flush()
    assert connection.receive() is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "the host is gone"),
        (b"text\n", "the host is gone"),
        (b"[1]\n", "no host"),
        (b'{"id": 1, "error": "text"}\n', "no host"),
        (b'{"id": 1, "error": {}}\n', "refused"),
        (b'{"id": 1, "error": {"message": "because"}}\n', "because"),
        (b"x" * (LINE_MAX + 70000), "longer than"),
    ],
)
def test_answers_of_a_strange_host(answer: bytes, says: str) -> None:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    with theirs:
        theirs.setblocking(False)
        theirs.send(answer)
        theirs.shutdown(socket.SHUT_WR)
        caller = Caller(ours)
        with pytest.raises(HostError, match=says):
            caller.call("version")
        caller.close()


def test_late_answers_are_passed_over() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with theirs:
        socket.send_fds(theirs, [b'{"id": 0, "result": "late"}\n'], [writing])
        os.close(writing)
        theirs.sendall(b'{"id": 1, "result": 5}\n')
        caller = Caller(ours)
        assert caller.call_with_descriptors("version") == (5, [])
        assert os.read(reading, 1) == b""  # what came with the late one is closed
        caller.close()
    os.close(reading)
