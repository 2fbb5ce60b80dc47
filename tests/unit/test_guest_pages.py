"""The pages of a guest that its own buffers and rings are made of."""

import pickle
from random import Random

import pytest

from hvcore.errors import DiskError, ImageError
from hvcore.partition.guest import PageAllocator


def test_page_zero_is_never_given() -> None:
    pages = PageAllocator(4)
    assert pages.allocate(3) == 1
    with pytest.raises(MemoryError):
        pages.allocate(1)
    for total in (0, 1):
        with pytest.raises(MemoryError):
            PageAllocator(total).allocate(1)


def test_neighbours_grow_together_again() -> None:
    pages = PageAllocator(10)
    first, second, third = (pages.allocate(3) for _ in range(3))
    pages.release(first, 3)
    pages.release(third, 3)
    with pytest.raises(MemoryError, match="needs 16 KiB of guest memory and 12 KiB are free"):
        pages.allocate(4)
    pages.release(second, 3)
    assert pages.allocate(9) == 1


def test_no_page_has_two_owners() -> None:
    random = Random(0)
    pages = PageAllocator(200)
    held: list[tuple[int, int]] = []
    for _ in range(3000):
        if held and random.random() < 0.5:
            pages.release(*held.pop(random.randrange(len(held))))
        else:
            count = random.randint(1, 30)
            try:
                held.append((pages.allocate(count), count))
            except MemoryError:
                continue
        used = [page for first, count in held for page in range(first, first + count)]
        assert len(used) == len(set(used)) and all(1 <= page < 200 for page in used)
    for each in held:
        pages.release(*each)
    assert pages.allocate(199) == 1


def test_errors_travel_whole() -> None:
    error = DiskError("text", srb_status=4, scsi_status=2, sense_key=3, asc=0x11, ascq=1, index=5, statuses=[1, 4])
    error.errno = 5
    error.add_note("note")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (DiskError, "text", vars(error))
    assert (back.errno, back.__notes__) == (5, ["note"])
    image = ImageError("text")
    image.errno = 16
    assert pickle.loads(pickle.dumps(image)).errno == 16
