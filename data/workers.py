"""Batches that survive their workers: one that dies or freezes is replaced, and no image is lost or repeated."""

import re
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from data import DataError
from data.loader import Batch

TRIES = 3  # without a batch in between


class WorkerError(Exception):
    """Workers failed again and again at the same place; the message says what to do."""


def resilient_batches(make_loader: Callable[[int], DataLoader], warn: Callable[[str], None]) -> Iterator[Batch]:
    """The batches of `make_loader(0)`; after a worker's death or silence, those of `make_loader(delivered)`.

    Args:
        make_loader: builds a loader that begins with the given batch.
        warn: told about each replacement.

    Raises:
        DataError: an image cannot be read or decoded; named.
        WorkerError: no batch came in 3 tries in a row.
    """
    delivered, failures = 0, 0
    while True:
        iterator, failed = iter(make_loader(delivered)), False
        has_workers = hasattr(iterator, "_workers")
        if has_workers:
            DEATHS.hold_back()
        try:
            while True:
                try:
                    batch = DEATHS.noticed_during(iterator) if has_workers else next(iterator)
                except StopIteration:
                    return
                yield batch
                delivered, failures = delivered + 1, 0
        except DataError as error:
            raise DataError(_last_line(error)) from error
        except RuntimeError as error:
            if not _is_worker_failure(error):
                raise
            failed, failures = True, failures + 1
            reason = str(error).splitlines()[0].rstrip(". ")
            if failures == TRIES:
                raise WorkerError(
                    f"the image workers failed {TRIES} times in a row: {reason}; --dataloader_num_workers 0 decodes in"
                    " the main process"
                ) from error
            warn(f"{reason}; the workers are replaced, and go on at the same image")
        finally:
            if has_workers:
                _end(iterator, failed)


class _Deaths:
    """Lets torch's SIGCHLD handler raise only while a batch is being fetched.

    By itself it raises in whatever the main thread is doing when a worker dies: between the update of the weights and
    that of the schedule, say, or in the middle of a save. Held back until the next fetch, it does no harm.
    """

    def __init__(self) -> None:
        self.torchs: Any = None
        self.fetching, self.pending = False, False

    def hold_back(self) -> None:
        """Take over from torch's handler, which the first iterator with workers installs."""
        current = signal.getsignal(signal.SIGCHLD)
        if callable(current) and current != self._handle:
            self.torchs = current
            signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.fetching and self.torchs:
            self.torchs(number, frame)
        else:
            self.pending = True

    def noticed_during(self, iterator: Iterator[Batch]) -> Batch:
        """The next batch, with torch's handler in force; what was held back is delivered first."""
        self.fetching = True
        try:
            if self.pending and self.torchs:
                self.pending = False
                self.torchs(signal.SIGCHLD, None)
            return next(iterator)
        finally:
            self.fetching = False


DEATHS = _Deaths()  # one, because a process has one handler for all its loaders


def _is_worker_failure(error: RuntimeError) -> bool:
    return "DataLoader worker" in str(error) or "DataLoader timed out" in str(error)


def _end(iterator: Any, failed: bool) -> None:
    """Let the workers go. A frozen one answers nothing but SIGKILL, and Python would wait for it at exit for ever."""
    if failed:
        _kill(iterator)
    iterator._shutdown_workers()  # also takes them off torch's list of processes that must not die
    _kill(iterator)


def _kill(iterator: Any) -> None:
    for process in iterator._workers:
        if process.is_alive():
            process.kill()
            process.join()


def _last_line(error: Exception) -> str:
    """A worker's error arrives with its traceback as text, whose last line is the message."""
    return re.sub(r"^[\w.]*Error: ", "", str(error).strip().splitlines()[-1])
