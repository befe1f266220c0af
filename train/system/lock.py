"""One process at a time per run folder."""

import os
import weakref
from pathlib import Path
from typing import Self

from data import files
from train.errors import ConfigError


class Lock:
    """One writer per run folder, for the length of a `with` block; the kernel releases it when the process dies.

    The kernel counts copies of the descriptor, and a forked worker has one: it closes it at once, or a worker that
    outlives a killed run would keep the folder locked.
    """

    def __init__(self) -> None:
        """Start without any folder."""
        self._descriptors: dict[Path, int] = {}
        _LOCKS.add(self)

    def __enter__(self) -> Self:
        """Lock nothing until `take`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release every folder."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __contains__(self, folder: Path) -> bool:
        """Whether this lock holds the folder."""
        return folder.resolve() in self._descriptors

    def take(self, folder: Path) -> None:
        """Lock a folder, unless this lock holds it already.

        Raises:
            ConfigError: another process writes in it.
        """
        if folder in self:
            return
        descriptor = files.lock(folder)
        if descriptor is None:
            raise ConfigError(f"--output_dir {folder}: another process is writing in it; wait, or name another")
        self._descriptors[folder.resolve()] = descriptor


def _let_go() -> None:
    for lock in _LOCKS:
        lock.__exit__()


_LOCKS: weakref.WeakSet[Lock] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # Windows forks no process
    os.register_at_fork(after_in_child=_let_go)
