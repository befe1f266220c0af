"""The images that a command was told to use: files by name, and all images in folders."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.reading.folders import is_hidden, is_image
from train.errors import ConfigError

MOST_NAMED = 3


@dataclass
class ImageFiles:
    """The images, in order, and what was left out on the way, which is known once all are read."""

    named: Sequence[str]
    left_out: list[str] = field(default_factory=list)  # the first files in folders that are no images by their ending
    left_out_count: int = 0

    def __iter__(self) -> Iterator[str]:
        """Each path. Only one folder's names are held at a time, so any number of files fits in memory."""
        for name in self.named:
            if Path(name).is_dir():
                yield from self._below(name, frozenset())
            else:
                yield name

    def _below(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        """The images in a folder and the folders in it, by name; links are followed, hidden names are not read."""
        above = above | {_identity(folder)}
        try:
            entries = sorted((e for e in os.scandir(folder) if not is_hidden(e.name)), key=lambda entry: entry.name)
        except OSError:
            yield folder  # reading it says why
            return
        for entry in entries:
            if not Path(entry.path).is_dir():
                if is_image(entry.name):
                    yield entry.path
                    continue
                self.left_out_count += 1
                self.left_out += [entry.path] if len(self.left_out) < MOST_NAMED else []
            elif _identity(entry.path) in above:
                yield entry.path  # a link to a folder that contains it, which reading says
            else:
                yield from self._below(entry.path, above)


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def check_named(named: Sequence[str]) -> None:
    """Refuse names of nothing, before anything slow happens.

    Raises:
        ConfigError: names the first.
    """
    if not named:
        raise ConfigError("name images, or folders of images")
    for name in named:
        if "://" in name:
            raise ConfigError(f"{name}: addresses are not read here; copy the images to a folder first")
        if not os.path.lexists(name):
            raise ConfigError(f"{name}: there is no such file or folder")


def read_image(path: str) -> bytes:
    """The bytes of a file; OSError, with a reason, for what is no ordinary file: reading a pipe would wait forever."""
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # the system's own reason, if it has one
        raise OSError(0, "is a folder inside itself, by a link")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "is no ordinary file")
    return Path(path).read_bytes()
