"""A trace of a few updates, for chrome://tracing or Perfetto."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, supported_activities

from data.pipeline import DataPipeline
from data.plan import Batch, Plan
from train.system.console import say

FIRST, LAST = 3, 5  # updates after the start: the first two allocate, compile and fill queues


def profiled(data: DataPipeline, folder: Path) -> DataPipeline:
    """The same pipeline, with everything traced during a few updates after the start of training."""

    def train_batches(after: int) -> Iterator[Batch]:
        return traced(data.train_batches(after=after), data.plan, after, folder)

    return replace(data, train_batches=train_batches)


def traced(batches: Iterator[Batch], plan: Plan, start: int, folder: Path) -> Iterator[Batch]:
    """The same batches; updates FIRST to LAST are traced.

    The loop asks for a batch at the beginning of each update and nowhere else, so it needs to know nothing about this.

    Args:
        batches: the plan's micro-batches from update `start` on.
        plan: tells how many of them an update has.
        start: updates done before.
        folder: where `profile/trace.json` is written.
    """
    activities = set(supported_activities()) & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    profiler = profile(activities=activities, record_shapes=True)
    tracing = False
    try:
        for update in range(start + 1, plan.total_updates + 1):
            if update == start + FIRST:
                profiler.start()
                tracing = True
            elif update == start + LAST + 1:
                _write(profiler, folder)
                tracing = False
            for _ in range(plan.micro_batch_count(update)):
                yield next(batches)
    finally:  # the loop may stop asking before the last update to trace
        if tracing:
            _write(profiler, folder)


def _write(profiler: profile, folder: Path) -> None:
    profiler.stop()
    target = folder / "profile" / "trace.json"
    target.parent.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(target))
    say(f"profiler: traced updates into {target}")
