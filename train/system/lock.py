"""One process at a time per run folder."""

from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from train.errors import ConfigError

LOCK = ".lock"  # in the run's folder


class Lock:
    """One writer per run folder, for the length of a `with` block; the system releases it when the process dies.

    Workers do not hold it: filelock closes a forked process's copy of the descriptor, and a spawned one has none.
    """

    def __init__(self) -> None:
        """Start without any folder."""
        self._locks: dict[Path, FileLock] = {}

    def __enter__(self) -> Self:
        """Lock nothing until `take`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release every folder."""
        while self._locks:
            self._locks.popitem()[1].release()

    def __contains__(self, folder: Path) -> bool:
        """Whether this lock holds the folder."""
        return folder.resolve() in self._locks

    def take(self, folder: Path) -> None:
        """Lock a folder, unless this lock holds it already.

        Raises:
            ConfigError: another process writes in it, or it cannot be locked.
        """
        if folder in self:
            return
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ConfigError(
                f"--output_dir {folder}: another process is writing in it; wait, or name another"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise ConfigError(f"--output_dir {folder}: cannot be locked: {error}") from error
        self._locks[folder.resolve()] = lock
