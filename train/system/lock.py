"""One process at a time per run folder."""

import fcntl
import os
from pathlib import Path
from typing import Self

from train.errors import ConfigError


class Lock:
    """One writer per run folder, for the length of a `with` block; the kernel releases it when the process dies."""

    def __init__(self) -> None:
        """Start without any folder."""
        self._descriptors: dict[Path, int] = {}

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
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"--output_dir {folder}: another process is writing in it; wait, or name another"
            ) from error
        self._descriptors[folder.resolve()] = descriptor
