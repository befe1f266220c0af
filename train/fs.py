"""Every lasting change that a run makes to the disk goes through these few calls."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace a file whole, or leave it as it was: written beside it, flushed to the disk, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        flush(beside)
        rename(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes with the same promise as `write_text`."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, beside)
        flush(beside)
        rename(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
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
    beside = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    beside.symlink_to(target)
    rename(beside, name)


def remove(folder: Path) -> None:
    """Delete a folder. Renamed first, so that a kill half-way leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f".tmp-removed-{folder.name}-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
