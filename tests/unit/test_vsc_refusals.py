"""What the VSC does when the host takes no more of a unit, and when a unit has something to report."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy
import pytest

from hvcore.disk.ram import RamDisk
from hvcore.storage.vsc import Channel
from tests.reference.controller import channels_to
from tests.reference.guest import until
from tests.reference.hanging import Gate
from tests.reference.scriptedhost import BUSY, FULL, GOOD, Scripted, attention, completion

SIZE = 1 << 20
BLOCK = 4096
CONTENT = [random.Random(n).randbytes(SIZE) for n in range(3)]
TEST_UNIT_READY = bytes(6)


def ram(content: bytes) -> RamDisk:
    disk = RamDisk(len(content))
    disk.write(0, content)
    return disk


def offsets(count: int) -> numpy.ndarray:
    return numpy.array([n % (SIZE // BLOCK) * BLOCK for n in range(count)], dtype=numpy.uint64)


def read_all(channel: Channel, lun: int, count: int = 2000) -> bool:
    """Whether so many reads at depth 256 bring the disk's content."""
    out = numpy.empty((count, BLOCK), numpy.uint8)
    failure = channel.transfer(False, offsets(count), 0, BLOCK, out, 512, lun=lun, queue_depth=256)
    wanted = numpy.frombuffer(CONTENT[lun], numpy.uint8).reshape(-1, BLOCK)
    return failure is None and all((out[n] == wanted[n % len(wanted)]).all() for n in range(count))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate", CONTENT[0])
    yield gate
    gate.close()


@pytest.mark.parametrize("sub_channels", [0, 2])
def test_a_blocked_disk_delays_no_other(gate: Gate, sub_channels: int) -> None:
    """Three disks on one controller, each at depth 256: the blocked one gets its share, and no more."""
    data = numpy.frombuffer(random.Random(7).randbytes(SIZE), numpy.uint8).reshape(-1, BLOCK)
    result: list[object] = []
    with channels_to([gate.disk, ram(CONTENT[1]), ram(CONTENT[2])], sub_channels) as (channels, dispatch):
        primary, also = channels[0], tuple(channels[1:])

        def write() -> None:
            result.append(
                primary.transfer(
                    True, offsets(len(data)), 0, BLOCK, data, 512, queue_depth=256, fua=True, timeout=60, also=also
                )
            )

        writer = threading.Thread(target=write)
        writer.start()
        try:
            until(lambda: dispatch.inspect(0)["in_flight"] >= 64)
            for _ in range(3):
                assert read_all(primary, 1)
                assert read_all(primary, 2)
            assert writer.is_alive()
            assert not result
        finally:
            gate.open()
            writer.join(60)
        assert result == [None]
        assert gate.disk.read(0, SIZE) == data.tobytes()
        # Refused requests were sent again, and not over and over.
        assert primary.counters()["requests"] < 2 * (6 * 2000 + 256)


def test_a_blocked_disk_is_not_asked_again_and_again(gate: Gate) -> None:
    data = bytes(SIZE)
    with channels_to([gate.disk, ram(CONTENT[1])]) as (channels, dispatch):
        channel = channels[0]
        writer = threading.Thread(
            target=lambda: channel.transfer(
                True, offsets(256), 0, BLOCK, data, 512, queue_depth=256, fua=True, timeout=60
            )
        )
        writer.start()
        try:
            until(lambda: dispatch.inspect(0)["in_flight"] == 128 and channel.in_flight == 128)
            sent = channel.counters()["requests"]
            for _ in range(100):
                assert channel.execute(bytes(6), lun=1)[:2] == (1, 0)
            assert channel.counters()["requests"] == sent + 100
        finally:
            gate.open()
            writer.join(60)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_over_several_channels(count: int) -> None:
    with channels_to([ram(content) for content in CONTENT], count) as (channels, _):
        out = numpy.empty((1000, BLOCK), numpy.uint8)
        for depth in (1, 2, 7, 256):
            before = [channel.counters()["requests"] for channel in channels]
            out[:] = 0
            failure = channels[0].transfer(
                False, offsets(1000), 0, BLOCK, out, 512, lun=2, queue_depth=depth, also=tuple(channels[1:])
            )
            assert failure is None
            assert out[:256].tobytes() == CONTENT[2]
            grown = [channel.counters()["requests"] - then for channel, then in zip(channels, before, strict=True)]
            assert sum(grown) == 1000
            assert all(grown[: min(depth, count + 1)])


def test_spread_batches_of_many_threads() -> None:
    """Each thread leads some channels and follows on others."""
    with channels_to([ram(content) for content in CONTENT], 2) as (channels, _):
        failed: list[object] = []

        def work(lun: int) -> None:
            out = numpy.empty((400, BLOCK), numpy.uint8)
            for n in range(15):
                first, *also = channels[n % 3 :] + channels[: n % 3]
                out[:] = 0
                failure = first.transfer(
                    False, offsets(400), 0, BLOCK, out, 512, lun=lun, queue_depth=32, timeout=60, also=tuple(also)
                )
                if failure is not None or out[:256].tobytes() != CONTENT[lun]:
                    failed.append(failure)
                if first.execute(bytes(6), lun=lun, timeout=60)[0] != 1:
                    failed.append(lun)

        threads = [threading.Thread(target=work, args=(n % 3,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failed
        assert not any(thread.is_alive() for thread in threads)
        assert [channel.in_flight for channel in channels] == [0, 0, 0]


# ---- a host that answers as it is told

READ = completion(0x01, length=512)


def script(*answers: bytes, after: bytes = READ) -> Callable[[int], bytes]:
    """The answers in this order, then always `after`."""
    return lambda number: answers[number] if number < len(answers) else after


def read(channel: Channel, count: int = 1, **options: object) -> object:
    return channel.transfer(False, None, 0, 512, bytearray(512 * count), 512, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [FULL, BUSY])
@pytest.mark.parametrize("times", [1, 5])
def test_refused_with_nothing_in_flight(answer: bytes, times: int) -> None:
    """Nobody's completion will say when there is room: it is asked again by the clock."""
    with closing(Scripted(script(*[answer] * times))) as host:
        assert read(host.channel, timeout=30) is None
        assert host.srbs == times + 1
        assert host.channel.counters()["requests"] == times + 5  # and four of the negotiation


def test_commands_are_sent_again_if_their_caller_says_so() -> None:
    with closing(Scripted(script(FULL, attention(0x29, 0), FULL, after=GOOD))) as host:
        assert host.channel.execute(TEST_UNIT_READY)[:2] == (0x05, 0x28)
        assert host.channel.execute(TEST_UNIT_READY, patient=True, timeout=30)[:2] == (1, 0)
        assert host.srbs == 4


def test_refusals_among_many() -> None:
    """Each refused request is sent again, the others once."""
    refused = {3, 4, 5, 9, 20, 21, 22, 23, 24, 40}
    with closing(Scripted(lambda number: FULL if number in refused else READ)) as host:
        assert read(host.channel, 64, queue_depth=8, timeout=30) is None
        assert host.srbs == 64 + len(refused)


def test_for_ever_refused_is_an_error_in_the_end() -> None:
    with closing(Scripted(script(after=FULL), patience=0.05)) as host:
        failure = read(host.channel, timeout=30)
        assert isinstance(failure, tuple)
        assert failure[:3] == (0, 0x05, 0x28)
        assert 2 <= host.srbs <= 10  # ever more rarely
        assert host.channel.in_flight == 0


def test_refused_until_the_callers_timeout() -> None:
    with closing(Scripted(script(after=FULL))) as host:
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            read(host.channel, timeout=0.05)
        assert time.monotonic() - before >= 0.05


def test_unit_attentions_are_noted_and_the_command_is_sent_again() -> None:
    with closing(Scripted(script(attention(0x2A, 0x09), attention(0x29, 0x00)))) as host:
        assert read(host.channel, timeout=30) is None
        assert host.srbs == 3
        assert host.channel.attentions(0) == (2, [(0x2A, 0x09), (0x29, 0x00)])
        assert host.channel.attentions(1) == (0, [])
        assert (host.channel.notices(), host.channel.notices()) == (4, 0)


def test_only_the_last_attentions_are_kept() -> None:
    with closing(Scripted(script(*[attention(0x3F, n) for n in range(12)]))) as host:
        assert read(host.channel, timeout=30) is None
        assert host.channel.attentions(0) == (12, [(0x3F, n) for n in range(4, 12)])


def test_attentions_without_end_are_an_error() -> None:
    with closing(Scripted(script(after=attention(0x2A, 0x03)))) as host:
        failure = read(host.channel, timeout=30)
        assert isinstance(failure, tuple)
        assert (failure[1], failure[3][2], failure[3][12]) == (0x84, 6, 0x2A)
        assert host.srbs == 17


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (completion(0x01, length=511), 0x12),  # 5.8: fewer bytes than were asked for
        (completion(0x01, length=0), 0x12),
        (completion(0x01, length=513), 0x12),
        (completion(0x12, length=512), 0x12),
        (completion(0x92, 0x02, "700005000000000a0000000024000000"), 0x92),
        (completion(0x84, 0x02, "700003000000000a0000000011000000", 512), 0x84),
        (completion(0x04, 0x18), 0x04),  # reservation conflict
        (completion(0x09, 0x08), 0x09),  # the backend had it and did not answer: not sent again
        (completion(0x20, 0x02), 0x20),
        (completion(0x82, 0x40, "70000b000000000a0000000000000000"), 0x82),
        (completion(0x05), 0x05),
        (completion(0x00), 0x00),
    ],
)
def test_what_is_not_success_is_an_error_and_sent_once(answer: bytes, status: int) -> None:
    with closing(Scripted(script(answer))) as host:
        failure = read(host.channel, timeout=30)
        assert isinstance(failure, tuple)
        assert failure[1] == status
        assert host.srbs == 1
