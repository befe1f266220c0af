"""A data set's name or folder -> a train and a validation split of encoded images, and one list of classes.

Classes are compared, and joined, by name, never by index.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import datasets
import torch

from data import DataError
from data.loading.streaming import Stream, Streams
from data.reading import leaves
from data.reading.columns import Labelled, UnlabelledError, find_column, undecoded
from data.reading.content import with_content
from data.reading.folders import SPLITS
from data.reading.names import composed
from data.reading.splits import Split, Splits, check_classes
from data.reading.tables import DatasetSpec, Found, choose_splits, find_data, find_split

BUILT_IN = "builtin:leaves"


class NoSuchSplitError(DataError):
    """The data set is sound, but does not have the split that was asked for."""


def load_splits(
    spec: DatasetSpec | str,
    *,
    validation_fraction: float = 0.15,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 42,
) -> Splits:
    """Load a dataset for image classification.

    Args:
        spec: the data set: `builtin:leaves`, a local folder (the Hub's parquet layout, or an image folder
            `train/CLASS/*.jpg`), an address of either, or the name of a dataset on the Hub.
        validation_fraction: share of `train` held out, stratified by class, if there is no validation split.
        max_train_samples: keep a seeded random subset of this many training images.
        max_eval_samples: the same for validation images.
        seed: of the hold-out and of the subsets.

    Raises:
        DataError: in one line, what is wrong with the name, the files, the columns, the classes or a split.
    """
    spec = DatasetSpec(spec) if isinstance(spec, str) else spec
    dataset = spec.dataset
    if dataset.startswith("builtin:"):
        return _built_in(dataset, max_train_samples, max_eval_samples, seed)
    data = find_data(spec)
    chosen = choose_splits(data.files, dataset, data.notes)
    found = {name: data.read(split) for name, split in chosen.items()}
    if "validation" not in found:
        found = _hold_out(found["train"], validation_fraction, seed, dataset, data.notes)
    label_names = found["train"].names
    splits = {name: _to_split(name, item, label_names, dataset, data.notes) for name, item in found.items()}
    train = _subset(splits["train"], max_train_samples, seed)
    validation = _subset(splits["validation"], max_eval_samples, seed)
    check_classes(train, validation, label_names, dataset)
    return with_content(Splits(dataset, train, validation, label_names, data.notes), spec.cache_dir)


def load_for_evaluation(
    spec: DatasetSpec | str,
    names: Sequence[str] = ("validation",),
    *,
    validation_fraction: float = 0.15,
    max_eval_samples: int | None = None,
    seed: int = 42,
    label_names: list[str] | None = None,
) -> Splits:
    """Load one split, to judge a trained model on. Nothing is read of the others, unless it is held out of `train`.

    Args:
        spec: as for `load_splits`, like `validation_fraction` and `seed`.
        names: of splits (train, validation, test): the first one that there is, and that has labels.
        validation_fraction: share of `train` held out, if `validation` is asked for and there is none.
        max_eval_samples: keep a seeded random subset of this many images, if it is `validation`.
        seed: of the hold-out and of the subset.
        label_names: the classes in the order of training; by default those that the split declares, or that its
            images have.

    Returns:
        That split as `validation`, under its own name, and an empty `train`.

    Raises:
        DataError: there is none of these splits; or as for `load_splits`.
    """
    spec = DatasetSpec(spec) if isinstance(spec, str) else spec
    if spec.dataset.startswith("builtin:"):
        return _built_in_for_evaluation(spec.dataset, names, max_eval_samples, seed)
    data = find_data(spec)
    name, item = _first_labelled(data, names, spec.dataset, validation_fraction, seed)
    label_names = label_names or item.names
    split = _to_split(name, item, label_names, spec.dataset, data.notes)
    split = _subset(split, max_eval_samples if name == "validation" else None, seed)
    return with_content(_alone(spec.dataset, split, label_names, data.notes), spec.cache_dir)


def _first_labelled(
    data: Found, names: Sequence[str], dataset: str, fraction: float, seed: int
) -> tuple[str, Labelled]:
    there = {name: split for name in SPLITS if (split := find_split(data.files, name))}
    held_out = "validation" not in there and "train" in there
    for name in names:
        try:
            if held_out and name != "test":
                return name, _hold_out(data.read(there["train"]), fraction, seed, dataset, data.notes)[name]
            if name in there:
                return name, data.read(there[name])
        except UnlabelledError:
            if name == names[-1]:
                raise
            data.notes.append(f"the {name} split has no labels, so nothing can be judged on it")
    raise NoSuchSplitError(
        f"--dataset {dataset}: has no {' or '.join(names)} split; it has {', '.join(sorted(data.files))}"
    )


def _alone(dataset: str, split: Split, label_names: list[str], notes: list[str]) -> Splits:
    nothing = replace(split.select([]), name="train" if split.name != "train" else "nothing")
    check_classes(nothing, split, label_names, dataset, trained_on=False)
    return Splits(dataset, nothing, split, label_names, notes)


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


def _built_in_for_evaluation(dataset: str, names: Sequence[str], most: int | None, seed: int) -> Splits:
    name = next((name for name in names if name in leaves.SIZES), None)
    if name is None:
        raise NoSuchSplitError(f"--dataset {dataset}: has no {' or '.join(names)} split; it has train, validation")
    of_it = {"train": 0, "validation": 0} | {name: most if name == "validation" else None}
    splits = _built_in(dataset, of_it["train"], of_it["validation"], seed)
    split = splits.train if name == "train" else splits.validation
    return _alone(dataset, split, splits.label_names, splits.notes)


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
    may_lack = not item.declared or name == "test"
    different = set(names) - set(label_names) if may_lack else set(names) ^ set(label_names)
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
