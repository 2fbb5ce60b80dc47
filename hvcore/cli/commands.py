"""The commands that measure and serve, and the entry point of them all."""

import dataclasses
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from hvcore import __version__
from hvcore.cli.common import FAILED, INTERRUPTED, USAGE, Format, Json, complain, emit, reported, show
from hvcore.cli.vhd import commands as vhd_commands
from hvcore.errors import Error
from hvcore.report.options import (
    IDE_MODES,
    PATHS,
    SECTOR_SIZES,
    CompareOptions,
    ExplainOptions,
    OptionError,
    is_axis,
    paths_option,
    size_option,
    sweep_option,
)
from hvcore.report.workload import NAMES as WORKLOADS
from hvcore.report.workload import READ_PERCENT

if TYPE_CHECKING:
    from hvcore.report.job import JobFile

app = typer.Typer(
    name="hvcore",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Hyper-V's I/O architecture as Linux processes: one disk request, followed and measured on each path.",
)
app.add_typer(vhd_commands, name="vhd")

Image = Annotated[str | None, typer.Argument(help="Disk image; without one a temporary image is made.")]
Paths = Annotated[str, typer.Option(metavar="LIST", help=f"Comma-separated paths: {', '.join(PATHS)}.")]
BlockSize = Annotated[str, typer.Option("--bs", metavar="SIZE", help="Bytes of one request: 512, 4k, 64K, 1M.")]
IdeMode = Annotated[str, typer.Option(metavar="MODE", help=f"How the IDE emulator moves data: {', '.join(IDE_MODES)}.")]
ALL_PATHS = ",".join(PATHS)


def _version(wanted: bool) -> None:
    if wanted:
        emit(f"hvcore {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _words(words: list[str], sweep: str | None) -> tuple[str | None, list[str]]:
    """The image and the axes of `compare`: behind --sweep stand further axes."""
    axes = [sweep, *[word for word in words if is_axis(word)]] if sweep is not None else []
    images = [word for word in words if word not in axes]
    if len(images) > 1:
        raise OptionError("IMAGE", f"one image is compared at a time, not {', '.join(images)}")
    return (images[0] if images else None), axes


def _by_job(options: CompareOptions, file: "JobFile") -> CompareOptions:
    """What the job file says of the workload, the rest from the command line."""
    if len(file.jobs) != 1:
        raise OptionError("--job", f"compare runs one job, not {len(file.jobs)}; `hvcore load` runs several")
    if file.seconds is None:
        raise OptionError("--job", "compare needs a runtime: paths do not make the same number of requests in a time")
    job = file.jobs[0]
    return dataclasses.replace(
        options,
        image=job.image or options.image,
        format=job.format or options.format,
        sector_size=job.sector_size or options.sector_size,
        overwrite=job.overwrite or options.overwrite,
        ide_mode=job.ide_mode if job.ide_mode != "dma" else options.ide_mode,
        rw=job.workload.rw,
        block_size=job.workload.smallest,
        queue_depth=job.workload.queue_depth,
        load=job.workload,
        seconds=file.seconds,
        warm_up=file.warm_up,
        memory_bytes=max(file.memory_bytes, options.memory_bytes),
    )


@app.command()
def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Disk image; without one a temporary image is made."),
    ] = None,
    paths: Paths = ALL_PATHS,
    rw: Annotated[str, typer.Option(metavar="WORKLOAD", help=f"{', '.join(WORKLOADS)}.")] = "randread",
    bs: BlockSize = "4k",
    qd: Annotated[int, typer.Option(metavar="N", help="Requests in flight.")] = 1,
    runtime: Annotated[float, typer.Option(metavar="SECONDS", help="Measured time of each path.")] = 3.0,
    ide_mode: IdeMode = "dma",
    format: Format = None,
    sector_size: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES", help=f"{' or '.join(map(str, SECTOR_SIZES))}; by default the image's own, else 512."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="A writing workload may destroy IMAGE.")] = False,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Guest memory of the virtual machine.")] = "64M",
    read_percent: Annotated[
        float, typer.Option(metavar="PERCENT", help="Reads in randrw and rw; the rest are writes.")
    ] = READ_PERCENT,
    job: Annotated[
        str | None, typer.Option(metavar="FILE", help="Take the workload from a job file of one job.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS...",
            help="Measure each combination of bs=4k,64k qd=1,8,32 rw=... ide-mode=..., on paths=...",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure one workload on every path, side by side."""
    with reported():
        image, axes = _words(words or [], sweep)
        options = CompareOptions(
            image=image,
            paths=paths_option(paths),
            rw=rw,
            block_size=size_option("--bs", bs),
            queue_depth=qd,
            seconds=runtime,
            ide_mode=ide_mode,
            format=format,
            sector_size=sector_size,
            overwrite=overwrite,
            memory_bytes=size_option("--memory", memory),
            read_percent=read_percent,
        )
        if job is not None:
            if axes:
                raise OptionError("--sweep", "a job file says block size and queue depth; sweep without --job")
            from hvcore.report.job import read

            options = _by_job(options, read(job))
        if axes:
            _sweep(sweep_option(options, axes), json)
            return
        from hvcore.report import compare as work
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            result = work.compare(options, progress)
        if json:
            emit(result.to_json())
        else:
            from hvcore.report.table import comparison_table

            show(comparison_table(result))


def _sweep(combinations: list[CompareOptions], json: bool) -> None:
    from hvcore.report import sweep as work
    from hvcore.report.progress import terminal_progress

    with terminal_progress() as progress:
        result = work.sweep(combinations, progress)
    if json:
        emit(result.to_json())
    else:
        from hvcore.report.table import sweep_table

        show(sweep_table(result))


@app.command()
def load(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Job file in TOML.")],
    json: Json = False,
) -> None:
    """Run the jobs of a file, all at once, each on a disk of its own."""
    with reported():
        from hvcore.report.job import read

        jobs = read(file)
        from hvcore.report import load as work
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            result = work.load(jobs, progress)
        if json:
            emit(result.to_json())
        else:
            from hvcore.report.table import load_table

            show(load_table(result))
        if result.wrong is not None:
            raise Error(result.wrong)


@app.command()
def explain(
    image: Image = None,
    paths: Paths = ALL_PATHS,
    bs: BlockSize = "4k",
    count: Annotated[int, typer.Option(metavar="N", help="Traced requests on each path.")] = 1000,
    ide_mode: IdeMode = "dma",
    format: Format = None,
    json: Json = False,
) -> None:
    """Follow single reads along each path, step by step."""
    with reported():
        options = ExplainOptions(
            image=image,
            paths=paths_option(paths),
            block_size=size_option("--bs", bs),
            count=count,
            ide_mode=ide_mode,
            format=format,
        )
        from hvcore.report import explain as work
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            result = work.explain(options, progress)
        if json:
            emit(result.to_json())
        else:
            from hvcore.report.table import explanation_table

            show(explanation_table(result))


@app.command()
def serve(
    socket: Annotated[str, typer.Option(metavar="PATH", help="Control socket to listen on.")],
    allow_python_disks: Annotated[
        bool, typer.Option("--allow-python-disks", help="Run disks that are Python classes of a client.")
    ] = False,
) -> None:
    """Run a host in the foreground until it is told to stop."""
    with reported():
        from hvcore.partition import daemon

        daemon.serve(socket, allow_python_disks=allow_python_disks)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine allows and what follows from it."""
    with reported():
        from hvcore.report import doctor as work

        checks = work.examine()
        if json:
            from hvcore.report.model import dump

            emit(dump(work.to_dict(checks)))
        else:
            from hvcore.report.table import checks_table

            show(checks_table(checks))
        if not work.healthy(checks):
            raise typer.Exit(FAILED)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends the command as Ctrl-C does, so that everything it started is put away."""
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; without arguments it says what commands there are."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminate)
    # A file name of undecodable bytes, or a terminal that knows no "µ", must not break the answer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # typer exports no UsageError, and which package holds it depends on typer's version.
    usage_error = cast("type[Exception]", typer.BadParameter.__mro__[1])
    try:
        code: int | None = app(arguments or ["--help"], prog_name="hvcore", standalone_mode=False)
    except usage_error as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "hvcore"
        complain(f"{error.format_message()} (see {where} --help)")  # type: ignore[attr-defined]
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code or 0
