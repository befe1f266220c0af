"""A data set's name or folder -> a train and a validation split of encoded images, and one list of classes.

Classes are compared, and joined, by name, never by index.
"""

from collections import Counter

import datasets
import torch

from data import DataError
from data.loading.streaming import Stream, Streams
from data.reading import leaves
from data.reading.columns import Labelled, find_column, undecoded
from data.reading.content import with_content
from data.reading.names import composed
from data.reading.splits import Split, Splits, check_classes
from data.reading.tables import DatasetSpec, choose_splits, find_data

BUILT_IN = "builtin:leaves"


def load_splits(
    spec: DatasetSpec | str,
    *,
    validation_fraction: float = 0.15,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 42,
    only_validation: bool = False,
) -> Splits:
    """Load a dataset for image classification.

    Args:
        spec: the data set: `builtin:leaves`, a local folder (the Hub's parquet layout, or an image folder
            `train/CLASS/*.jpg`), an address of either, or the name of a dataset on the Hub.
        validation_fraction: share of `train` held out, stratified by class, if there is no validation split.
        max_train_samples: keep a seeded random subset of this many training images.
        max_eval_samples: the same for validation images.
        seed: of the hold-out and of the subsets.
        only_validation: leave the train split empty, and read none of it where there is a validation split.

    Raises:
        DataError: in one line, what is wrong with the name, the files, the columns, the classes or a split.
    """
    spec = DatasetSpec(spec) if isinstance(spec, str) else spec
    dataset = spec.dataset
    if dataset.startswith("builtin:"):
        return _built_in(dataset, 0 if only_validation else max_train_samples, max_eval_samples, seed)
    data = find_data(spec)
    chosen = choose_splits(data.files, dataset, data.notes, need_train=not only_validation)
    if only_validation and "validation" in chosen:
        chosen.pop("train", None)
    found = {name: data.read(split) for name, split in chosen.items()}
    if "validation" not in found:
        found = _hold_out(found["train"], validation_fraction, seed, dataset, data.notes)
    if only_validation:
        found["train"] = _select(found["validation"], [])
    label_names = found["train"].names
    splits = {name: _to_split(name, item, label_names, dataset, data.notes) for name, item in found.items()}
    train = _subset(splits["train"], max_train_samples, seed)
    validation = _subset(splits["validation"], max_eval_samples, seed)
    check_classes(train, validation, label_names, dataset, trained_on=not only_validation)
    return with_content(Splits(dataset, train, validation, label_names, data.notes), spec.cache_dir)


def load_streams(spec: DatasetSpec | str) -> Streams:
    """The same for data sets that are read while training, and never stored.

    Raises:
        DataError: likewise; and if it has no validation split, or does not declare its classes, which could only be
            found by reading all of it.
    """
    spec = DatasetSpec(spec) if isinstance(spec, str) else spec
    dataset = spec.dataset
    if dataset.startswith("builtin:"):
        raise DataError(f"--streaming true: {dataset} is drawn, not read; name a folder, a Hub name or an address")
    data = find_data(spec)
    chosen = choose_splits(data.files, dataset, data.notes)
    if "validation" not in chosen:
        raise DataError(f"--dataset {dataset}: has no validation split, and none can be held out of a stream")
    streams, names = {}, {}
    for name, split in chosen.items():
        table = data.stream(split)
        table = table if table.features else table._resolve_features()
        image = find_column("image", table, dataset, spec.image_column)
        label = find_column("label", table, dataset, spec.label_column)
        feature = table.features[label]
        if not isinstance(feature, datasets.ClassLabel):
            raise DataError(f"--dataset {dataset}: column '{label}' declares no classes, which a stream must")
        names[name] = list(feature.names)
        table = table.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
        streams[name] = Stream(name, table, image, label, _count(table, name))
    if len(names["train"]) < 2:
        raise DataError(f"--dataset {dataset}: every image is '{names['train'][0]}'; two classes are needed")
    if names["train"] != names["validation"]:
        raise DataError(f"--dataset {dataset}: the classes of train and validation differ, or their order does")
    files = {name: data.files[split] for name, split in chosen.items()}
    return Streams(dataset, streams["train"], streams["validation"], names["train"], files, data.notes)


def _count(table: datasets.IterableDataset, name: str) -> int | None:
    known = (table.info.splits or {}).get(name)
    return known.num_examples or None if known else None


def _built_in(dataset: str, max_train: int | None, max_eval: int | None, seed: int) -> Splits:
    if dataset != BUILT_IN:
        raise DataError(f"--dataset {dataset}: the only built-in dataset is {BUILT_IN}")
    sizes = {"train": max_train, "validation": max_eval}
    tables = {name: leaves.table(name, seed, size) for name, size in sizes.items()}
    splits = {name: Split(name, undecoded(t, "image"), list(t["labels"])) for name, t in tables.items()}
    return Splits(dataset, splits["train"], splits["validation"], list(leaves.LABEL_NAMES))


def _hold_out(train: Labelled, fraction: float, seed: int, dataset: str, notes: list[str]) -> dict[str, Labelled]:
    """Take `fraction` of each class for validation, at least one image, but never all; a function of the seed."""
    order = torch.randperm(len(train.values), generator=torch.Generator().manual_seed(seed)).tolist()
    counts = Counter(train.values)
    quota = {label: min(count - 1, max(1, round(count * fraction))) for label, count in counts.items()}
    if not any(quota.values()):
        raise DataError(f"--dataset {dataset}: no validation split, and no class has the two images that one needs")
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


def _select(item: Labelled, rows: list[int]) -> Labelled:
    values = [item.values[row] for row in rows]
    return Labelled(item.table.select(rows), values, rows, item.names, item.declared)


def _to_split(name: str, item: Labelled, label_names: list[str], dataset: str, notes: list[str]) -> Split:
    """Number the classes as in training, joined by name, however its accents are stored."""
    as_trained = {composed(label): label for label in label_names}
    names = [as_trained.get(composed(label), label) for label in item.names]
    if other := [label for label, before in zip(names, item.names, strict=True) if label != before]:
        notes.append(f"joined: names whose accents {name} stores otherwise than train: {', '.join(other)}")
    different = set(names) ^ set(label_names) if item.declared else set(names) - set(label_names)
    if different:
        raise DataError(
            f"--dataset {dataset}: the classes of train and {name} differ in {', '.join(sorted(different))};"
            " both splits must have the same classes"
        )
    position = {label: index for index, label in enumerate(label_names)}
    return Split(name, item.table, [position[names[value]] for value in item.values], item.rows)


def _subset(split: Split, most: int | None, seed: int) -> Split:
    if most is None or most >= len(split):
        return split
    # Random rather than the first ones: published tables are often sorted by class.
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:most].sort().values.tolist()
    return split.select(rows)
