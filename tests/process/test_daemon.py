"""A host behind a named control socket: who may have the name, who may say what, and what is left."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.errors import HostError
from tests.conftest import children, ended
from tests.reference.vms import MIB, PATIENCE, gone, raw, until

PROGRAM = "import sys; from hvcore.partition.daemon import serve; serve(sys.argv[1])"
VERSION = b'{"jsonrpc":"2.0","id":"v","method":"version"}\n'


def start(path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def daemon(path: Path) -> Iterator["subprocess.Popen[str]"]:
    with start(path) as process:
        try:
            until(lambda: answers(path), "the daemon serves")
            yield process
        finally:
            process.kill()


def answers(path: Path) -> bool:
    try:
        hvcore.Host.connect(path).close()
    except HostError:
        return False
    return True


@pytest.fixture(scope="module")
def served(scratch: Path) -> Iterator[Path]:
    folder = scratch.parent / "daemon"  # short: a socket's path has at most 107 bytes
    with daemon(folder / "control") as process:
        yield folder / "control"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert list(folder.iterdir()) == []
    folder.rmdir()


@pytest.fixture
def place(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = scratch.parent / "place"
    folder.mkdir()
    yield folder / "control"
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_only_the_user_may_reach_it(served: Path) -> None:
    found = served.lstat()
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(served.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(f"{served}.lock").stat().st_mode) == 0o600


def test_second_server_is_refused(served: Path) -> None:
    with start(served) as second:
        _, text = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1 and text.endswith(f"HostError: a host serves {served} already\n")
    assert answers(served)


def test_what_is_no_socket_stays(place: Path) -> None:
    place.write_text("mine")
    with start(place) as process:
        _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and f"{place} is there and is not a socket" in text
    assert place.read_text() == "mine"
    place.unlink()
    Path(f"{place}.lock").unlink()


def test_no_host(place: Path) -> None:
    with pytest.raises(HostError, match="no host answers at"):
        hvcore.Host.connect(place)


def test_a_killed_servers_socket_is_replaced(place: Path, tmp_path: Path) -> None:
    with daemon(place) as first:
        client = hvcore.Host.connect(place)
        client.create_vm("lost", "16M", [raw(tmp_path / "disk", path="emulated")]).start()
        worker = client.vm("lost").describe()["worker"]
        first.kill()
        first.wait()
        assert gone([worker])
        with pytest.raises(HostError, match="the host is gone"):
            client.list()
        client.close()
    assert place.exists() and not answers(place)
    with daemon(place) as second:
        assert stat.S_IMODE(place.lstat().st_mode) == 0o600
        with hvcore.Host.connect(place) as host:
            assert (host.pid, host.list()) == (second.pid, [])
            host.call("shutdown")
        assert second.wait(PATIENCE) == 0


CLASS = hvcore.DiskConfig("tests.reference.disks:Memory", format="python", options={"size": MIB})


def test_a_shared_host_runs_no_code_of_a_client(served: Path) -> None:
    with hvcore.Host.connect(served) as host:
        with pytest.raises(HostError, match=r"runs no Python disks: .* --allow-python-disks"):
            host.create_vm("class", "16M", [CLASS])
        assert host.list() == []


def test_a_shared_host_that_was_told_to_runs_python_disks(place: Path) -> None:
    command = [sys.executable, "-m", "hvcore", "serve", "--socket", str(place), "--allow-python-disks"]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: answers(place), "the daemon serves")
            with hvcore.Host.connect(place) as host:
                vm = host.create_vm("class", "16M", [CLASS])
                vm.start()
                with vm.attach() as guest:
                    guest.disks[0].write(512, b"kept" * 128)
                    assert guest.disks[0].read(512, 512) == b"kept" * 128
                with pytest.raises(HostError, match="search is a list of folders, for a private host"):
                    host.call(
                        "create",
                        config={
                            "name": "x",
                            "memory": MIB,
                            "disks": [{"image": CLASS.image, "format": "python", "options": {"size": MIB}}],
                        },
                        search=["/"],
                    )
                host.call("shutdown")
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_vms_outlive_clients(served: Path, tmp_path: Path) -> None:
    with hvcore.Host.connect(served) as host:
        vm = host.create_vm("long", "16M", [raw(tmp_path / "disk", path="emulated")])
        vm.start()
        with vm.attach() as guest:
            guest.disks[0].write(0, b"kept" * 128)
    with hvcore.Host.connect(served) as host, hvcore.Host.connect(served) as other:
        vm = host.vm("long")
        assert vm.describe()["state"] == "running" and [found["name"] for found in other.list()] == ["long"]
        with vm.attach() as guest:
            assert guest.disks[0].read(0, 512) == b"kept" * 128
            with pytest.raises(HostError, match="has a guest already"):
                other.vm("long").attach()
        assert other.vm("long").run("tests.reference.children:add", 1, 2).wait(PATIENCE)["sum"] == 3
        with pytest.raises(HostError, match="there is a VM 'long' already"):
            other.create_vm("long")
        other.vm("long").delete()
        assert host.list() == []
        with pytest.raises(HostError, match="there is no VM 'long'"):
            vm.start()


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM", "SIGINT"])
def test_the_end_leaves_nothing(place: Path, tmp_path: Path, how: str) -> None:
    with daemon(place) as process:
        with hvcore.Host.connect(place) as host:
            vm = host.create_vm("one", "16M", [raw(tmp_path / "disk", path="emulated")])
            vm.start()
            worker = vm.describe()["worker"]
            with vm.attach() as guest:
                if how == "shutdown":
                    host.call("shutdown")
                else:
                    process.send_signal(getattr(signal, how))
                assert process.wait(PATIENCE) == 0
                assert ended(worker, PATIENCE)
                with pytest.raises(hvcore.Error):
                    guest.disks[0].read(0, 512)
        assert process.stderr is not None and process.stderr.read() == ""


HOSTILE = [
    (b"\n", -32700),
    (b"{\n", -32700),
    (b"\xff\xfe\x00\n", -32700),
    (b'{"jsonrpc":"2.0","method":\n', -32700),
    (b"[" * 5000 + b"\n", -32700),
    (b'{"a":' * 5000 + b"\n", -32700),
    (b"[]\n", -32600),
    (b"null\n", -32600),
    (b"17\n", -32600),
    (b'{"jsonrpc":"2.0","id":1}\n', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":7}\n', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"_vm","params":{}}\n', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"__class__"}\n', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"version","params":[1]}\n', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"version","params":{"self":1}}\n', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"start"}\n', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"attach","params":{"vm":"x","descriptors":[0]}}\n', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"start","params":{"vm":{"a":1}}}\n', -32000),
    (b'{"jsonrpc":"2.0","id":1,"method":"start","params":{"vm":null}}\n', -32000),
    (b'{"jsonrpc":"2.0","id":1,"method":"events","params":{"after":"x"}}\n', -32000),
    (b'{"jsonrpc":"2.0","id":1,"method":"create","params":{"config":null}}\n', -32000),
    (b'{"jsonrpc":"2.0","id":1,"method":"create","params":{"config":{"name":"a","memory":"1M","disks":7}}}\n', -32000),
]


@pytest.mark.parametrize(("line", "code"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_lines_are_answered(served: Path, line: bytes, code: int) -> None:
    with connect(served) as sock, sock.makefile("rb") as answer:
        sock.sendall(line + VERSION)
        assert json.loads(answer.readline())["error"]["code"] == code
        assert json.loads(answer.readline())["result"]["protocol"] == 1


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
        sock.settimeout(PATIENCE)
    except BaseException:
        sock.close()
        raise
    return sock


def config(**changes: Any) -> dict[str, Any]:
    return {"name": "odd", "memory": 16 * MIB, "disks": []} | changes


@pytest.mark.parametrize(
    "params",
    [
        config(name=""),
        config(name="../x"),
        config(name="x" * 65),
        config(name=7),
        config(name=["a"]),
        config(memory=True),
        config(memory=-4096),
        config(memory=0),
        config(memory=1 << 70),
        config(memory=1e9),
        config(memory="lots"),
        config(memory=None),
        config(disks=[7]),
        config(disks=["/dev/null"]),
        config(disks=[{}]),
        config(disks=[{"image": "/nowhere"}]),
        config(disks=[{"image": "\0"}]),
        config(disks=[{"image": ["x"]}]),
        config(disks=[{"image": "\ud800"}]),
        config(disks=[{"image": "/dev/zero", "format": "raw"}]),
        config(disks=[{"image": "x" * 5000, "format": "raw"}]),
        config(disks=[{"image": "x", "path": "trapdoor"}]),
        config(disks=[{"image": "x", "path": ["emulated"]}]),
        config(disks=[{"image": "x", "format": {}}]),
        config(disks=[{"image": "x", "format": 7}]),
        config(disks=[{"image": "x", "sector_size": "512"}]),
        config(disks=[{"image": "x", "sector_size": []}]),
        config(disks=[{"image": "x", "read_only": 1}]),
        config(disks=[{"image": "x", "more": 1}]),
        config(disks=[{"image": "x", "path": "emulated"}] * 5),
        config(disks=[{"image": "x"}] * 65),
        config(disks={"image": "x"}),
        config(disks="x"),
        {},
        [],
        "x",
    ],
)
def test_hostile_configurations_are_refused(served: Path, params: Any) -> None:
    with connect(served) as sock, sock.makefile("rb") as answer:
        line = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "create", "params": {"config": params}}).encode()
        sock.sendall(line + b"\n" + VERSION)
        found = json.loads(answer.readline())
        assert found["id"] == 5 and found["error"]["code"] == -32000
        assert found["error"]["message"] and "\n" not in found["error"]["message"]
        assert json.loads(answer.readline())["id"] == "v"
    with hvcore.Host.connect(served) as host:
        assert host.list() == []


def test_framing_that_is_dropped(served: Path) -> None:
    """A line without end is not kept, and a client that goes away in the middle harms nobody."""
    with connect(served) as sock, pytest.raises(OSError):
        while True:
            sock.sendall(b"x" * 65536)
    for _ in range(20):
        with connect(served) as sock:
            sock.sendall(VERSION[:-7])
        with connect(served) as sock:
            sock.sendall(VERSION * 100)  # and does not wait for the answers
    assert answers(served)


def test_descriptors_sent_to_it_are_not_kept(served: Path) -> None:
    with hvcore.Host.connect(served) as host:
        before = len(list(Path(f"/proc/{host.pid}/fd").iterdir()))
        with connect(served) as sock, sock.makefile("rb") as answer:
            for _ in range(10):
                socket.send_fds(sock, [VERSION], [0, 1, 2])
                assert json.loads(answer.readline())["id"] == "v"
            assert len(list(Path(f"/proc/{host.pid}/fd").iterdir())) == before + 1


def test_a_client_that_does_not_read_is_not_read(served: Path) -> None:
    """Others are served meanwhile, and its answers come when it reads."""
    count = 30000
    with connect(served) as sock, sock.makefile("rb") as answer:
        sender = threading.Thread(target=sock.sendall, args=(VERSION * count,))
        sender.start()
        for _ in range(20):
            assert answers(served)
        for _ in range(count):
            assert answer.readline().startswith(b'{"jsonrpc": "2.0", "id": "v"')
        sender.join()


def test_many_clients_at_once(served: Path) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(served)) for _ in range(30)]
        for client in clients:
            client.sendall(VERSION)
        for client in clients:
            assert b'"protocol": 1' in client.recv(4096)
    assert len(children()) == 1 and os.getpid() not in children()
