"""Standard output and standard error that may go away: a closed pipe or terminal must not end hours of training."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

NOWHERE = Path(os.devnull)


class Tolerant:
    """A text stream; once it cannot be written any more, what is written to it is dropped."""

    def __init__(self, stream: TextIO | None, number: int) -> None:
        """Wrap a stream of this process; None is one that was closed before the program started.

        Args:
            stream: `sys.stdout` or `sys.stderr`.
            number: of its file descriptor, 1 or 2.
        """
        self.failure: Exception | None = None  # why the rest is dropped
        self._number = number
        # Python leaves the number free, and the next file that is opened would receive what C libraries print.
        self._stream = stream or NOWHERE.open("w", encoding="utf-8")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no error

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # a ValueError if it is closed
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush what has not been dropped."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)

    def _drop(self, error: Exception) -> None:
        self.failure = error
        with contextlib.suppress(OSError, ValueError):  # what is still in its buffer would fail once more at the exit
            if self._stream.fileno() == self._number:
                with NOWHERE.open("w") as nowhere:
                    os.dup2(nowhere.fileno(), self._number)
        self._stream = NOWHERE.open("w", encoding="utf-8")
        expected = isinstance(error, BrokenPipeError | ValueError)  # its reader has closed it
        if not expected and sys.stderr is not self:
            print(f"standard output cannot be written any more ({error}); the run goes on without it", file=sys.stderr)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Make both streams of this process tolerant while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Tolerant(sys.stdout, 1), Tolerant(sys.stderr, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def printable(text: str) -> str:
    """With control characters escaped: names of classes and files are others' text, and must not steer a terminal."""
    return re.sub(r"[^\n\t -~\xa0-\U0010ffff]|[\u200e\u200f\u202a-\u202e\u2066-\u2069]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
