"""Fine-tune a Vision Transformer: the outline of a run. The loop itself is `fit` in train/loop.py."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from train.config.schema import Config
from train.distributed.env import check_environment, world_size
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from train.precision import Precision


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    0: done. 1: the run failed. 2: something it was given cannot be used. 130, 143: stopped by Ctrl-C, SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)

    def work(signals: Signals) -> None:
        with parsed(arguments) as config:
            if config.run.several:
                from train.recipes.series import train_series

                train_series(arguments, config, signals)  # each run calls this program again
            else:
                run(config, signals)

    return ended(arguments, work)


@contextmanager
def parsed(arguments: list[str]) -> Iterator[Config]:
    """The configuration. Under torchrun rank 0 parses it, and all processes are connected while the block runs."""
    from train.config.cli import parse

    check_environment()
    if world_size() == 1:
        yield parse(arguments)  # before torch is imported: a mistyped flag should not take seconds
        return
    from train.distributed.process_group import connected

    with connected(lambda: asdict(parse(arguments))) as document:
        yield Config.from_document(document)


def run(config: Config, signals: Signals, on_evaluation: Callable[[dict[str, float]], None] | None = None) -> None:
    """Build what the configuration asks for, train, and report; every rank gives `on_evaluation` the metrics."""
    gc.disable()  # while importing: it would walk through a million new objects again and again, for a second or more
    precision = check_early(config)
    # Imported only now: these take seconds, and a mistyped flag should not.
    from train.distributed.collectives import all_reduce_max
    from train.loop import fit
    from train.output import results
    from train.output.failures import explained
    from train.setup.inputs import load_inputs
    from train.setup.job import build_job
    from train.system.lock import Lock

    gc.enable()

    def should_stop() -> bool:  # a signal to one process stops all of them, at the same update
        return signals.note(all_reduce_max(signals.number))

    with Lock() as lock:
        inputs = load_inputs(config, precision, lock)
        if config.run.eval_only:
            results.print_evaluation(inputs.loaded, inputs.data, precision)
            return
        job = build_job(config, inputs, lock)
        job.output.on_evaluation = on_evaluation
        with job.output:
            # What a person can mend, such as NaN, memory or a full disk, becomes one line that says how.
            with explained(job.state, job.data, job.output.folder, config.recipe), signals.deferred():
                fit(job.state, job.data, config.recipe, job.output, should_stop)
                job.output.wait_for_save()
            with explained(job.state, job.data, job.output.folder, config.recipe):
                results.finish(config, job.decided, job.state, inputs.data, job.output, stopped=should_stop())
        signals.raise_received()


def check_early(config: Config) -> "Precision":
    """Refuse bad flags before anything slow is loaded, print what was decided, and set up the device."""
    from train.config.checks import check_flags, try_out

    notes = [*config.notes, *check_flags(config)]
    from train.precision import choose_compute
    from train.system.console import say

    for line in (f"preset {config.run.preset}: {config.preset_reason}", *notes):
        say(line)
    precision = choose_compute(config.run)
    try_out(config.recipe, precision.device)
    return precision


if __name__ == "__main__":
    sys.exit(main())
