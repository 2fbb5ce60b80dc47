"""JSON-RPC 2.0 over a Unix stream socket, one object per line; a reply may carry descriptors (SCM_RIGHTS).

A descriptor travels with the first byte of its reply's line. The version of the methods is what "version" answers.
"""

import contextlib
import json
import os
import socket
from collections import deque
from typing import Any

from hvcore.errors import HostError
from hvcore.linux import descriptors

VERSION = 1
LINE_MAX = 1 << 20
QUEUE_MAX = 64 << 20
FDS_MAX = 4

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
FAILED = -32000  # the work failed: "message" is for people, "data" has the exception's kind


class LineReader:
    """Cuts a stream into lines. ValueError when a line is longer than LINE_MAX."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > LINE_MAX:
            raise ValueError(f"a line is longer than {LINE_MAX} bytes")
        return [bytes(line) for line in lines]


class Connection:
    """The host's end of one control connection: never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.lines = LineReader()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued = 0

    def receive(self) -> list[bytes] | None:
        """The lines that arrived; None at the end of the stream, or when the peer breaks the framing."""
        try:
            data = self.sock.recv(65536)
            return self.lines.feed(data) if data else None
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            return None

    @property
    def wants_write(self) -> bool:
        return bool(self._queue)

    def reply(self, value: dict[str, Any], fds: list[int] | None = None) -> None:
        """Queues a reply; the descriptors are this connection's from now on and are closed when they are sent."""
        line = json.dumps(value).encode() + b"\n"
        self._queue.append((line, fds or []))
        self._queued += len(line)

    def flush(self) -> bool:
        """Sends what the socket takes; False when the peer is gone or lets too much pile up."""
        while self._queue:
            line, fds = self._queue[0]
            try:
                sent = descriptors.send(self.sock, line, fds)
            except BlockingIOError:
                return self._queued <= QUEUE_MAX
            except OSError:
                return False
            for fd in fds:
                os.close(fd)
            self._queued -= sent
            if sent == len(line):
                self._queue.popleft()
            else:
                self._queue[0] = line[sent:], []
        return True

    def close(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self.sock.close()


class Caller:
    """The client's end: one call at a time, blocking. HostError when the host refuses or is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = LineReader()
        self._ready: deque[bytes] = deque()
        self._descriptors: list[int] = []
        self._number = 0

    def call(self, method: str, **params: Any) -> Any:
        return self.call_with_descriptors(method, **params)[0]

    def call_with_descriptors(self, method: str, **params: Any) -> tuple[Any, list[int]]:
        """The result, and the descriptors that came with it, which are the caller's."""
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
            while True:
                reply = json.loads(self._line())
                if not isinstance(reply, dict) or not isinstance(reply.get("error", {}), dict):
                    raise ValueError("what answers is no host")
                if reply.get("id") == self._number:  # else the answer to a call that was interrupted
                    break
                self._drop_descriptors()
        except (OSError, ValueError) as error:
            self._drop_descriptors()
            raise HostError(f"the host is gone: {error}") from None
        fds, self._descriptors = self._descriptors, []
        if "error" in reply:
            for fd in fds:
                os.close(fd)
            raise HostError(str(reply["error"].get("message", "the host refused")))
        return reply.get("result"), fds

    def _line(self) -> bytes:
        while not self._ready:
            data, fds, _ = descriptors.receive(self._sock, 65536, FDS_MAX)
            self._descriptors += fds
            if not data:
                raise ConnectionResetError("it closed the control socket")
            self._ready.extend(self._lines.feed(data))
        return self._ready.popleft()

    def _drop_descriptors(self) -> None:
        for fd in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._descriptors = []

    def close(self) -> None:
        self._drop_descriptors()
        self._sock.close()
