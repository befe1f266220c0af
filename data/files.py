"""Atomic changes to the disk: everything that a run or a cache leaves behind is written through these functions.

A file is built under a name that begins with `.tmp-` and renamed when it is complete. A `.tmp-` name in a run's folder
was left by a process that died; `remove_leftovers` deletes it. What an operating system or a disk cannot do is done in
another way here; `lost_promises` says what that costs.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

TEMPORARY = ".tmp-"
LOCK = ".lock"  # in a folder that cannot be locked itself
FAULTS = (errno.ENOSPC, errno.EIO, errno.EROFS)  # of a disk: no reason to take another way


def beside(target: Path) -> Path:
    """The temporary name under which `target` is built."""
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: write beside it, flush to the disk, rename. A failure leaves the old file."""
    _replace(path, lambda made: made.write_text(text, encoding="utf-8", newline="\n"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, atomically, when the block ends; a failure leaves the old one."""
    made = beside(path)
    try:
        with made.open("wb") as file:
            yield file
        flush(made)
        rename(made, path)
    finally:
        made.unlink(missing_ok=True)


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

    Windows opens no folder; there, nobody knows when a name has reached the disk.
    """
    if path.is_dir() and not _opens(path):
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only what it may write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opens(folder: Path) -> bool:
    """Whether folders can be opened here; PermissionError if only this one cannot, for lack of rights."""
    try:
        os.close(os.open(folder, os.O_RDONLY))
    except PermissionError:
        if not os.access(folder, os.R_OK):
            raise
        return False
    return True


def lost_promises(folder: Path) -> list[str]:
    """What cannot be promised for this folder that holds elsewhere, a line each; tried out, not guessed."""
    lost, probe = [], beside(folder / "probe")
    if not _opens(folder):
        lost.append("folders cannot be flushed to the disk here, so a power cut may cost the last save")
    try:
        if not _symlink(probe, "nothing"):
            lost.append("links cannot be made here, so `best` is a text file that names the best checkpoint")
    finally:
        probe.unlink(missing_ok=True)
    return lost


def lock(folder: Path) -> int | None:
    """A descriptor that keeps other processes from locking the folder until it is closed; None if one of them has."""
    descriptor = os.open(*((folder, os.O_RDONLY) if _opens(folder) else (folder / LOCK, os.O_RDWR | os.O_CREAT)))
    try:
        if lock_descriptor(descriptor, blocking=False):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextlib.contextmanager
def alone(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time in this block, by a lock on a file; calls `waiting` if another is in it.

    The lock ends with its process.
    """
    with path.open("a") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            waiting()
            lock_descriptor(file.fileno())
        yield


def reserve(file: BinaryIO, size: int) -> None:
    """Make a new file `size` bytes long, all of which have their place on the disk; OSError if it is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, 2**20):  # macOS, Windows
        file.write(bytes(min(2**20, size - start)))
    file.flush()


def rename(source: Path, target: Path) -> None:
    """Rename atomically, replacing a file or link of that name; then wait until the new name has reached the disk."""
    source.replace(target)
    flush(target.parent)


def link(name: Path, target: str) -> None:
    """Point a symbolic link at `target`, a name beside it, atomically: it is the old link or the new, never missing.

    Where there are no links, a text file holds the target's name; `linked` and `follow` read both.
    """
    made = beside(name)
    made.unlink(missing_ok=True)
    if _symlink(made, target):
        rename(made, name)
    else:
        write_text(name, f"{target}\n")


def _symlink(path: Path, target: str) -> bool:
    """False where links cannot be made: by the system, the rights that it asks for, or the kind of disk."""
    try:
        path.symlink_to(target)
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in FAULTS:
            raise
        return False
    return True


def linked(name: Path) -> str | None:
    """The target that `link` gave to `name`; None if there is none."""
    if name.is_symlink():
        return str(name.readlink())
    with contextlib.suppress(OSError):
        if name.is_file() and name.stat().st_size < 256:
            found = re.fullmatch(rb"(\w[\w.-]*)\r?\n?", name.read_bytes())
            return found[1].decode() if found else None
    return None


def follow(name: str) -> str:
    """The folder that a text file made by `link` names; any other name or address as it is."""
    path = Path(name)
    target = None if path.is_symlink() or path.is_dir() else linked(path)
    return str(path.with_name(target)) if target and path.with_name(target).is_dir() else name


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
