"""The control socket against JSON-RPC 2.0, and against whatever else a client may send."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

import hvcore
from hvcore.partition.rpc import LINE_MAX
from tests.reference.daemons import daemon
from tests.reference.vms import MIB, PATIENCE, raw


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place: Path = tmp_path_factory.mktemp("control") / "control"
    with daemon(place):
        yield place


class Client:
    """A client that knows only the socket."""

    def __init__(self, place: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(place))
        self.sock.settimeout(PATIENCE)
        self.file = self.sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> Any:
        line = self.file.readline()
        assert line.endswith(b"\n")
        return json.loads(line)

    def ask(self, request: object) -> Any:
        self.send(json.dumps(request).encode() + b"\n")
        return self.answer()

    def at_end(self) -> bool:
        """The host closed the connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture
def client(place: Path) -> Iterator[Client]:
    with Client(place) as client:
        yield client
        if client.sock.fileno() >= 0:
            assert alive(place)


def descriptors(pid: int) -> int:
    """How many the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def alive(place: Path) -> bool:
    with Client(place) as other:
        return bool(other.ask(request("version"))["result"]["protocol"] == 1)


def request(method: str, identity: object = 1, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": identity, "method": method, "params": params}


@pytest.mark.parametrize("identity", [1, 0, -7, "text", 2**40, 1.5, None])
def test_answer_carries_the_requests_id(client: Client, identity: object) -> None:
    answer = client.ask(request("version", identity))
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", identity)
    assert answer["result"] == {"protocol": 1, "hvcore": hvcore.__version__, "pid": answer["result"]["pid"]}
    assert "error" not in answer


def test_params_may_be_left_out(client: Client) -> None:
    assert client.ask({"jsonrpc": "2.0", "id": 3, "method": "list"})["result"] == []
    assert client.ask({"jsonrpc": "2.0", "id": 3, "method": "events", "params": {}})["result"] == []


def test_notification_is_not_answered(client: Client) -> None:
    for method in ("version", "nonsense", "start"):
        client.send(json.dumps({"jsonrpc": "2.0", "method": method}).encode() + b"\n")
    assert client.ask(request("version", 9))["id"] == 9


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"garbage", -32700),
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe\x00", -32700),
        (b"[" * 100000, -32700),
        (b'{"a":' * 50000, -32700),
        (b"1" * 50000, -32700),
        (b"[]", -32600),
        (b"1", -32600),
        (b"null", -32600),
        (b'"version"', -32600),
        (b"{}", -32600),
        (b'{"jsonrpc": "2.0", "id": 1}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "version"}', -32600),
        (b'{"id": 1, "method": "version"}', -32600),
        (b'{"jsonrpc": "2.0", "id": [1], "method": "version"}', -32600),
        (b'{"jsonrpc": "2.0", "id": {"a": 1}, "method": "version"}', -32600),
    ],
)
def test_what_is_no_request(client: Client, text: bytes, code: int) -> None:
    client.send(text + b"\n")
    answer = client.answer()
    assert answer["jsonrpc"] == "2.0" and answer["error"]["code"] == code and "result" not in answer
    assert isinstance(answer["error"]["message"], str)
    assert client.ask(request("version", 2))["id"] == 2  # the connection goes on


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("nonsense", {}, -32601),
        ("_create", {}, -32601),
        ("__class__", {}, -32601),
        ("version", {"more": 1}, -32602),
        ("version", [1], -32602),
        ("version", "text", -32602),
        ("start", {}, -32602),
        ("start", {"vm": "x", "more": 1}, -32602),
        ("start", {"self": 1, "vm": "x"}, -32602),
        ("create", {}, -32602),
        ("attach", {}, -32602),
        ("attach", {"vm": "x", "descriptors": []}, -32602),
        ("events", {"after": 0, "before": 1}, -32602),
    ],
)
def test_what_cannot_be_called(client: Client, method: str, params: object, code: int) -> None:
    answer = client.ask({"jsonrpc": "2.0", "id": "k", "method": method, "params": params})
    assert (answer["id"], answer["error"]["code"]) == ("k", code)


VALUES: list[object] = [None, True, 0, -1, 1.5, "", "x", [], {}, [[]], {"a": {}}, "\0", "x" * 100000, 10**400]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("start", "vm"),
        ("stop", "vm"),
        ("delete", "vm"),
        ("attach", "vm"),
        ("counters", "vm"),
        ("trace", "vm"),
        ("create", "config"),
    ],
)
def test_parameters_of_every_kind(client: Client, method: str, name: str) -> None:
    for value in VALUES:
        answer = client.ask(request(method, **{name: value}))
        assert answer["error"]["code"] in (-32000, -32602), value
        assert answer["error"]["message"]


@pytest.mark.parametrize(
    "key", ["name", "memory", "disks", "image", "path", "format", "read_only", "ide_mode", "sector_size"]
)
def test_vm_descriptions_of_every_kind(client: Client, tmp_path: Path, key: str) -> None:
    (tmp_path / "image").write_bytes(bytes(MIB))
    for value in [*VALUES, tmp_path.name, ["a", 1], [None], {"image": 1}]:
        disk: dict[str, object] = {"image": str(tmp_path / "image"), "format": "raw"}
        config: dict[str, object] = {"name": "odd", "memory": 1 << 20, "disks": [disk]}
        (config if key in config else disk)[key] = value
        answer = client.ask(request("create", config=config))
        if "result" in answer:
            assert client.ask(request("delete", vm=answer["result"]["name"]))["result"] is None
        else:
            assert answer["error"]["code"] == -32000, value
            assert "\n" not in answer["error"]["message"]
    assert client.ask(request("list"))["result"] == []


def test_events_and_trace_arguments(client: Client, tmp_path: Path) -> None:
    for value in VALUES:
        assert {"result", "error"} & set(client.ask(request("events", after=value)))
    config = {"name": "t", "memory": "16M", "disks": [{"image": str(raw(tmp_path / "i").image), "format": "raw"}]}
    assert client.ask(request("create", config=config))["result"]["name"] == "t"
    for value in VALUES:
        assert {"result", "error"} & set(client.ask(request("trace", vm="t", enable=value)))
    assert client.ask(request("delete", vm="t"))["result"] is None


def test_unknown_keys_of_a_description(client: Client, tmp_path: Path) -> None:
    config = {"name": "t", "memory": "16M", "disks": [], "more": 1}
    answer = client.ask(request("create", config=config))
    assert "more" in answer["error"]["message"]


def test_many_requests_in_one_piece_and_one_in_many_pieces(client: Client) -> None:
    client.send(b"".join(json.dumps(request("version", n)).encode() + b"\n" for n in range(500)))
    assert [client.answer()["id"] for _ in range(500)] == list(range(500))
    for byte in json.dumps(request("version", "slow")).encode() + b"\n":
        client.send(bytes([byte]))
    assert client.answer()["id"] == "slow"


def test_huge_line_ends_the_connection(place: Path) -> None:
    with Client(place) as client:
        try:
            for _ in range(LINE_MAX // 65536 + 2):
                client.send(b"x" * 65536)
        except ConnectionError:
            pass
        assert client.at_end()
    assert alive(place)


def test_line_of_nearly_the_limit_is_read(client: Client) -> None:
    client.send(json.dumps(request("nonsense", "x" * (LINE_MAX - 1000))).encode() + b"\n")
    assert client.answer()["error"]["code"] == -32601


def test_line_without_an_end(place: Path) -> None:
    with Client(place) as client:
        client.send(json.dumps(request("shutdown")).encode())  # no newline: no request
        client.sock.shutdown(socket.SHUT_WR)
        assert client.at_end()
    assert alive(place)


def test_garbage_of_every_length(place: Path) -> None:
    random = Random(0)
    for _ in range(50):
        with Client(place) as client:
            try:
                client.send(random.randbytes(random.choice([1, 10, 1000, 70000])))
            except ConnectionError:
                continue
    assert alive(place)


def test_descriptors_of_a_client_are_not_kept(place: Path) -> None:
    with Client(place) as client:
        pid = client.ask(request("version"))["result"]["pid"]
        before = descriptors(pid)
        for _ in range(20):
            socket.send_fds(client.sock, [json.dumps(request("version")).encode() + b"\n"], [0, 1, 2])
            client.answer()
        assert descriptors(pid) == before


def test_many_connections(place: Path) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(place)) for _ in range(150)]
        for number, client in enumerate(clients):
            client.send(json.dumps(request("version", number)).encode() + b"\n")
        assert [client.answer()["id"] for client in clients] == list(range(150))
        assert alive(place)
    assert alive(place)


def test_client_that_never_reads(place: Path) -> None:
    """Its answers pile up in its socket, then in nobody's memory: the host stops reading it, and serves the others."""
    with Client(place) as client:
        client.sock.settimeout(0)
        line = json.dumps(request("nonsense", "x" * 60000)).encode() + b"\n"
        sent = 0
        try:
            while sent < 64 * MIB:
                sent += client.sock.send(line)
        except BlockingIOError:
            pass
        assert sent < 64 * MIB
        assert alive(place)
    assert alive(place)


def test_client_that_goes_before_its_answer(place: Path, tmp_path: Path) -> None:
    image = str(raw(tmp_path / "image").image)
    with Client(place) as client:
        config = {"name": "left", "memory": "16M", "disks": [{"image": image, "format": "raw"}]}
        client.ask(request("create", config=config))
        client.ask(request("start", vm="left"))
        pid = client.ask(request("version"))["result"]["pid"]
        before = descriptors(pid)
    for _ in range(10):
        with Client(place) as client:
            client.send(json.dumps(request("attach", vm="left")).encode() + b"\n")
    with Client(place) as client:
        # The descriptor for a guest that went away went with it, and the VM takes another guest.
        for _ in range(1000):
            answer = client.ask(request("attach", vm="left"))
            if "result" in answer:
                break
        assert "result" in answer
        client.ask(request("delete", vm="left"))
        assert descriptors(pid) <= before + 1
    assert alive(place)
