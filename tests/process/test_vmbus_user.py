"""Guest and host over a socket: whole lives through both state machines and the vmbus-user transport."""

import os
import threading

import pytest

from hvcore.errors import GuestGone, HostError
from hvcore.vmbus import message as m
from hvcore.vmbus.client import ChannelRescinded, ClientState, VmbusClient
from hvcore.vmbus.transport import GuestEndpoint
from tests.reference.attachment import VM, HostThread
from tests.reference.control import MEMORY_PAGES, scsi


class Guest:
    def __init__(self, host, **options):
        self.rescinded = threading.Event()
        self.gone = []
        self.endpoint = GuestEndpoint.attach(host.guest)
        self.client = VmbusClient(
            self.endpoint.send, timeout=30, on_rescind=lambda channel: self.rescinded.set(), **options
        )
        self.endpoint.start(self.client.receive, self.client.refused, self.ended)

    def ended(self, reason):
        self.gone.append(reason)
        self.client.gone(reason)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.endpoint.close()


def test_handshake_gives_memory_doorbell_and_page():
    with HostThread() as host, Guest(host) as guest:
        os.pwrite(guest.endpoint.memory_fd, b"hello", 4096)
        assert os.pread(host.shared.memory, 5, 4096) == b"hello"
        os.eventfd_write(guest.endpoint.doorbell_fd, 1)
        assert os.eventfd_read(host.shared.doorbell) == 1
        assert os.fstat(guest.endpoint.event_page_fd).st_ino == os.fstat(host.shared.page).st_ino
        assert (guest.endpoint.memory_bytes, guest.endpoint.vm_id) == (MEMORY_PAGES * 4096, VM)
        fds = [guest.endpoint.memory_fd, guest.endpoint.doorbell_fd, guest.endpoint.event_page_fd]
        assert not any(os.get_inheritable(fd) for fd in fds)


@pytest.mark.parametrize("pages", [1, 26, 27, 54, 55, 8190])
def test_page_lists_of_every_size(pages):  # CM-21
    with HostThread(scsi()) as host, Guest(host) as guest:
        guest.client.connect()
        (channel,) = guest.client.request_offers()
        pfns = [(7 * page) % MEMORY_PAGES for page in range(pages)]  # scattered
        gpadl = guest.client.create_gpadl(channel, pfns)
        if pages < 4:
            with pytest.raises(HostError):
                guest.client.open_channel(channel, gpadl, 2)
        else:
            offset = 2 + pages // 5  # asymmetric
            guest.client.open_channel(channel, gpadl, offset)
            assert host.log == [("open", 1, pfns, offset)]
            guest.client.close_channel(channel)
        guest.client.teardown_gpadl(channel, gpadl)
        assert not host.devices.holds
        assert host.server.inspect()["gpadls"] == 0


@pytest.mark.parametrize("version", m.VERSIONS)
def test_unload_and_reconnect(version):
    with HostThread(scsi(1), scsi(2)) as host, Guest(host, versions=[version]) as guest:
        for _ in range(3):
            assert guest.client.connect() == version
            first, second = guest.client.request_offers()
            assert (first.relid, second.relid) == (1, 2)
            guest.client.open_channel(first, guest.client.create_gpadl(first, range(8)), 3)
            guest.client.open_channel(second, guest.client.create_gpadl(second, range(8)), 5)
            assert len(host.devices.holds) == 2
            guest.client.unload()
            assert not host.devices.holds
            assert first.state is ClientState.RELEASED
        assert host.server.inspect()["dropped"] == 0


def test_rescind_during_open():  # ST-4, ST-7
    with HostThread(scsi()) as host, Guest(host) as guest:
        guest.client.connect()
        (channel,) = guest.client.request_offers()
        gpadl = guest.client.create_gpadl(channel, range(8))
        opening = threading.Event()

        def never_opens(*_):
            opening.set()
            host.devices.holds.add(host.channels[0])

        host.devices.open_channel = never_opens

        def removes():
            opening.wait()
            host.do(lambda: host.server.rescind(host.channels[0]))

        remover = threading.Thread(target=removes)
        remover.start()
        with pytest.raises(ChannelRescinded):
            guest.client.open_channel(channel, gpadl, 4)
        remover.join()
        guest.client.teardown_gpadl(channel, gpadl)
        guest.client.release(channel)
        guest.client.unload()  # comes after the release
        assert host.server.inspect()["channels"] == []


def test_hot_add_and_remove():  # ST-13
    with HostThread() as host:
        added = threading.Event()
        with Guest(host, on_offer=lambda channel: added.set()) as guest:
            guest.client.connect()
            assert guest.client.request_offers() == []
            host.do(lambda: host.channels.append(host.server.offer(scsi())))
            added.wait()
            (channel,) = guest.client.channels
            host.do(lambda: host.server.rescind(host.channels[0]))
            guest.rescinded.wait()
            guest.client.release(channel)
            assert guest.client.channels == []


def test_a_guest_that_dies_releases_everything():
    with HostThread(scsi()) as host:
        with Guest(host) as guest:
            guest.client.connect()
            (channel,) = guest.client.request_offers()
            guest.client.open_channel(channel, guest.client.create_gpadl(channel, range(8)), 4)
        assert guest.gone == ["the attachment is closed"]
        host.do(lambda: None)
        host.do(lambda: None)  # one round of the loop after the hang-up was there to be seen
        assert host.ended == ["the guest closed its socket"]
        assert host.log[-1] == ("close", 1)
        state = host.server.inspect()
        assert (state["state"], state["relids"], state["gpadls"]) == ("disconnected", 0, 0)
        with pytest.raises(GuestGone):
            guest.endpoint.send(b"", 4)


def test_a_host_that_dies_ends_every_wait():
    with HostThread(scsi()) as host, Guest(host) as guest:
        guest.client.connect()
        (channel,) = guest.client.request_offers()
        gpadl = guest.client.create_gpadl(channel, range(8))

        def dies(*_):
            host.endpoint.close()

        host.devices.open_channel = dies
        with pytest.raises(GuestGone):
            guest.client.open_channel(channel, gpadl, 4)
        with pytest.raises(GuestGone):
            guest.client.unload()


def test_a_guest_on_an_unknown_connection_is_told():
    with HostThread(scsi()) as host, Guest(host) as guest:
        guest.client.connect()
        guest.client._connection_id = 9
        with pytest.raises(GuestGone, match=r"connection 9 .* 0x12"):
            guest.client.request_offers()
        assert host.endpoint.refused == 1
