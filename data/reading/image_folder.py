"""An image folder, here or at an address -> the images of each split with their classes."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from data import DataError, shortened
from data.reading.columns import Labelled
from data.reading.folders import SPLIT_OF, TABLES, SplitFolder, arrange, ending, is_image
from data.reading.listing import Listing, download, version
from data.reading.metadata import in_order, match, read_table
from data.reading.names import in_two_forms, joined_note

HINTS = dict.fromkeys((".heic", ".heif"), "; convert them to JPEG")
Paths = Callable[[list[str]], list[str]]  # relative paths -> files on this machine


@dataclass(frozen=True)
class ImageFolder:
    """A folder whose files are known."""

    dataset: str
    splits: dict[str, SplitFolder]
    to_local: Paths
    notes: list[str]


def arrange_folder(
    dataset: str, found: Listing, named: dict[str, str], to_local: Paths, root: Path | None, notes: list[str]
) -> ImageFolder:
    """Apply the rule of folders.py to a listing, and say what is left out.

    Args:
        dataset: its name, for messages.
        found: its files.
        named: folder of each split, as flags name it.
        to_local: brings files to this machine.
        root: where they are, if they are on this machine already.
        notes: gets a line for each kind of file that is left out.
    """
    if needed := [p for p in found.unreadable if p.rpartition("/")[2] in TABLES or p.casefold() in SPLIT_OF]:
        raise DataError(f"--dataset {dataset}: {needed[0]} is a pipe, a device or a link to nothing; remove it")
    # What cannot be opened keeps its class for the moment, so that a class of nothing else does not vanish.
    splits, outside = arrange(found.files + [path for path in found.unreadable if is_image(path)], dataset, named)
    splits = {name: _without_unreadable(split, set(found.unreadable), dataset) for name, split in splits.items()}
    if found.unreadable:
        which = shortened(found.unreadable, 3)
        notes.append(f"left out: {len(found.unreadable)} pipes, devices, sockets or links to nothing: {which}")
    if found.empty:
        notes.append(f"empty folders: {shortened(sorted(found.empty), 5)}")
    if root is not None and found.linked:
        _refuse_shared(splits, found, root, dataset)
    _note_left_out(splits, outside, notes)
    return ImageFolder(dataset, splits, to_local, notes)


def read_split(folder: ImageFolder, name: str, image_column: str | None, label_column: str | None) -> Labelled:
    """The images of a split and the class of each.

    Raises:
        DataError: its table cannot be used.
    """
    split = folder.splits[name]
    if split.table is None:
        _refuse_columns(folder.dataset, image_column, label_column)
        images, labels = split.images, split.classes
        joined = in_two_forms(label for each in folder.splits.values() for label in each.classes)
    else:
        rows = _table_rows(folder, split, image_column, label_column)
        images, labels = [path for path, _ in rows], [label for _, label in rows]
        joined = in_two_forms(labels)
        if unlisted := sorted(set(split.images) - set(images)):
            folder.notes.append(f"left out: {len(unlisted)} images not in {split.table}: {shortened(unlisted, 3)}")
    if joined and joined_note(joined) not in folder.notes:
        folder.notes.append(joined_note(joined))
    labels = [joined.get(label, label) for label in labels]
    names = in_order(labels) if split.table else sorted(set(labels))
    position = {label: index for index, label in enumerate(names)}
    features = datasets.Features(image=datasets.Image(decode=False))
    table = datasets.Dataset.from_dict({"image": folder.to_local(images)}, features=features)
    return Labelled(
        table, [position[label] for label in labels], range(len(labels)), names, declared=split.table is None
    )


def _refuse_columns(dataset: str, image_column: str | None, label_column: str | None) -> None:
    """Class folders have the columns that `datasets` gives them, and no others to choose from."""
    for kind, named in (("image", image_column), ("label", label_column)):
        if named not in (None, kind):
            raise DataError(f"--{kind}_column_name {named}: {dataset} has folders of classes, and no table of columns")


def _table_rows(
    folder: ImageFolder, split: SplitFolder, image_column: str | None, label_column: str | None
) -> list[tuple[str, str]]:
    """(path, class) of the split's images, in the order of the table."""
    [table] = folder.to_local([split.table])
    where = split.table.rpartition("/")[0]
    name = f"--dataset {folder.dataset}: {split.table}"
    rows = read_table(Path(table), name, image_column, label_column, folder.notes)
    rows = [(f"{where}/{file}" if where else file, label) for file, label in rows]
    inside = split.prefix
    if not where and inside:  # the table of all splits
        others = tuple(other.prefix for other in folder.splits.values())
        if outside := [file for file, _ in rows if not file.startswith(others)]:
            raise DataError(f"{name}: {shortened(outside, 3)} is in none of the splits {', '.join(others)}")
        rows = [(file, label) for file, label in rows if file.startswith(inside)]
    return match(rows, split.images, name, folder.notes)


def _without_unreadable(split: SplitFolder, lost: set[str], dataset: str) -> SplitFolder:
    if not split.classes:
        return replace(split, images=[path for path in split.images if path not in lost])
    kept = [(path, label) for path, label in zip(split.images, split.classes, strict=True) if path not in lost]
    if vanished := sorted(set(split.classes) - {label for _, label in kept}):
        raise DataError(f"--dataset {dataset}: class {vanished[0]} holds no regular file, only pipes or broken links")
    return replace(split, images=[path for path, _ in kept], classes=[label for _, label in kept])


def _refuse_shared(splits: dict[str, SplitFolder], found: Listing, root: Path, dataset: str) -> None:
    """Two splits that links lead to the same file would validate on what was trained on."""
    linked, seen = set(found.linked), {}
    for name, split in splits.items():
        for path in split.images:
            real = (root / path).resolve() if path in linked else root / path
            before, other = seen.setdefault(str(real), (name, path))
            if before != name:
                raise DataError(f"--dataset {dataset}: {path} and {other} are the same file, in {name} and in {before}")


def _note_left_out(splits: dict[str, SplitFolder], outside: list[str], notes: list[str]) -> None:
    """One line per ending: how many files, and where."""
    where: dict[str, Counter[str]] = defaultdict(Counter)
    for split in splits.values():
        for path in split.left_out:
            first, slash, _ = path.removeprefix(split.prefix).partition("/")
            where[ending(path)][f"class {first}" if slash and not split.table else split.prefix or "the folder"] += 1
    for path in outside:
        where[ending(path)][path.partition("/")[0] if "/" in path else "the folder"] += 1
    for suffix, places in sorted(where.items()):
        reason = "in no split" if is_image(f"x{suffix}") else "not read as images"
        total = sum(places.values())
        where_from = f"{total} file{'s' if total > 1 else ''} in {shortened(sorted(places), 3)}"
        notes.append(f"left out: {suffix or 'no ending'}: {where_from}: {reason}{HINTS.get(suffix, '')}")


def downloads(system: Any, infos: dict[str, dict], cache_dir: str | None, notes: list[str]) -> Paths:
    """Relative paths at an address -> local copies."""
    if unknown := sum(version(info) is None for info in infos.values()):
        notes.append(f"{unknown} files have no checksum, ETag or time there: they are downloaded at every start")
    return lambda paths: download(system, [infos[path] for path in paths], cache_dir)


def paths_below(root: Path) -> Paths:
    """Relative paths below a local folder -> whole ones."""
    return lambda paths: [str(root / path) for path in paths]
