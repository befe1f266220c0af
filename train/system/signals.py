"""SIGTERM and Ctrl-C: finish the update, save, say how to go on. A second signal ends the process at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A signal asked the run to end. No Exception, so that no `except Exception` on the way keeps it."""

    def __init__(self, number: int) -> None:
        """`number` is the signal's."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as shells count: 143 for SIGTERM, 130 for Ctrl-C


class Signals:
    """Handlers for the length of a `with` block.

    A signal raises Interrupted where it comes, while nothing is trained that could be lost. Inside `deferred()` it is
    only remembered: the loop asks after each update.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self._received: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over both signals, which Python allows in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A block in which a signal waits to be asked for."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    @property
    def number(self) -> int:
        """Of the signal that has come; 0 if none has."""
        return self._received or 0

    def note(self, number: int) -> bool:
        """Treat a signal to another process of the run, if there was one, as one to this; whether there is any."""
        self._received = self._received or number or None
        return self.received()

    def raise_received(self) -> None:
        """Raise Interrupted if one has."""
        if self._received is not None:
            raise Interrupted(self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(128 + number)  # the second one: at once. What is saved was renamed into place whole
        self._received = number
        if not self._deferred:
            raise Interrupted(number)
