"""The histogram's twin: keeps every value."""

import math


def nearest_rank(values: list[int], q: float) -> int:
    """The value that q percent of the values do not exceed."""
    ordered = sorted(values)
    if q <= 0:
        return ordered[0]
    return ordered[max(math.ceil(len(ordered) * q / 100), 1) - 1]
