"""Sizes as people write them."""

import pytest

from hvcore.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("4k", 4096),
        ("64K", 65536),
        ("1M", 1 << 20),
        ("2GiB", 2 << 30),
        (" 3 TB ", 3 << 40),
        (4096, 4096),
        ("10b", 10),
    ],
)
def test_sizes_are_powers_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "4q", "-1", "1.5M", "4 k k", "0x10", "٤k", "1_000", -1])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1000, "1000 bytes"),
        (4096, "4 KiB"),
        (64 << 20, "64 MiB"),
        (5 << 40, "5 TiB"),
        (2048 << 40, "2048 TiB"),
    ],
)
def test_sizes_are_written_exactly(size, text):
    assert format_size(size) == text
    assert parse_size(text.removesuffix(" bytes")) == size
