"""What torchrun tells a process in its environment. Without torchrun: one process, the first, never restarted."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def configured(parse: Callable[[], Any]) -> Iterator[Any]:
    """What `parse` makes of the command line; of several processes the first does so, and all are then connected."""
    if world_size() == 1:
        yield parse()  # before anything heavy is imported
        return
    from train.distributed import joined

    with joined(parse) as config:
        yield config


def rank() -> int:
    """Which process this is, over all machines; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes train together, over all machines."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1


def local_rank() -> int:
    """Which process this is on its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_restart() -> bool:
    """Whether torchrun has started this group of processes again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def may_restart() -> bool:
    """Whether torchrun would (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
