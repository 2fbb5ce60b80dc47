"""A child partition in a process of its own: `vm.run("package.module:function")` and what it starts."""

import contextlib
import importlib
import os
import pickle
import select
import socket
import sys
import threading
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from hvcore.errors import HostError
from hvcore.partition.process import end, kill, spawn

END_PATIENCE = 5.0


class Child:
    """The process. wait() gives its function's result or raises its exception; close() kills it if it still runs."""

    def __init__(
        self,
        attachment: int,
        disks: list[dict[str, Any]],
        target: str,
        arguments: tuple[Any, ...],
        search: Iterable[str],
    ) -> None:
        if target.count(":") != 1 or not all(target.split(":")):
            raise ValueError(f'{target!r} does not name a function as "package.module:function"')
        order = pickle.dumps((target, arguments, disks))
        self.closed = False
        ours, theirs = socket.socketpair()
        self._pipe = ours
        try:
            with theirs:
                fds = [attachment, theirs.fileno()]
                self.process = spawn("hvcore.partition.child", map(str, fds), fds, search=[p for p in search if p])
            ours.sendall(len(order).to_bytes(8, "little") + order)
        except BaseException:
            ours.close()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout: float | None = None) -> Any:
        """The function's result; its exception, with the child's traceback as a note; HostError when there is none."""
        if self.closed:
            raise HostError("the child is closed")
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        answer = bytearray()
        while True:
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise TimeoutError(f"the child did not end within {timeout} seconds")
            try:
                part = self._pipe.recv(1 << 20)
            except ConnectionError:
                part = b""
            if not part:
                break
            answer += part
        status = end(self.process, END_PATIENCE)
        self.close()
        if len(answer) < 8 or len(answer) - 8 != int.from_bytes(answer[:8], "little"):
            raise HostError(f"the child ended without a result ({_ending(status)})")
        ok, value = pickle.loads(answer[8:])
        if not ok:
            raise value
        return value

    def close(self) -> None:
        """Kills the process if it still runs. Idempotent."""
        if not self.closed:
            self.closed = True
            self._pipe.close()
            kill(self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _ending(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _read(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise SystemExit(1)
        data += part
    return bytes(data)


def _outcome(ok: bool, value: Any) -> bytes:
    try:
        answer = pickle.dumps((ok, value))
        pickle.loads(answer)  # an exception may pickle and not come back
    except Exception as error:
        answer = pickle.dumps(
            (False, HostError(f"the child's {'result' if ok else 'exception'} cannot travel: {error}"))
        )
    return len(answer).to_bytes(8, "little") + answer


def _end_with(pipe: int) -> None:
    """Ends this process when the other end of the pipe is closed: whoever started it is gone, whatever it does now."""
    poll = select.poll()
    poll.register(pipe, 0)  # hang-ups are reported unasked
    if any(event & select.POLLHUP for _, event in poll.poll()):
        os._exit(1)


def main(attachment: int, pipe: int) -> None:
    """In the child: attach, call, report."""
    from hvcore.partition.guest import Guest

    for fd in (attachment, pipe):
        os.set_inheritable(fd, False)
    with socket.socket(fileno=pipe) as report:
        order = _read(report, int.from_bytes(_read(report, 8), "little"))
        threading.Thread(target=_end_with, args=(pipe,), name="hvcore-end", daemon=True).start()
        try:
            target, arguments, disks = pickle.loads(order)
            module, function = target.split(":")
            call = getattr(importlib.import_module(module), function)
            with Guest(socket.socket(fileno=attachment), disks) as guest:
                outcome = _outcome(True, call(guest, *arguments))
        except BaseException as error:
            error.add_note("in the child:\n" + traceback.format_exc().rstrip())
            outcome = _outcome(False, error)
        with contextlib.suppress(OSError):
            report.sendall(outcome)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
