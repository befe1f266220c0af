"""Lines for the person at the terminal."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

from train.distributed.env import rank
from train.system.streams import printable


def say(text: str) -> None:
    """Print one line above the progress bar; in several processes only rank 0 prints.

    A line break in it comes from somebody's name for a class or a file, and is shown as one.
    """
    if rank() == 0:
        tqdm.write(printable(text).replace("\n", "\\n"))
        sys.stdout.flush()


@contextlib.contextmanager
def data_only() -> Iterator[TextIO]:
    """Standard output, for data alone: while the block runs, all that is said goes to standard error."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield out
