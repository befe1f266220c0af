"""Fine-tune a Vision Transformer: the outline of a run. The loop itself is `fit` in train/loop.py."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from data import DataError
from data.addresses import without_secrets
from models import ModelError
from train.config.schema import Config
from train.distributed.env import check_environment, rank, world_size
from train.errors import ConfigError, LostProcessError, RunError, is_out_of_memory
from train.system.signals import Interrupted, Signals
from train.system.streams import printable, tolerant_streams

if TYPE_CHECKING:
    from train.precision import Precision


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    0: done. 1: the run failed. 2: something it was given cannot be used. 130, 143: stopped by Ctrl-C, SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)

    def work(signals: Signals) -> None:
        with parsed(arguments) as config:
            run(config, signals)

    return ended(arguments, work)


def ended(arguments: list[str], work: Callable[[Signals], None]) -> int:
    """The exit code of a command, as `main` describes it; an error that a person can mend is one line."""
    signals = Signals()
    with tolerant_streams():
        try:
            with signals:
                work(signals)
        except LostProcessError:
            return 1  # the process that failed has printed why
        except Interrupted as interrupted:
            print(f"stopped by {interrupted}", file=sys.stderr)
            return interrupted.exit_code
        except Exception as error:
            found = explanation(error)
            if signals.number and (found is None or isinstance(error, ImportError)):  # broke an import, say
                print(f"stopped by {Interrupted(signals.number)}", file=sys.stderr)
                return 128 + signals.number
            if found is None or "--debug" in arguments:
                sys.excepthook = _print_traceback
                raise
            text, code = found
            who = f"rank {rank()}: error:" if rank() else "error:"
            print(who, printable(without_secrets(" ".join(text.split()))), file=sys.stderr)  # one line
            return code
    return 0


def explanation(error: Exception) -> tuple[str, int] | None:
    """What to print for an error, and the exit code; None for one that nobody expected, which shows its traceback."""
    if isinstance(error, RunError):
        return str(error), 1
    if is_out_of_memory(error):
        return "out of memory; close other programs, or lower --per_device_train_batch_size or --cache_memory", 1
    if isinstance(error, ImportError):
        return f'a library cannot be loaded: {error}; install the package again: pip install -e "."', 1
    return (str(error), 2) if isinstance(error, ConfigError | DataError | ModelError | OSError) else None


def _print_traceback(*error: Any) -> None:
    """A traceback in which libraries' texts show no signed address."""
    print(without_secrets("".join(traceback.format_exception(*error))), end="", file=sys.stderr)


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


def run(config: Config, signals: Signals) -> None:
    """Build what the configuration asks for, train, and report."""
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
        with job.output:
            # What a person can mend, such as NaN, memory or a full disk, becomes one line that says how.
            with explained(job.state, job.data, job.output.folder, config.recipe), signals.deferred():
                fit(job.state, job.data, config.recipe, job.output, should_stop)
                job.output.wait_for_save()
            with explained(job.state, job.data, job.output.folder, config.recipe):
                results.finish(config, job.decided, job.state, job.data, job.output, stopped=should_stop())
        signals.raise_received()


def check_early(config: Config) -> "Precision":
    """Refuse bad flags before anything slow is loaded, print what was decided, and set up the device."""
    from train.config.checks import check_flags, try_out

    notes = check_flags(config)
    from train.precision import choose_compute
    from train.system.console import say

    for line in (f"preset {config.run.preset}: {config.preset_reason}", *notes):
        say(line)
    precision = choose_compute(config.run)
    try_out(config.recipe, precision.device)
    return precision


if __name__ == "__main__":
    sys.exit(main())
