"""Arbitrary bytes from the other side: neither the guest's machine nor the host's endpoint raises."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.vmbus.attach import Hello
from hvcore.vmbus.client import VmbusClient
from hvcore.vmbus.message import AllOffersDelivered, InitiateContact, VersionResponse, decode
from hvcore.vmbus.transport import HostEndpoint
from tests.reference.attachment import Shared, pair

payloads = st.one_of(
    st.binary(max_size=250),
    st.builds(lambda kind, rest: kind.to_bytes(8, "little") + rest, st.integers(0, 30), st.binary(max_size=232)),
    st.builds(lambda relid: bytes([1]) + bytes(183) + relid.to_bytes(4, "little") + bytes(8), st.integers(0, 4000)),
    st.builds(lambda relid: bytes([2]) + bytes(7) + relid.to_bytes(4, "little"), st.integers(0, 4000)),
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(payloads, max_size=30))
def test_any_host(messages):
    def answer(payload, connection):
        contact = isinstance(decode(payload), InitiateContact)
        client.receive((VersionResponse(True, 0, 4) if contact else AllOffersDelivered()).encode())

    client = VmbusClient(answer, timeout=0)
    client.connect()
    client.request_offers()
    for message in messages:
        client.receive(message)
    state = client.inspect()
    assert state["received"] == 2 + len(messages)
    assert state["dropped"] + len(state["channels"]) <= len(messages)
    assert all(0 < channel["relid"] < 2048 for channel in state["channels"])
    assert client.version and client.channels == client.request_offers()


datagrams = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(lambda connection, kind, rest: bytes([connection, 0, 0, 0, kind, 0, 0, 0]) + rest,
              st.integers(0, 5), st.integers(0, 2), st.binary(max_size=260)),
)  # fmt: skip


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.booleans(), st.lists(datagrams, max_size=40))
def test_any_guest(hello, posts):
    shared = Shared(1)
    sock, guest = pair()
    taken, ended = [], []
    endpoint = HostEndpoint(
        sock, lambda: shared.attachment, lambda *post: taken.append(post), ended.append, clock=lambda: 0.0
    )
    with guest:
        if hello:
            guest.send(Hello().encode())
        for datagram in posts:
            guest.send(datagram)
        endpoint.on_readable()
        if hello:
            assert len(taken) + endpoint.refused == len(posts)
            assert not ended
        else:
            assert (taken, len(ended)) == ([], bool(posts))
    endpoint.on_hangup()
    assert len(ended) == 1 and endpoint.closed
    shared.close()
