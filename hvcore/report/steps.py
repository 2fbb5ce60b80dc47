"""The numbered steps of each path, as `explain` prints them, and the trace hop that times each."""

from collections.abc import Mapping
from typing import NamedTuple

from hvcore.report.model import Step


class StepText(NamedTuple):
    text: str
    hop: str


class PathSteps(NamedTuple):
    steps: tuple[StepText, ...]
    way_back: tuple[StepText, ...]


_TO_THE_VSP = (
    StepText("application asks the child's storage stack", "submit"),
    StepText("the VSC puts the request on VMBus", "request"),
    StepText("VMBus delivers it to the VSP", "deliver"),
)
_TO_THE_APPLICATION = (
    StepText("the VSP puts the completion on VMBus", "complete"),
    StepText("VMBus delivers it to the VSC, the application has its answer", "answer"),
)

STEPS = {
    "local": PathSteps((StepText("application asks the storage stack in its own process", "media"),), ()),
    "synthetic": PathSteps(
        (*_TO_THE_VSP, StepText("the VSP has the parent's storage stack do it", "media")),
        _TO_THE_APPLICATION,
    ),
    "accelerated": PathSteps(
        (
            StepText("application asks the child's storage stack for the IDE disk", "submit"),
            StepText("the VSC puts the request on the IDE accelerator's channel of VMBus", "request"),
            StepText("VMBus delivers it to the VSP", "deliver"),
            StepText("the VSP has the parent's storage stack do it; the emulated twin takes no part", "media"),
        ),
        _TO_THE_APPLICATION,
    ),
    "trapped": PathSteps(
        (
            StepText("application asks the child's IDE driver", "submit"),
            StepText("each port access is intercepted by the hypervisor, which routes it to the worker", "intercept"),
            StepText("the worker's emulator answers it", "emulate"),
            StepText("the emulator has the parent's storage stack do the media access", "media"),
        ),
        (
            StepText("the emulator takes the data and raises its interrupt", "emulate_answer"),
            StepText("the driver is interrupted and goes on port by port; the application has its answer", "answer"),
        ),
    ),
    "emulated": PathSteps(
        (
            *_TO_THE_VSP,
            StepText("the VSP hands it to the IDE emulator in the worker, takes the emulated request back", "emulate"),
            StepText("the VSP has the storage stack do that", "media"),
        ),
        (
            StepText("the emulator takes the data, raises its interrupt and answers the VSP", "emulate_answer"),
            *_TO_THE_APPLICATION,
        ),
    ),
}


def timed_steps(
    path: str, hops: Mapping[str, tuple[int, int]], accesses: Mapping[str, float] | None = None
) -> tuple[list[Step], list[Step]]:
    """The steps and the way back of `path` with the (p50, p99) nanoseconds of each hop; a hop that is not in `hops` has
    none. accesses: of the hops that are sums."""
    forward, back = STEPS[path]
    numbered = []
    for number, (text, hop) in enumerate((*forward, *back), start=1):
        p50, p99 = hops.get(hop, (None, None))
        numbered.append(Step(number, text, hop, p50, p99, (accesses or {}).get(hop)))
    return numbered[: len(forward)], numbered[len(forward) :]
