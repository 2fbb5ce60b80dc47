"""`hvcore compare --sweep`: one comparison for each combination of parameters."""

from collections.abc import Sequence

from hvcore.progress import Progress
from hvcore.report import model
from hvcore.report.compare import compare
from hvcore.report.options import AXES, CompareOptions
from hvcore.sizes import format_size


def named(options: CompareOptions) -> str:
    """A combination in a few words, for the progress line."""
    return f"{options.rw} {format_size(options.block_size)} qd {options.queue_depth}"


def sweep(combinations: Sequence[CompareOptions], progress: Progress) -> model.Sweep:
    """Runs all of them, one after the other, each in a VM of its own. hvcore.Error, OSError, OptionError."""
    points = []
    found: model.Comparison | None = None
    for number, options in enumerate(combinations):
        begin = number / len(combinations)

        def report(text: str, part: float, begin: float = begin, options: CompareOptions = options) -> None:
            progress(f"{named(options)}: {text}", begin + part / len(combinations))

        found = compare(options, report, trace=False)
        parameters = {field: getattr(options, field) for field in AXES.values()}
        points.append(model.Point(parameters, found.runs))
    if found is None:
        raise ValueError("a sweep of nothing")
    return model.Sweep(found.image, found.machine, points)
