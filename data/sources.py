"""A dataset's name or folder -> a train and a validation split with undecoded images and one list of classes.

Classes are compared, and joined, by name, never by index.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import torch

from data import DataError, leaves
from data.streaming import Stream, Streams
from data.tables import read_tables

IMAGE_NAMES = ("image", "img", "pixel_values", "picture", "photo")
LABEL_NAMES = ("labels", "label", "class", "target", "fine_label", "category")
BUILT_IN = "builtin:leaves"


@dataclass(frozen=True)
class Split:
    """Images still encoded, with the class index of each. `table` has the column `image`: bytes and path."""

    name: str
    table: datasets.Dataset
    labels: list[int]
    rows: Sequence[int] | None = None  # of each image in the dataset's own split; None if they are all of it

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image_name(self, index: int) -> str:
        """What to call an image in a message: its path where it has one, else its row."""
        path = (self.table[index]["image"] or {}).get("path")
        return path or f"{self.name} row {index if self.rows is None else self.rows[index]}"

    def select(self, indices: list[int]) -> "Split":
        """The split with only these images, in this order."""
        rows = range(len(self)) if self.rows is None else self.rows
        labels = [self.labels[index] for index in indices]
        return Split(self.name, self.table.select(indices), labels, [rows[index] for index in indices])

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; DataError if its file cannot be read."""
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
        """Identity of the data: class names, and each image's label, name, size and last bytes, in order.

        Independent of where the data lies, so that a run resumes after a move; cheap (no decoding). The last
        64 bytes are entropy-coded pixels: re-encoding or editing an image changes them.
        """
        return self._fingerprint

    @cached_property  # it reads every row
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(repr(self.label_names).encode(), digest_size=16)
        for split in (self.train, self.validation):
            for row, label in zip(split.table, split.labels, strict=True):
                image = row["image"] or {"bytes": b"", "path": ""}
                data, path = image["bytes"], image["path"] or ""
                size, tail = (len(data), data[-64:]) if data is not None else _size_and_tail(path)
                digest.update(repr((split.name, label, Path(path).name, size, tail)).encode())
        return digest.hexdigest()


def load_splits(
    dataset: str,
    *,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    validation_fraction: float = 0.15,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 42,
    cache_dir: str | None = None,
    offline: bool = False,
) -> Splits:
    """Load a dataset for image classification.

    Args:
        dataset: `builtin:leaves`, a local folder (the Hub's parquet layout, or an image folder
            `train/CLASS/*.jpg`), or the name of a dataset on the Hub.
        config_name: which configuration, where the dataset has several.
        image_column: where the images are, when the column types do not tell.
        label_column: where the classes are, likewise.
        validation_fraction: share of `train` held out, stratified by class, if there is no validation split.
        max_train_samples: keep a seeded random subset of so many training images.
        max_eval_samples: the same for validation images.
        seed: of the hold-out and of the subsets.
        cache_dir: of the Hub's downloads, with `datasets`' prepared tables below it; None for their own places.
        offline: use what the Hub's local cache holds, and do not ask the network.

    Raises:
        DataError: in one line, what is wrong with the name, the files, the columns, the classes or a split.
    """
    if dataset.startswith("builtin:"):
        return _built_in(dataset, max_train_samples, max_eval_samples, seed)
    notes: list[str] = []
    tables, _ = read_tables(dataset, config_name, cache_dir, offline, notes)
    found = {name: _label(table, dataset, image_column, label_column) for name, table in tables.items()}
    if "validation" not in found:
        found = _hold_out(found["train"], validation_fraction, seed, notes)
    label_names = found["train"].names
    splits = {name: _to_split(name, item, label_names, dataset) for name, item in found.items()}
    train = _subset(splits["train"], max_train_samples, seed)
    validation = _subset(splits["validation"], max_eval_samples, seed)
    check_classes(train, validation, label_names, dataset)
    return Splits(dataset, train, validation, label_names, notes)


def load_streams(
    dataset: str,
    *,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
) -> Streams:
    """The same for data sets that are read while training, and never stored.

    Raises:
        DataError: likewise; and if it has no validation split, or does not declare its classes, which could only be
            found by reading all of it.
    """
    if dataset.startswith("builtin:"):
        raise DataError(f"--streaming true: {dataset} is drawn, not read; name a folder, a Hub name or an address")
    notes: list[str] = []
    tables, files = read_tables(dataset, config_name, cache_dir, offline, notes, streaming=True)
    if "validation" not in tables:
        raise DataError(f"--dataset {dataset}: has no validation split, and none can be held out of a stream")
    streams, names = {}, {}
    for name, table in tables.items():
        table = table if table.features else table._resolve_features()
        image, label = _image_column(table, dataset, image_column), _label_column(table, dataset, label_column)
        feature = table.features[label]
        if not isinstance(feature, datasets.ClassLabel):
            raise DataError(f"--dataset {dataset}: column '{label}' declares no classes, which a stream must")
        names[name] = list(feature.names)
        table = table.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
        streams[name] = Stream(name, table, image, label, _count(table, name))
    if names["train"] != names["validation"]:
        raise DataError(f"--dataset {dataset}: the classes of train and validation differ, or their order does")
    return Streams(dataset, streams["train"], streams["validation"], names["train"], files, notes)


def _count(table: datasets.IterableDataset, name: str) -> int | None:
    known = (table.info.splits or {}).get(name)
    return known.num_examples or None if known else None


def _built_in(dataset: str, max_train: int | None, max_eval: int | None, seed: int) -> Splits:
    if dataset != BUILT_IN:
        raise DataError(f"--dataset {dataset}: the only built-in dataset is {BUILT_IN}")
    sizes = {"train": max_train, "validation": max_eval}
    tables = {name: leaves.table(name, seed, size) for name, size in sizes.items()}
    splits = {name: Split(name, _undecoded(t, "image"), list(t["labels"])) for name, t in tables.items()}
    return Splits(dataset, splits["train"], splits["validation"], list(leaves.LABEL_NAMES))


# -- tables -> labelled tables -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labelled:
    table: datasets.Dataset  # column "image", undecoded
    values: list[int]  # indices into names
    rows: Sequence[int]
    names: list[str]
    declared: bool  # the names were declared (ClassLabel, folders), not merely seen in the rows


def _label(table: datasets.Dataset, dataset: str, image_column: str | None, label_column: str | None) -> _Labelled:
    image_column = _image_column(table, dataset, image_column)
    label_column = _label_column(table, dataset, label_column)
    values, feature = list(table[label_column]), table.features[label_column]
    missing = sum(value is None or value == -1 for value in values)
    if missing:  # -1 is the Hub's mark for "no label given", as in hidden test splits
        raise DataError(f"--dataset {dataset}: {missing} of {len(values)} rows have no value in '{label_column}'")
    undecoded = _undecoded(table, image_column)
    if isinstance(feature, datasets.ClassLabel):
        return _Labelled(undecoded, values, range(len(values)), list(feature.names), declared=True)
    names = [str(value) for value in sorted(set(values))]
    position = {name: index for index, name in enumerate(names)}
    numbered = [position[str(value)] for value in values]
    return _Labelled(undecoded, numbered, range(len(values)), names, declared=False)


def _undecoded(table: datasets.Dataset, image_column: str) -> datasets.Dataset:
    table = table.select_columns([image_column]).rename_columns(
        {image_column: "image"} if image_column != "image" else {}
    )
    return table.cast_column("image", datasets.Image(decode=False))


def _image_column(table: datasets.Dataset, dataset: str, named: str | None) -> str:
    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    likely = [name for name in IMAGE_NAMES if name in table.features and _holds_bytes(table.features[name])]
    column = _one_column("image", table, dataset, named, typed, IMAGE_NAMES, likely)
    if column not in typed and not _holds_bytes(table.features[column]):
        raise DataError(f"--dataset {dataset}: column '{column}' holds {table.features[column]}, not images")
    return column


def _label_column(table: datasets.Dataset, dataset: str, named: str | None) -> str:
    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    likely = [name for name in LABEL_NAMES if name in table.features and _holds_classes(table.features[name])]
    column = _one_column("label", table, dataset, named, typed, LABEL_NAMES, likely)
    if column not in typed and not _holds_classes(table.features[column]):
        raise DataError(f"--dataset {dataset}: column '{column}' holds {table.features[column]}, not one class a row")
    return column


def _holds_bytes(feature: object) -> bool:
    is_pair = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return is_pair or (isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary"))


def _holds_classes(feature: object) -> bool:
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "string", "large_string"))
    )


def _one_column(
    kind: str,
    table: datasets.Dataset,
    dataset: str,
    named: str | None,
    typed: list[str],
    usual: Iterable[str],
    likely: list[str],
) -> str:
    """The column that was named; else the only one of the right type; else the usual name among several."""
    columns = ", ".join(table.column_names)
    if named is not None:
        if named not in table.column_names:
            raise DataError(f"--{kind}_column_name {named}: {dataset} has no such column; it has {columns}")
        return named
    candidates = typed or likely[:1]
    if len(candidates) > 1:
        candidates = [name for name in usual if name in typed][:1] or typed
    if len(candidates) != 1:
        problem = "several columns could be" if candidates else "no column seems to be"
        raise DataError(
            f"--dataset {dataset}: {problem} the {kind}; name one with --{kind}_column_name; it has {columns}"
        )
    return candidates[0]


# -- labelled tables -> splits -----------------------------------------------------------------------------


def _hold_out(train: _Labelled, fraction: float, seed: int, notes: list[str]) -> dict[str, _Labelled]:
    """Take `fraction` of each class for validation, at least one image, but never all; a function of the seed."""
    order = torch.randperm(len(train.values), generator=torch.Generator().manual_seed(seed)).tolist()
    counts = Counter(train.values)
    quota = {label: min(count - 1, max(1, round(count * fraction))) for label, count in counts.items()}
    if not any(quota.values()):
        raise DataError("there is no validation split, and no class has the two images that holding one out needs")
    held: list[int] = []
    for index in order:
        if quota[train.values[index]] > 0:
            quota[train.values[index]] -= 1
            held.append(index)
    chosen = set(held)
    kept = [index for index in range(len(train.values)) if index not in chosen]
    notes.append(
        f"no validation split: {len(held)} of {len(train.values)} training images held out"
        f" ({fraction:.0%} of each class, seed {seed})"
    )
    return {"train": _select(train, kept), "validation": _select(train, sorted(held))}


def _select(item: _Labelled, rows: list[int]) -> _Labelled:
    values = [item.values[row] for row in rows]
    return _Labelled(item.table.select(rows), values, rows, item.names, item.declared)


def _to_split(name: str, item: _Labelled, label_names: list[str], dataset: str) -> Split:
    """Number the classes as in training, joined by name."""
    different = set(item.names) ^ set(label_names) if item.declared else set(item.names) - set(label_names)
    if different:
        raise DataError(
            f"--dataset {dataset}: the classes of train and {name} differ in {', '.join(sorted(different))};"
            " both splits must have the same classes"
        )
    position = {label: index for index, label in enumerate(label_names)}
    return Split(name, item.table, [position[item.names[value]] for value in item.values], item.rows)


def _subset(split: Split, most: int | None, seed: int) -> Split:
    if most is None or most >= len(split):
        return split
    # Random rather than the first ones: published tables are often sorted by class.
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:most].sort().values.tolist()
    return split.select(rows)


def check_classes(train: Split, validation: Split, label_names: list[str], dataset: str) -> None:
    """Refuse data that cannot be trained or judged on.

    Raises:
        DataError: a split is empty, there is one class only, or two of the same name.
    """
    for split in (train, validation):
        if len(split) == 0:
            raise DataError(f"--dataset {dataset}: the {split.name} split is empty")
    if len(set(label_names)) != len(label_names):
        raise DataError(f"--dataset {dataset}: two classes have the same name: {', '.join(label_names)}")
    if len(set(train.labels)) < 2:
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
