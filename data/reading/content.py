"""The content of images: a digest of all bytes of each, kept so that a second start reads no file again.

What is kept for a file counts as long as its size, times (of content and of inode) and inode are the same.
"""

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
from datasets import config as datasets_config

from data.reading.listing import version
from data.reading.splits import DIGEST_SIZE, Split, Splits, content
from data.threads import Item, in_threads

NOTHING = bytes(DIGEST_SIZE)  # of a file that cannot be read: the check of all images names it
# A file that changed so shortly before it was read may change again within the same tick of its file system's clock.
SETTLED = 2_000_000_000  # nanoseconds
ENDS = 2**20  # bytes at either end of a shard that is only streamed


def cache_folder(cache_dir: str | None) -> Path:
    """Where digests, results and prepared images are kept: beside the tables of `datasets`."""
    folder = Path(cache_dir) / "datasets" if cache_dir else Path(datasets_config.HF_DATASETS_CACHE)
    return folder / "plainloop"


def with_content(splits: Splits, cache_dir: str | None) -> Splits:
    """The splits with the digest of every image, which `Split.read` checks and `fingerprint` identifies them by."""
    with _digest_store(cache_folder(cache_dir) / "content.sqlite", splits.notes) as store:
        train, validation = (
            replace(split, digests=_digests(split, store)) for split in (splits.train, splits.validation)
        )
    return replace(splits, train=train, validation=validation)


@contextlib.contextmanager
def _digest_store(path: Path, notes: list[str]) -> Iterator[sqlite3.Connection]:
    """The digests of earlier starts; empty, and lost afterwards, where they cannot be kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store = _open(path)
    except (OSError, sqlite3.Error) as error:
        notes.append(f"digests of the images cannot be kept in {path.parent} ({error}): every start reads all of them")
        store = _open(":memory:")
    with contextlib.closing(store):
        yield store


def _open(path: Path | str) -> sqlite3.Connection:
    store = sqlite3.connect(path, timeout=60)
    table = "CREATE TABLE IF NOT EXISTS digests (name TEXT PRIMARY KEY, state TEXT, digest BLOB) WITHOUT ROWID"
    try:
        with store:
            store.execute(table)
    except sqlite3.DatabaseError as error:
        store.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        Path(path).unlink()  # damaged: only a cache
        return _open(path)
    return store


def _digests(split: Split, store: sqlite3.Connection) -> bytes:
    """DIGEST_SIZE bytes for each image of a split."""
    flat = split.table.flatten()
    outside = flat.data.column("image.bytes").null_count  # rows whose bytes are in a file
    if outside == len(flat.data):
        return b"".join(_of_files(list(flat["image.path"]), store))
    # Bytes inside the tables that `datasets` wrote: kept as one piece for these files, this column and these rows,
    # which its own fingerprint of a table stands for.
    files = [] if outside else [file["filename"] for file in split.table.cache_files]
    name = f"{files} {split.table._fingerprint}"
    state = " ".join(_state(file) or "" for file in files)
    found = _look_up([name], store).get(name) if files else None
    if found is not None and found[0] == state and len(found[1]) == len(split) * DIGEST_SIZE:
        return found[1]
    digests = b"".join(_hashed(lambda index: content(split.read_or_nothing(index)), range(len(split))))
    if files and _settled(files):
        _keep([(name, state, digests)], store)
    return digests


def _of_files(paths: Sequence[str | None], store: sqlite3.Connection) -> list[bytes]:
    states = {path: _state(path) for path in set(paths) if path}
    found = {path: digest for path, (state, digest) in _look_up(list(states), store).items() if state == states[path]}
    missing = [path for path, state in states.items() if path not in found and state]
    new = dict(zip(missing, _hashed(_of_file, missing), strict=True))
    # One that changed while it was read gets a digest that the next reader finds wrong, and is not kept.
    sure = [path for path in missing if _state(path) == states[path] and _settled([path]) and new[path] != NOTHING]
    _keep([(path, states[path], new[path]) for path in sure], store)
    digests = found | new
    return [digests.get(path or "", NOTHING) for path in paths]


def _of_file(path: str) -> bytes:
    try:
        return content(Path(path).read_bytes())
    except OSError:
        return NOTHING


def _state(path: str) -> str | None:
    """What changes when a file does; None if it is not there."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _settled(paths: Iterable[str]) -> bool:
    try:
        statuses = [Path(path).stat() for path in paths]
    except OSError:
        return False
    return max(max(s.st_mtime_ns, s.st_ctime_ns) for s in statuses) < time.time_ns() - SETTLED


def _look_up(names: Sequence[str], store: sqlite3.Connection) -> dict[str, tuple[str, bytes]]:
    found = {}
    with contextlib.suppress(sqlite3.Error):
        for first in range(0, len(names), 500):
            some = names[first : first + 500]
            marks = ",".join("?" * len(some))
            rows = store.execute(f"SELECT name, state, digest FROM digests WHERE name IN ({marks})", some)
            found |= {name: (state, bytes(digest)) for name, state, digest in rows}
    return found


def _keep(rows: Sequence[tuple[str, str | None, bytes]], store: sqlite3.Connection) -> None:
    """If it cannot be written, the next start only takes longer."""
    with contextlib.suppress(sqlite3.Error), store:
        store.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)


def _hashed(work: Callable[[Item], bytes], items: Sequence[Item]) -> Iterator[bytes]:
    return in_threads(work, items, "hashing images", len(items))  # hashing releases the lock


def shard_identity(address: str) -> tuple[str, bool]:
    """What identifies the content of a shard that is only streamed, and whether that is more than its size.

    The store's checksum or ETag; of a local file, its first and last mebibyte.
    """
    if "://" not in address:
        with Path(address).open("rb") as file:
            size, ends = file.seek(0, 2), hashlib.blake2b(digest_size=DIGEST_SIZE)
            for start in (0, max(0, size - ENDS)):
                file.seek(start)
                ends.update(file.read(ENDS))
        return f"{size} {ends.hexdigest()}", True
    system, path = fsspec.core.url_to_fs(address)
    info = system.info(path)
    return f"{info.get('size')} {version(info)}", version(info) is not None
