"""SIGTERM and Ctrl-C: finish the update, save, print how to continue. A second signal ends the process at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from subprocess import Popen
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGTERM, signal.SIGINT)


def end_with_parent() -> None:
    """On Linux: get SIGTERM when the process that started this one ends, even by kill -9; elsewhere nothing happens."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of <linux/prctl.h>


class Interrupted(BaseException):
    """A signal asked the run to end. Not an Exception, so that no `except Exception` catches it on the way."""

    def __init__(self, number: int) -> None:
        """`number` is the signal's."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as shells count: 143 for SIGTERM, 130 for Ctrl-C


class Signals:
    """Signal handlers for the length of a `with` block.

    A signal raises Interrupted at once as long as there is nothing to lose. Inside `deferred()` it is only remembered:
    the loop asks after each update.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self._received: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}
        self._child: Popen | None = None

    def __enter__(self) -> Self:
        """Install the handlers, which Python allows in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        """Put the old handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Remember a signal in this block instead of raising Interrupted."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextlib.contextmanager
    def passed_to(self, child: Popen) -> Iterator[None]:
        """Send each signal to another process, too, which ends as this one does; also one that has just come."""
        self._child = child
        try:
            if self._received is not None:
                child.send_signal(self._received)
            yield
        finally:
            self._child = None

    def received(self) -> bool:
        """Whether a signal was received."""
        return self._received is not None

    @property
    def number(self) -> int:
        """The signal that was received; 0 if none was."""
        return self._received or 0

    def note(self, number: int) -> bool:
        """Treat a signal to another process of the run (0: none) as one to this; returns whether there was any."""
        self._received = self._received or number or None
        return self.received()

    def raise_received(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self._received is not None:
            raise Interrupted(self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._child is not None and sys.platform != "win32":  # there, a console signals both
            self._child.send_signal(number)
        if self._received is not None:
            os._exit(128 + number)  # the second one. Nothing is lost: checkpoints appear by a rename
        self._received = number
        if not self._deferred:
            raise Interrupted(number)
