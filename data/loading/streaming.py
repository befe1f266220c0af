"""Data sets larger than the disk: read shard by shard while training, shuffled in a buffer, never stored.

The order is a function of (seed, epoch, process): `datasets` shuffles the shards, then the rows in a buffer, and gives
each process its own shards, or every n-th row where there are fewer shards than processes. A resume skips what was seen
without decoding it, up to the very same row. One thread reads ahead and several decode; their number changes nothing.
"""

import contextlib
import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import torch
from datasets.distributed import split_dataset_by_node

from data import DataError
from data.plan import Batch
from data.reading.content import shard_identity
from data.reading.decode import decode
from data.reading.splits import CONTENT

Row = tuple[int, dict, int]  # number in the stream of its process, image (bytes and path), class
AHEAD = 4  # batches read and decoded before they are asked for


@dataclass(frozen=True)
class Stream:
    """A split that is read while training."""

    name: str
    table: datasets.IterableDataset
    image_column: str  # bytes and path
    label_column: str  # index of a class
    samples: int | None

    def __len__(self) -> int:
        """Number of images; 0 if it is unknown."""
        return self.samples or 0

    def image_name(self, index: int) -> str:
        """What to call an image in a message."""
        return f"{self.name} image {index} of the stream"


@dataclass(frozen=True)
class Streams:
    """What a run trains and validates on."""

    dataset: str
    train: Stream
    validation: Stream
    label_names: list[str]
    files: dict[str, list[str]]  # by split
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Identity of the data: the class names, and the shards' names and what is known of their content, in order."""
        identities = self._identities
        unknown = sum(not known for _, known in identities.values())
        note = f"{unknown} shards have no checksum or ETag, so a change that keeps their size goes unnoticed"
        if unknown and note not in self.notes:
            self.notes.append(note)
        known = [identities[file][0] for _, found in sorted(self.files.items()) for file in found]
        return CONTENT + hashlib.blake2b(repr((self.old_fingerprint(), known)).encode(), digest_size=16).hexdigest()

    def validation_fingerprint(self) -> str:
        """The same of the validation images alone."""
        shards = [(file.rsplit("/", 1)[-1], self._identities[file][0]) for file in self.files["validation"]]
        return CONTENT + hashlib.blake2b(repr((self.label_names, shards)).encode(), digest_size=16).hexdigest()

    @cached_property
    def _identities(self) -> dict[str, tuple[str, bool]]:
        return {file: shard_identity(file) for found in self.files.values() for file in found}

    def old_fingerprint(self) -> str:
        """The same of runs that were started before content counted: names only."""
        names = {split: [file.rsplit("/", 1)[-1] for file in found] for split, found in self.files.items()}
        return hashlib.blake2b(repr((self.label_names, sorted(names.items()))).encode(), digest_size=16).hexdigest()


def shuffled_rows(stream: Stream, seed: int, buffer: int, rank: int, world: int) -> Iterator[Row]:
    """The rows of one process, epoch after epoch, endlessly."""
    # One shard at a time: to interleave several the library starts threads, which pause 5 s at the end of an epoch.
    shuffled = stream.table.shuffle(seed=seed, buffer_size=buffer, max_buffer_input_shards=1)
    table = split_dataset_by_node(shuffled, rank, world)
    numbers = itertools.count()
    for epoch in itertools.count():
        table.set_epoch(epoch)
        yielded = False
        for row in table:
            yielded = True
            yield next(numbers), row[stream.image_column], row[stream.label_column]
        if not yielded:
            raise DataError(f"the {stream.name} stream has no image for process {rank} of {world}")


def rows_in_order(stream: Stream, rank: int, world: int) -> Iterator[Row]:
    """Every `world`-th row once, for evaluation."""
    for number, row in itertools.islice(enumerate(stream.table), rank, None, world):
        yield number, row[stream.image_column], row[stream.label_column]


def batched(rows: Iterable[Row], size: int) -> Generator[list[Row], None, None]:
    """Lists of `size` rows; the last may be short."""
    rows = iter(rows)
    while some := list(itertools.islice(rows, size)):
        yield some


def stream_batches(
    groups: Generator[list[Row], None, None], resize: Callable[[torch.Tensor], torch.Tensor], threads: int
) -> Iterator[Batch]:
    """Batches of uint8 pixels, one per group of rows, in order; read by one thread, decoded by several.

    Raises:
        DataError: an image cannot be decoded (names it), or the storage cannot be read.
    """
    ready: queue.Queue[Future | BaseException | None] = queue.Queue(maxsize=AHEAD)
    stop = threading.Event()

    def read(pool: ThreadPoolExecutor) -> None:
        end: BaseException | None = None
        try:
            for group in groups:
                _put(ready, pool.submit(make_batch, group, resize), stop)
                if stop.is_set():
                    return
        except BaseException as error:  # raised where the next batch is asked for
            end = error
        finally:
            groups.close()  # and with it the files it reads
        _put(ready, end, stop)

    with ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        reader = threading.Thread(target=read, args=[pool], name="stream", daemon=True)
        reader.start()
        try:
            while isinstance(item := ready.get(), Future):
                yield item.result()
            if item is not None:
                raise item if isinstance(item, DataError) else DataError(_one_line(item)) from item
        finally:
            stop.set()
            with contextlib.suppress(queue.Empty):
                while True:
                    ready.get_nowait()
            reader.join()


def _put(ready: queue.Queue, item: object, stop: threading.Event) -> None:
    """Wait for room until `stop` is set: by then nobody takes items out."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(item, timeout=0.1)
            return


def _one_line(error: BaseException) -> str:
    return f"the stream cannot be read: {' '.join(str(error).split())[:300] or type(error).__name__}"


def _bytes_of(image: dict, name: str) -> bytes:
    if image.get("bytes") is not None:
        return image["bytes"]
    if image.get("path") is None:
        raise DataError(f"{name}: the row holds no image")
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from error


def make_batch(rows: list[Row], resize: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Decode and resize; DataError names an image that cannot be decoded."""
    images = []
    for number, image, _ in rows:
        image = image or {}
        name = image.get("path") or f"image {number} of the stream"
        images.append(resize(decode(_bytes_of(image, name), name)))
    return {
        "pixel_values": torch.stack(images),
        "labels": torch.tensor([label for *_, label in rows], dtype=torch.int64),
        "index": torch.tensor([number for number, *_ in rows], dtype=torch.int64),
    }
