"""How a command ends: its exit code, and one line for an error that a person can mend."""

import sys
import traceback
from collections.abc import Callable
from typing import Any

from data import DataError
from data.addresses import without_secrets
from models import ModelError
from train.distributed.env import rank
from train.errors import ConfigError, LostProcessError, RunError, is_out_of_memory
from train.system.signals import Interrupted, Signals
from train.system.streams import printable, tolerant_streams


def ended(arguments: list[str], work: Callable[[Signals], None]) -> int:
    """The exit code of a command; an error that a person can mend becomes one line.

    0: done. 1: the run failed. 2: something it was given cannot be used. 130, 143: stopped by Ctrl-C, SIGTERM.

    Args:
        arguments: of the command line; with --debug errors keep their traceback.
        work: the command.
    """
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
        return (
            "out of memory; close other programs, or lower the batch size (or --cache_memory of a training)",
            1,
        )
    if isinstance(error, ImportError):
        return f'a library cannot be loaded: {error}; install the package again: pip install -e "."', 1
    return (str(error), 2) if isinstance(error, ConfigError | DataError | ModelError | OSError) else None


def _print_traceback(*error: Any) -> None:
    """A traceback in which libraries' texts show no signed address."""
    print(without_secrets("".join(traceback.format_exception(*error))), end="", file=sys.stderr)
