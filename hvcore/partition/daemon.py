"""A host that outlives its clients, behind a named control socket."""

import contextlib
import fcntl
import os
import signal
import socket
import stat
from pathlib import Path

from hvcore.errors import HostError
from hvcore.partition.host import HostProcess, stop_on_signals
from hvcore.partition.loop import READ
from hvcore.vmbus.transport import peer_user


def default_socket() -> Path:
    """Where the control socket is unless named: $XDG_RUNTIME_DIR/hvcore/control, or a private folder in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime, "hvcore") if runtime else Path(f"/tmp/hvcore-{os.getuid()}")
    return folder / "control"


class _Listener:
    """The named socket as a source of the loop; only processes of the same user and root are let in."""

    def __init__(self, host: HostProcess, sock: socket.socket) -> None:
        self._host = host
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def interest(self) -> int:
        return READ

    def ready(self, events: int) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._sock.accept()
            if peer_user(client) in (os.getuid(), 0):
                self._host.add_control(client)
            else:
                client.close()

    def deadline(self) -> float | None:
        return None


def listen(path: Path) -> tuple[socket.socket, int]:
    """The listening socket, mode 0600, and a lock that is held while it lives.

    A socket that a killed host left behind is replaced; HostError when a living one has it. The lock, not the socket,
    tells them apart: who holds it may remove the name.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise HostError(f"{path.parent} belongs to another user")
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostError(f"a host serves {path} already") from None
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise HostError(f"{path} is there and is not a socket")
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
            sock.listen(16)
        except OSError as error:
            sock.close()
            raise HostError(f"cannot listen on {path}: {error.strerror or error}") from None
        finally:
            os.umask(before)
        sock.setblocking(False)
        return sock, lock
    except BaseException:
        os.close(lock)
        raise


def serve(path: str | os.PathLike[str] | None = None, *, allow_python_disks: bool = False) -> None:
    """Serves until SIGTERM, Ctrl-C or a client's shutdown; then nothing is left, not even the socket's name.

    allow_python_disks: clients may name classes of theirs as disks, whose code then runs in this process.
    """
    place = Path(path) if path is not None else default_socket()
    sock, lock = listen(place)
    host = HostProcess(allow_python_disks=allow_python_disks)
    stop_on_signals(host)
    signal.signal(signal.SIGINT, lambda *_: host.loop.stop())
    listener = _Listener(host, sock)
    host.loop.add(listener)
    try:
        host.loop.run()
    finally:
        host.loop.remove(listener)
        host.close()
        sock.close()
        with contextlib.suppress(FileNotFoundError):
            place.unlink()
        Path(f"{place}.lock").unlink()
        os.close(lock)
