"""Every lasting change that a run makes to the disk goes through these few calls.

What is being made has a name that begins with `.tmp-` until it is whole; whatever carries such a name in a run's folder
was left by a process that died, and `remove_leftovers` takes it away.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp-"


def beside(target: Path) -> Path:
    """The temporary name under which `target` is made."""
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")


def write_text(path: Path, text: str) -> None:
    """Replace a file whole, or leave it as it was: written beside it, flushed to the disk, then renamed."""
    _replace(path, lambda made: made.write_text(text, encoding="utf-8"))


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes with the same promise as `write_text`."""
    _replace(target, lambda made: shutil.copyfile(source, made))


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    made = beside(path)
    try:
        make(made)
        flush(made)
        rename(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename atomically, over a file or link that is there; then wait until the new name is on the disk."""
    source.replace(target)
    flush(target.parent)


def link(name: Path, target: str) -> None:
    """Point a symbolic link at `target` (relative), atomically: at every moment it is the old one or the new one."""
    made = beside(name)
    made.unlink(missing_ok=True)
    made.symlink_to(target)
    rename(made, name)


def remove(folder: Path) -> None:
    """Delete a folder. Renamed first, so that a kill half-way leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f"{TEMPORARY}removed-{folder.name}-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Delete what a process that died was making in a run's folder, which must be locked."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
