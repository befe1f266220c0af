"""Splits: encoded images with their classes, and what identifies them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets

from data import DataError

DIGEST_SIZE = 16  # bytes
CONTENT = "content:"  # begins the fingerprints that all bytes count for; earlier ones have no such beginning


def content(data: bytes) -> bytes:
    """Digest of an encoded image."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


class ChangedError(DataError):
    """An image is not what it was when this start read it first."""


@dataclass(frozen=True)
class Split:
    """Images still encoded, with the class index of each. `table` has the column `image`: bytes and path."""

    name: str
    table: datasets.Dataset
    labels: list[int]
    rows: Sequence[int] | None = None  # of each image in the dataset's own split; None if they are all of it
    digests: bytes = b""  # `content` of each image, one after the other; empty if they have not been read yet

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image_name(self, index: int) -> str:
        """What to call an image in a message: its path where it has one, else its row."""
        path = (self.table[index]["image"] or {}).get("path")
        return path or f"{self.name} row {index if self.rows is None else self.rows[index]}"

    def image_names(self) -> list[str]:
        """The same of every image, without reading one."""
        rows = range(len(self)) if self.rows is None else self.rows
        return [path or f"{self.name} row {row}" for path, row in zip(self.paths(), rows, strict=True)]

    def counts(self, label_names: list[str], most: int = 20) -> str:
        """How many images each class has; of more than `most` classes only the range."""
        found = Counter(self.labels)
        if len(label_names) > most:
            return f"{min(found.values())} to {max(found.values())} images in each of {len(found)} classes"
        return ", ".join(f"{found[index]} {name}" for index, name in enumerate(label_names))

    def select(self, indices: list[int]) -> "Split":
        """The split with only these images, in this order."""
        rows = range(len(self)) if self.rows is None else self.rows
        labels = [self.labels[index] for index in indices]
        digests = b"".join(self.digest(index) for index in indices)
        return Split(self.name, self.table.select(indices), labels, [rows[index] for index in indices], digests)

    def digest(self, index: int) -> bytes:
        """`content` of one image as it was when the split was loaded; empty if that was not read."""
        return self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    def paths(self) -> list[str]:
        """The path of each image, "" where it has none; reads no image."""
        return [path or "" for path in self.table.flatten()["image.path"]]

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; DataError if its file cannot be read, or has changed since it was hashed."""
        data, digest = self._read(index), self.digest(index)
        if any(digest) and content(data) != digest:
            raise ChangedError(f"{self.image_name(index)}: has changed while this run was reading it; start again")
        return data

    def read_or_nothing(self, index: int) -> bytes:
        """The same; no bytes if they cannot be read."""
        try:
            return self._read(index)
        except DataError:
            return b""

    def _read(self, index: int) -> bytes:
        image = self.table[index]["image"]
        if image is None or image == {"bytes": None, "path": None}:
            raise DataError(f"{self.image_name(index)}: the row holds no image")
        if image["bytes"] is not None:
            return image["bytes"]
        try:
            return Path(image["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{image['path']}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Splits:
    """What a run trains and validates on."""

    dataset: str
    train: Split
    validation: Split
    label_names: list[str]
    notes: list[str] = field(default_factory=list)  # what was decided on the way, for people to read

    def fingerprint(self) -> str:
        """Identity of the data: class names, and each image's label, name and content, in order.

        Independent of where the data lies, so that a run resumes after a move.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self._identity(self.train, self.validation)

    def validation_fingerprint(self) -> str:
        """The same of the validation images alone: figures of two models can be compared only if it is equal."""
        return self._identity(self.validation)

    def _identity(self, *splits: Split) -> str:
        digest = hashlib.blake2b(repr(self.label_names).encode(), digest_size=16)
        for split in splits:
            for index, (path, label) in enumerate(zip(split.paths(), split.labels, strict=True)):
                bytes_digest = split.digest(index) or content(split.read_or_nothing(index))
                digest.update(repr((split.name, label, Path(path).name, bytes_digest)).encode())
        return CONTENT + digest.hexdigest()

    def old_fingerprint(self) -> str:
        """The same of runs that were started before all bytes counted: each image's size and last 64 bytes."""
        digest = hashlib.blake2b(repr(self.label_names).encode(), digest_size=16)
        for split in (self.train, self.validation):
            for row, label in zip(split.table, split.labels, strict=True):
                image = row["image"] or {"bytes": b"", "path": ""}
                data, path = image["bytes"], image["path"] or ""
                size, tail = (len(data), data[-64:]) if data is not None else _size_and_tail(path)
                digest.update(repr((split.name, label, Path(path).name, size, tail)).encode())
        return digest.hexdigest()


def check_classes(
    train: Split, validation: Split, label_names: list[str], dataset: str, trained_on: bool = True
) -> None:
    """Refuse data that cannot be trained or judged on.

    Raises:
        DataError: a split is empty, there is one class only, or two of the same name.
    """
    for split in (train, validation) if trained_on else (validation,):
        if len(split) == 0:
            raise DataError(f"--dataset {dataset}: the {split.name} split is empty")
    if len(set(label_names)) != len(label_names):
        raise DataError(f"--dataset {dataset}: two classes have the same name: {', '.join(label_names)}")
    if trained_on and len(set(train.labels)) < 2:
        only = label_names[train.labels[0]]
        raise DataError(f"--dataset {dataset}: every training image is '{only}'; two classes are needed")


def _size_and_tail(path: str) -> tuple[int, bytes]:
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 64))
            return size, file.read()
    except OSError:
        return -1, b""  # the check of all images names it, with the others
