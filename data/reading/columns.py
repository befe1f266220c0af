"""Which column of a table holds the images and which the classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets

from data import DataError
from data.reading.names import in_two_forms

IMAGE_NAMES = ("image", "img", "pixel_values", "picture", "photo")
LABEL_NAMES = ("labels", "label", "class", "target", "fine_label", "category")


class UnlabelledError(DataError):
    """No row of a split has a class, as in hidden test splits on the Hub."""


@dataclass(frozen=True)
class Labelled:
    """A table of images with the class of each."""

    table: datasets.Dataset  # column "image", undecoded
    values: list[int]  # indices into names
    rows: Sequence[int]
    names: list[str]
    declared: bool  # the names were declared (ClassLabel, folders), not merely seen in the rows


def read_labels(table: datasets.Dataset, dataset: str, image_column: str | None, label_column: str | None) -> Labelled:
    """Find both columns and number the classes: as declared, or sorted by name.

    Raises:
        DataError: a column cannot be found, or rows have no class (UnlabelledError: none has).
    """
    image_column = find_column("image", table, dataset, image_column)
    label_column = find_column("label", table, dataset, label_column)
    values, feature = list(table[label_column]), table.features[label_column]
    missing = sum(value is None or value in (-1, "") for value in values)
    if missing:  # -1 is the Hub's mark for "no label given", as in hidden test splits
        kind = UnlabelledError if missing == len(values) else DataError
        raise kind(f"--dataset {dataset}: {missing} of {len(values)} rows have no value in '{label_column}'")
    images = undecoded(table, image_column)
    if isinstance(feature, datasets.ClassLabel):
        return Labelled(images, values, range(len(values)), list(feature.names), declared=True)
    joined = in_two_forms(map(str, set(values)))
    names = list(dict.fromkeys(joined.get(str(value), str(value)) for value in sorted(set(values))))
    position = {name: index for index, name in enumerate(names)}
    numbered = [position[joined.get(str(value), str(value))] for value in values]
    return Labelled(images, numbered, range(len(values)), names, declared=False)


def undecoded(table: datasets.Dataset, image_column: str) -> datasets.Dataset:
    """The table with one column, `image`: encoded bytes and path."""
    table = table.select_columns([image_column]).rename_columns(
        {image_column: "image"} if image_column != "image" else {}
    )
    return table.cast_column("image", datasets.Image(decode=False))


def find_column(kind: str, table: datasets.Dataset, dataset: str, named: str | None) -> str:
    """The column of the images or classes: the one named; else the only one of the right type; else the usual name.

    Args:
        kind: `image` or `label`.
        table: to look in.
        dataset: its name, for messages.
        named: by --image_column_name or --label_column_name.

    Raises:
        DataError: there is no such column, or it is not clear which one it is.
    """
    feature_type, holds, usual, content = KINDS[kind]
    columns = ", ".join(table.column_names)
    if named is not None and named not in table.column_names:
        raise DataError(f"--{kind}_column_name {named}: {dataset} has no such column; it has {columns}")
    typed = [name for name, feature in table.features.items() if isinstance(feature, feature_type)]
    found = [named] if named is not None else typed
    if not found:
        found = [name for name in usual if name in table.features and holds(table.features[name])][:1]
    elif len(found) > 1:
        found = [name for name in usual if name in typed][:1] or typed
    if len(found) != 1:
        problem = "several columns could be" if found else "no column seems to be"
        raise DataError(
            f"--dataset {dataset}: {problem} the {kind}; name one with --{kind}_column_name; it has {columns}"
        )
    if found[0] not in typed and not holds(table.features[found[0]]):
        raise DataError(f"--dataset {dataset}: column '{found[0]}' holds {table.features[found[0]]}, not {content}")
    return found[0]


def _holds_bytes(feature: object) -> bool:
    is_pair = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return is_pair or (isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary"))


def _holds_classes(feature: object) -> bool:
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "string", "large_string"))
    )


KINDS = {
    "image": (datasets.Image, _holds_bytes, IMAGE_NAMES, "images"),
    "label": (datasets.ClassLabel, _holds_classes, LABEL_NAMES, "one class per row"),
}
