"""Lines for the person at the terminal."""

import sys

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
