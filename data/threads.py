"""The same work for many items, on all cores."""

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from tqdm import tqdm

from data.cores import usable_cores

AT_ONCE = 64  # items queued for each thread; a million futures would fill the memory
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], shown: str, total: int | None = None
) -> Iterator[Result]:
    """`work(item)` for each item, in order, on all cores, ahead of whoever takes the results, with a progress bar.

    Threads suffice, because Pillow's decoders release Python's lock.

    Args:
        work: called in any thread.
        items: any number; at most AT_ONCE a thread are taken ahead.
        shown: beside the progress bar.
        total: number of items, if it is known.
    """
    waiting: deque[Future[Result]] = deque()
    items = iter(items)
    with tqdm(total=total, desc=shown, leave=False, disable=not sys.stderr.isatty()) as bar, _threads() as pool:
        waiting.extend(pool.submit(work, item) for item in islice(items, AT_ONCE * usable_cores()))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(items, 1))
            bar.update()
            yield result


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """One thread per core, each computing alone; Ctrl-C does not wait for what is queued."""
    inner = torch.get_num_threads()
    pool = ThreadPoolExecutor(usable_cores(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(inner)
