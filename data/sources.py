"""A dataset's name or folder -> a train and a validation split with undecoded images and one list of classes.

Reading is left to the `datasets` library, one split at a time: read together, splits whose class lists differ
would be cast onto the first one's *indices* without a word. Here they are compared, and joined, by name.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from data import DataError, leaves

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
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
    tables = _read_tables(dataset, config_name, cache_dir, offline, notes)
    found = {name: _label(table, dataset, image_column, label_column) for name, table in tables.items()}
    if "validation" not in found:
        found = _hold_out(found["train"], validation_fraction, seed, notes)
    label_names = found["train"].names
    splits = {name: _to_split(name, item, label_names, dataset) for name, item in found.items()}
    train = _subset(splits["train"], max_train_samples, seed)
    validation = _subset(splits["validation"], max_eval_samples, seed)
    check_classes(train, validation, label_names, dataset)
    return Splits(dataset, train, validation, label_names, notes)


def _built_in(dataset: str, max_train: int | None, max_eval: int | None, seed: int) -> Splits:
    if dataset != BUILT_IN:
        raise DataError(f"--dataset {dataset}: the only built-in dataset is {BUILT_IN}")
    sizes = {"train": max_train, "validation": max_eval}
    tables = {name: leaves.table(name, seed, size) for name, size in sizes.items()}
    splits = {name: Split(name, _undecoded(t, "image"), list(t["labels"])) for name, t in tables.items()}
    return Splits(dataset, splits["train"], splits["validation"], list(leaves.LABEL_NAMES))


# -- files -> tables ---------------------------------------------------------------------------------------


def _read_tables(
    dataset: str, config_name: str | None, cache_dir: str | None, offline: bool, notes: list[str]
) -> dict[str, datasets.Dataset]:
    """The tables of `train` and, where there is one, `validation`."""
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    source = dataset
    if Path(dataset).exists():
        _refuse_unusable_path(dataset)
        source = str(Path(dataset).resolve())
    elif _looks_like_a_path(dataset):
        raise DataError(f"--dataset {dataset}: there is no such folder")
    elif offline:
        source = _cached_snapshot(dataset, cache_dir)
    tables_dir = str(Path(cache_dir) / "datasets") if cache_dir else None
    try:
        builder = datasets.load_dataset_builder(source, config_name, cache_dir=tables_dir)
        files = {str(split): list(found) for split, found in (builder.config.data_files or {}).items()}
        if builder.name == "imagefolder":
            files = _by_folders(files, source)
            chosen = _choose_splits(files, dataset, notes)
            _check_depth({name: files[split] for name, split in chosen.items()}, dataset)
        else:
            chosen = _choose_splits(files, dataset, notes)
        options = {"drop_labels": False} if builder.name == "imagefolder" else {}
        tables = {
            name: datasets.load_dataset(
                builder.name,
                data_files={"train": files[split]},
                split="train",
                cache_dir=cache_dir,
                **options,
            )
            for name, split in chosen.items()
        }
        tables = {name: _as_declared(table, builder.info.features) for name, table in tables.items()}
    except DataError:
        raise
    except Exception as error:  # the library raises dozens of types, from ValueError to ArrowInvalid
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"--dataset {dataset}: cannot be loaded: {reason or type(error).__name__}") from error
    if builder.name == "imagefolder" and Path(source).is_dir():
        unused = sum(len(found) for split, found in files.items() if split not in chosen.values())
        _note_other_files(Path(source), sum(map(len, tables.values())) + unused, notes)
    return tables


def _looks_like_a_path(dataset: str) -> bool:
    return dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or dataset.endswith("/")


def _refuse_unusable_path(dataset: str) -> None:
    if not Path(dataset).is_dir():
        raise DataError(f"--dataset {dataset}: is a file; name the folder that holds train/ and validation/")
    if not any(path.is_file() for path in Path(dataset).rglob("*")):
        raise DataError(f"--dataset {dataset}: the folder holds no files")


def _cached_snapshot(dataset: str, cache_dir: str | None) -> str:
    try:
        return snapshot_download(dataset, repo_type="dataset", cache_dir=cache_dir, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError) as error:
        raise DataError(
            f"--dataset {dataset}: no such folder, and the Hub cannot be reached and its cache does not hold"
            " it; name a local folder, or train on the built-in leaves with --preset leaves"
        ) from error


def _choose_splits(files: dict[str, list[str]], dataset: str, notes: list[str]) -> dict[str, str]:
    """Which of the dataset's splits is `train`, and which, if any, is `validation`."""
    if "train" not in files:
        raise DataError(f"--dataset {dataset}: has no train split; it has {', '.join(sorted(files)) or 'none'}")
    chosen = {"train": "train"}
    if validation := [name for name in VALIDATION_NAMES if name in files]:
        chosen["validation"] = validation[0]
    unused = sorted(set(files) - set(chosen.values()))
    if unused:
        notes.append(f"splits not used: {', '.join(unused)}")
    return chosen


def _check_depth(files: dict[str, list[str]], dataset: str) -> None:
    """An image beside the class folders would found a class of its own, named like the folder above them."""
    images = [file for found in files.values() for file in found if Path(file).suffix.lower() in ImageFolder.EXTENSIONS]
    has_table = any(Path(file).name in ImageFolder.METADATA_FILENAMES for found in files.values() for file in found)
    depths = Counter(file.count("/") for file in images)
    if len(depths) > 1 and not has_table:
        stray = next(file for file in images if file.count("/") != depths.most_common(1)[0][0])
        raise DataError(f"--dataset {dataset}: {stray} is not as deep as the others; images belong in SPLIT/CLASS/")


def _as_declared(table: datasets.Dataset, declared: datasets.Features | None) -> datasets.Dataset:
    """A dataset's card may name the classes of a column that its files store as plain numbers."""
    for name, feature in (declared or {}).items():
        if isinstance(feature, datasets.ClassLabel | datasets.Image) and isinstance(
            table.features.get(name), datasets.Value | dict
        ):
            table = table.cast_column(name, feature)
    return table


def _note_other_files(folder: Path, used: int, notes: list[str]) -> None:
    """An image folder's loader passes over files whose ending it does not know; say how many."""
    others = sum(path.name not in ImageFolder.METADATA_FILENAMES for path in _files_in(folder)) - used
    if others > 0:
        notes.append(f"{others} files in {folder} are no images, or named in no table, and are not used")


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _by_folders(files: dict[str, list[str]], source: str) -> dict[str, list[str]]:
    """Where no folder is named like a split, all is one: `datasets` would take `train_1.jpg` for a split's name."""
    folder, names = Path(source), {"train", "test", *VALIDATION_NAMES}
    if not folder.is_dir() or any(path.is_dir() and path.name in names for path in folder.rglob("*")):
        return files
    return {"train": [str(path) for path in _files_in(folder)]}


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
