"""Lines for the person at the terminal."""

import sys

from tqdm import tqdm

from train.distributed.env import rank
from train.system.streams import printable


def say(text: str) -> None:
    """Print one line above the progress bar; in several processes only rank 0 prints."""
    if rank() == 0:
        tqdm.write(printable(text).replace("\n", "\\n"))  # a class's name may hold one
        sys.stdout.flush()
