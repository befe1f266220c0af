"""Batches that survive their workers: a worker that dies or freezes is replaced, and no image is lost or repeated."""

import contextlib
import math
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from data import DataError
from data.plan import Batch

TRIES = 3  # in a row, without a batch in between
SHARED_MEMORY, LEAST_SHARED = Path("/dev/shm"), 2**20
FULL = "; docker run --shm-size=1g gives a container more"


class WorkerError(Exception):
    """Workers failed repeatedly at the same place; the message says what to do."""


def resilient_batches(make_loader: Callable[[int], DataLoader], warn: Callable[[str], None]) -> Iterator[Batch]:
    """The batches of `make_loader(0)`, continued by `make_loader(delivered)` after a worker died or froze.

    Args:
        make_loader: builds a loader that starts at the given batch.
        warn: called at each replacement.

    Raises:
        DataError: an image cannot be read or decoded; names it.
        WorkerError: three tries in a row brought no batch.
    """
    delivered, failures = 0, 0
    while True:
        loader = make_loader(delivered)
        if loader.num_workers:
            _check_shared_memory()
        iterator, failed = iter(loader), False
        has_workers = loader.num_workers > 0
        if has_workers:
            DEATHS.hold_back()
        try:
            while True:
                try:
                    batch = DEATHS.noticed_during(iterator, loader.timeout) if has_workers else next(iterator)
                except StopIteration:
                    return
                yield batch
                delivered, failures = delivered + 1, 0
        except DataError as error:
            raise DataError(_last_line(error)) from error
        except (RuntimeError, OSError, EOFError) as error:
            if not has_workers or not _is_worker_failure(error):
                raise
            failed, failures = True, failures + 1
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
            if failures == TRIES:
                full = "No space left" in str(error) or "shared memory" in str(error)
                raise WorkerError(
                    f"the image workers failed {TRIES} times in a row: {reason}; --dataloader_num_workers 0 decodes in"
                    f" the main process{FULL if full else ''}"
                ) from error
            warn(f"{reason}; the workers are replaced and continue at the same image")
        finally:
            if has_workers:
                _end(iterator, failed)


def shared_memory_left() -> float:
    """Bytes free in /dev/shm, through which workers pass batches; infinite where there is no such place."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else math.inf


def _check_shared_memory() -> None:
    if shared_memory_left() < LEAST_SHARED:
        raise WorkerError(
            f"{SHARED_MEMORY} has {shared_memory_left() / 1024:.0f} kB left, too little for image workers;"
            f" --dataloader_num_workers 0 needs none{FULL}"
        )


class _Deaths:
    """Lets torch's SIGCHLD handler raise only while a batch is being fetched.

    Otherwise it raises wherever the main thread is when a worker dies: between the optimizer's step and the schedule's,
    say, or in the middle of a save. Held back until the next fetch, it does no harm.
    """

    def __init__(self) -> None:
        self.torchs: Any = None
        self.fetching, self.pending = False, False

    def hold_back(self) -> None:
        """Replace torch's handler, which the first iterator with workers installs."""
        if not hasattr(signal, "SIGCHLD"):  # Windows, where torch has no handler and asks its workers instead
            return
        current = signal.getsignal(signal.SIGCHLD)
        if callable(current) and current != self._handle:
            self.torchs = current
            signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.fetching and self.torchs:
            self.torchs(number, frame)
        else:
            self.pending = True

    def noticed_during(self, iterator: Iterator[Batch], seconds: float) -> Batch:
        """The next batch, with torch's handler active; what was held back is delivered first."""
        self.fetching = True
        try:
            if self.pending and self.torchs:
                self.pending = False
                self.torchs(signal.SIGCHLD, None)
            with _deadline(seconds):
                return next(iterator)
        finally:
            self.fetching = False


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Interrupt the block a second after the loader's own timeout should have.

    The loader's covers waiting for a batch, but not fetching its memory from the worker that made it: a worker that
    froze with a batch in the queue would hang the run forever. Windows has no such timer, and shares that memory by its
    name, without asking the worker.
    """
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not seconds or not able:
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise RuntimeError(f"DataLoader timed out after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


DEATHS = _Deaths()  # one, because a process has one handler for all its loaders


def _is_worker_failure(error: Exception) -> bool:
    """Whether a worker is to blame: its connection broke, or torch says so in a plain RuntimeError."""
    lost = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    return lost or "DataLoader worker" in str(error) or "DataLoader timed out" in str(error)


def _end(iterator: Any, failed: bool) -> None:
    """End the workers. A frozen one reacts to SIGKILL only, and Python would wait for it at exit forever."""
    if failed:
        _kill(iterator)
    iterator._shutdown_workers()  # also removes them from torch's list of processes that must not die
    _kill(iterator)


def _kill(iterator: Any) -> None:
    for process in iterator._workers:
        if process.is_alive():
            process.kill()
            process.join()


def _last_line(error: Exception) -> str:
    """The message of a worker's error, which arrives as the text of a traceback."""
    return re.sub(r"^[\w.]*Error: ", "", str(error).strip().splitlines()[-1])
