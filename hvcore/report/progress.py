"""What long work tells about itself: on a terminal, on stderr; nothing anywhere else."""

import contextlib
import sys
from collections.abc import Iterator

from hvcore.progress import Progress, silent


@contextlib.contextmanager
def terminal_progress(wanted: bool = True) -> Iterator[Progress]:
    """A progress line on stderr that is gone at the end; silent when stderr is no terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def report(text: str, fraction: float) -> None:
            bar.update(task, description=text, completed=fraction)

        yield report
