"""All files below a folder, on this machine or at an address. Names are literal; nothing is opened."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.utils.file_utils import hash_url_to_filename

from data import DataError
from data.reading.folders import is_hidden


@dataclass
class Listing:
    """Paths relative to the folder, with `/`."""

    files: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # pipes, devices, sockets, links to nothing
    linked: list[str] = field(default_factory=list)  # those of `files` that a link to a folder leads to
    empty: list[str] = field(default_factory=list)  # folders without any visible file or folder


def list_folder(root: Path, dataset: str) -> Listing:
    """List a folder of this machine; links are followed, hidden folders are not.

    Raises:
        DataError: a link leads back to a folder above it, a folder may not be read, or a name is not UTF-8.
    """
    found = Listing()
    stack = [(root, "", False, frozenset({_identity(root.stat())}))]
    while stack:
        folder, prefix, linked, above = stack.pop()
        try:
            entries = sorted((e for e in os.scandir(folder) if not is_hidden(e.name)), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"--dataset {dataset}: {folder}: cannot be read: {error.strerror}") from error
        found.empty += [] if entries else [prefix.rstrip("/")]
        for entry in entries:
            path = prefix + entry.name
            if not path.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path):
                raise DataError(f"--dataset {dataset}: {path!r}: the name is not UTF-8; rename it")
            try:
                status = entry.stat()
            except OSError:  # a link to nothing, or to itself
                found.unreadable.append(path)
                continue
            if stat.S_ISDIR(status.st_mode):
                if _identity(status) in above:
                    raise DataError(f"--dataset {dataset}: {path} is a link to a folder that contains it; remove it")
                by_link = linked or entry.is_symlink()
                stack.append((Path(entry.path), path + "/", by_link, above | {_identity(status)}))
            elif stat.S_ISREG(status.st_mode):
                found.files.append(path)
                found.linked += [path] if linked else []
            else:
                found.unreadable.append(path)
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def list_store(system: Any, root: str) -> dict[str, dict[str, Any]]:
    """Relative path -> what the store says of the file (fsspec's `info`), of all files below an address."""
    found = system.find(root, detail=True)
    below = root.rstrip("/") + "/"
    return {path.removeprefix(below): info for path, info in found.items() if path.startswith(below) and path != below}


def version(info: dict[str, Any]) -> str | None:
    """What a store says of a file's content: checksum, ETag or time of change; None if it tells the size alone."""
    keys = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime")
    return next((str(info[key]) for key in keys if info.get(key)), None)


def download(system: Any, infos: Sequence[dict[str, Any]], cache_dir: str | None) -> list[str]:
    """Local copies of a store's files, named by address and version; one without a version is always fetched again."""
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    # The names that `datasets` gives its copies, so that the identity of the data is that of earlier runs.
    copies = [folder / hash_url_to_filename(system.unstrip_protocol(i["name"]), etag=version(i)) for i in infos]
    parts = [
        (info["name"], copy, copy.with_name(f"{copy.name}.{os.getpid()}.incomplete"))
        for info, copy in zip(infos, copies, strict=True)
        if version(info) is None or not copy.exists()
    ]
    if parts:
        # Two lists: paths taken by the letter. One path would be read as a pattern.
        system.get([path for path, _, _ in parts], [str(part) for _, _, part in parts])
    for _, copy, part in parts:
        part.replace(copy)
    return list(map(str, copies))
