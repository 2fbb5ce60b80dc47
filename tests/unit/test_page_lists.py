"""GPADL page lists: fragmentation and assembly (vmbus.md 2.4, 3.12, 8.8)."""

import pytest

from hvcore.errors import ProtocolError
from hvcore.vmbus.gparange import Assembly, GpaRange, fragment, page_count
from hvcore.vmbus.message import GpadlHeader, decode


def assemble(messages):
    assembly = Assembly(messages[0])
    for body in messages[1:]:
        assert not assembly.complete
        assembly.extend(body.words)
    assert assembly.complete
    return assembly.ranges()


def header(words, ranges=1, length=None):
    return GpadlHeader(5, 0xE1E10, len(words) * 8 if length is None else length, ranges, tuple(words))


@pytest.mark.parametrize(
    ("offset", "count", "pages"),
    [
        (0, 1, 1), (0, 4096, 1), (0, 4097, 2), (4095, 1, 1), (4095, 2, 2), (1, 4096, 2), (0xFFF, 0x1001, 2),
        (0, 0xFFFFFFFF, 0x100000), (0xFFF, 0xFFFFFFFF, 0x100001),
    ],
)  # fmt: skip
def test_page_count(offset, count, pages):
    assert page_count(offset, count) == pages


@pytest.mark.parametrize(("pages", "bodies"), [(1, 0), (26, 0), (27, 1), (54, 1), (55, 2), (8190, 292)])
def test_number_of_bodies(pages, bodies):  # CM-21
    messages = fragment(5, 7, [GpaRange.whole_pages(range(pages))])
    assert len(messages) == 1 + bodies
    assert all(len(message.encode()) <= 240 and decode(message.encode()) == message for message in messages)
    (gpa,) = assemble(messages)
    assert (gpa.byte_count, gpa.byte_offset, list(gpa.pfns)) == (pages * 4096, 0, list(range(pages)))


def test_8191_pages_do_not_fit():  # CM-21
    with pytest.raises(ValueError, match="65528"):
        fragment(5, 7, [GpaRange.whole_pages(range(8191))])


def test_a_range_names_exactly_its_pages():
    with pytest.raises(ValueError):
        fragment(5, 7, [GpaRange(4097, 0, GpaRange.whole_pages([1]).pfns)])
    with pytest.raises(ValueError):
        fragment(5, 7, [])


def test_a_range_may_start_inside_a_body():  # CM-22
    ranges = [GpaRange.whole_pages(range(30)), GpaRange(5000, 4000, GpaRange.whole_pages([9, 8, 7]).pfns)]
    assert assemble(fragment(5, 7, ranges)) == tuple(ranges)


def test_extra_words_are_dropped():  # CM-23
    assembly = Assembly(header([4096, 1, 2, 3], length=16))
    assert assembly.complete
    assembly.extend((4, 5))
    (gpa,) = assembly.ranges()
    assert list(gpa.pfns) == [1]


@pytest.mark.parametrize(
    ("words", "ranges", "length"),
    [
        ([4096], 1, None),  # N13: a page announced, none there
        ([], 0, None),  # N14
        ([4096, 1], 1, 15),
        ([4096, 1], 2, None),
        ([4096, 1], 0xFFFF, None),
        ([0, 1], 1, None),  # byte_count 0
        ([4096 << 32 | 1, 1], 1, None),  # byte_offset 4096
        ([4097, 1], 1, None),
        ([0xFFF << 32 | 0xFFFFFFFF, 1], 1, None),  # the 32-bit sum would wrap to one page (N10)
        ([8192, 1, 2, 4096], 2, None),
        ([8192, 1, 2], 2, 32),
    ],
)
def test_bad_list_is_refused(words, ranges, length):
    with pytest.raises(ProtocolError):
        assembly = Assembly(header(words, ranges, length))
        assembly.extend((0,) * (assembly.words_needed - len(assembly.words)))
        assembly.ranges()


def test_handle_0_is_refused():
    with pytest.raises(ProtocolError, match="handle 0"):
        Assembly(GpadlHeader(5, 0, 16, 1, (4096, 1)))
