"""Atomic changes to the disk: everything that a run or a cache leaves behind is written through these functions.

A file is built under a name that begins with `.tmp-` and renamed when it is complete. A `.tmp-` name in a run's folder
was left by a process that died; `remove_leftovers` deletes it.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"
FOLDERS_CAN_BE_FLUSHED = hasattr(os, "O_DIRECTORY")  # not on Windows
ZEROS = bytes(2**20)


def beside(target: Path) -> Path:
    """The temporary name under which `target` is built."""
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: write beside it, flush to the disk, rename. A failure leaves the old file."""
    _replace(path, lambda made: made.write_text(text, encoding="utf-8"))


def copy(source: Path, target: Path) -> None:
    """Copy a file as atomically as `write_text` writes one."""
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
    """Wait until a file's content, or a folder's list of names, has reached the disk (fsync).

    Windows opens no folder: there a power cut may cost the last save. See `missing_promises`.
    """
    if not FOLDERS_CAN_BE_FLUSHED and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if FOLDERS_CAN_BE_FLUSHED else os.O_RDWR)  # as Windows wants it
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(file: BinaryIO, size: int) -> None:
    """Give a new file all its bytes now, so that a full disk shows here, and not as a crash while it is mapped."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, len(ZEROS)):  # macOS, Windows
        file.write(ZEROS[: size - start])
    file.flush()


def rename(source: Path, target: Path) -> None:
    """Rename atomically, replacing a file or link of that name; then wait until the new name has reached the disk."""
    source.replace(target)
    flush(target.parent)


def link(name: Path, target: str) -> None:
    """Point a symbolic link at `target` (relative) atomically: it is the old link or the new one, never missing.

    Where links may not be made, as by most users of Windows, it becomes a text file that holds the target's name.
    """
    made = beside(name)
    made.unlink(missing_ok=True)
    try:
        made.symlink_to(target)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT):
            raise
        write_text(name, target)
        return
    rename(made, name)


def linked(name: Path) -> str | None:
    """What `link` made `name` point at; None if it did not."""
    try:
        return str(name.readlink()) if name.is_symlink() else name.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def missing_promises(folder: Path) -> list[str]:
    """What this system cannot do for a run in `folder`, for people to read."""
    lines = [] if FOLDERS_CAN_BE_FLUSHED else ["a folder cannot be flushed here: a power cut may cost the last save"]
    probe = folder / f"{TEMPORARY}probe-{os.getpid()}"
    try:
        probe.symlink_to("target")
        probe.unlink()
    except (OSError, NotImplementedError):
        lines.append("links cannot be made here: `best` is a file that holds the best checkpoint's name")
    return lines


def remove(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that a kill halfway leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f"{TEMPORARY}removed-{folder.name}-{os.getpid()}")
    folder.rename(doomed)
    if doomed.is_symlink():
        doomed.unlink()  # what it points to is not the run's
    else:
        shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Delete what a dead process was building in a run's folder. The caller holds the folder's lock."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
