"""The rule of image folders: which split and which class every file belongs to. Paths in, splits out; nothing is read.

1. Hidden and system files and folders do not exist.
2. Only the first folder below the data set's own can be a split: one of the names in SPLITS, in any case, that holds
   class folders or a table. One that holds images itself is a class. If some first folders are splits, all that hold
   images must be, but for a `test` folder of images without classes, which nothing uses.
3. The class is the folder directly below the split, or below the data set if it has no splits. Deeper folders belong
   to it: `cat/cam1/1.jpg` is a cat.
4. A table, metadata.csv or metadata.jsonl, in a split or in the data set's own folder, replaces class folders.
5. Names are literal. What the rule cannot decide is refused; --train_dir and its like name the splits outright.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from data import DataError, shortened

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing", "holdout"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
TABLES = ("metadata.csv", "metadata.jsonl")
HIDDEN = {"__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
HIDDEN |= {"Thumbs.db", "desktop.ini", "Icon\r"}
# A folder of these alone is not a class that lost its images.
NOT_PICTURES = {
    ".txt",
    ".md",
    ".rst",
    ".json",
    ".xml",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".html",
    ".py",
    ".ipynb",
    ".sh",
}
NOT_PICTURES |= {".log", ".cfg", ".ini", ".toml", ".npy", ".npz", ".pkl", ".pt", ".db", ".zip", ".tar", ".gz", ""}
WAY_OUT = "name the folders with --train_dir, --validation_dir and --test_dir"


@dataclass(frozen=True)
class SplitFolder:
    """One split: its images in order, all paths relative to the data set's folder."""

    folder: str  # "" if the data set has no splits
    table: str | None  # names the class of each image; None if the folders do
    images: list[str]
    classes: list[str]  # of each image; empty if there is a table
    left_out: list[str]  # visible files that are neither images nor the table


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of ours."""
    return name.startswith(".") or name in HIDDEN


def is_image(path: str) -> bool:
    """Whether a path ends as images do, in any case."""
    return ending(path) in ImageFolder.EXTENSIONS


def ending(path: str) -> str:
    """`.jpg` of `a/B.JPG`."""
    return PurePosixPath(path).suffix.lower()


def arrange(paths: Iterable[str], dataset: str, named: dict[str, str]) -> tuple[dict[str, SplitFolder], list[str]]:
    """The splits of an image folder, and the files outside them.

    Args:
        paths: of all files, relative, with `/`.
        dataset: the folder's name, for messages.
        named: folder of each split as --train_dir and so on name it; empty to find them.

    Raises:
        DataError: the rule cannot decide; says what to do.
    """
    files = [path for path in paths if not any(map(is_hidden, path.split("/")))]
    folders = {folder.strip("/"): split for split, folder in named.items()} or _find_splits(files, dataset)
    splits: dict[str, SplitFolder] = {}
    for folder, split in folders.items():
        if split in splits:
            both = f"'{splits[split].folder}' and '{folder}'"
            raise DataError(f"--dataset {dataset}: {both} are both the {split} split; {WAY_OUT}")
        splits[split] = _split_folder(folder, files, dataset, named)
    used = [path for split in splits.values() for path in (*split.images, *split.left_out, split.table)]
    images = [path for split in splits.values() for path in split.images]
    if len(set(images)) != len(images):
        raise DataError(f"--dataset {dataset}: the folders of two splits overlap; each file may be in one split only")
    return splits, sorted(set(files) - set(used))


def _find_splits(files: list[str], dataset: str) -> dict[str, str]:
    """Folder -> split; {"": "train"} if no folder is one."""
    below = _by_first_folder(files)
    root_table = any(path in TABLES for path in files)
    holding = {name: rest for name, rest in below.items() if any(is_image(path) or path in TABLES for path in rest)}
    splits = {
        name: SPLIT_OF[name.casefold()]
        for name, rest in holding.items()
        if name.casefold() in SPLIT_OF and (root_table or _has_classes(rest) or any(path in TABLES for path in rest))
    }
    if not splits:
        _refuse_near_splits(holding, files, dataset)
        return {"": "train"}
    unlabelled = {name for name in holding if SPLIT_OF.get(name.casefold()) == "test" and name not in splits}
    if others := sorted(holding.keys() - splits.keys() - unlabelled):
        what = f"{shortened(sorted(splits), 5)} is named like a split and {shortened(others, 5)} is not"
        raise DataError(f"--dataset {dataset}: {what}, so it is not clear which are classes; {WAY_OUT}")
    return splits


def _by_first_folder(files: Iterable[str]) -> dict[str, list[str]]:
    below: dict[str, list[str]] = defaultdict(list)
    for path in files:
        first, slash, rest = path.partition("/")
        if slash:
            below[first].append(rest)
    return dict(below)


def _has_classes(paths: Iterable[str]) -> bool:
    return any("/" in path and is_image(path) for path in paths)


def _refuse_near_splits(holding: dict[str, list[str]], files: list[str], dataset: str) -> None:
    """Refuse `seg_train/CLASS/`, `train2017/CLASS/` and `ONLY_FOLDER/train/CLASS/`, read as classes by the letter."""
    for name, rest in sorted(holding.items()):
        of_folders = _has_classes(rest) and not any("/" not in path and is_image(path) for path in rest)
        if of_folders and SPLIT_OF.keys() & set(re.split("[^a-z]+", name.casefold())):
            raise DataError(f"--dataset {dataset}: the folder '{name}' may be a split or a class; {WAY_OUT}")
    if len(holding) == 1 and not any("/" not in path and is_image(path) for path in files):
        (name, rest), *_ = holding.items()
        inner = _by_first_folder(rest)
        if any(folder.casefold() in SPLIT_OF and _has_classes(inside) for folder, inside in inner.items()):
            raise DataError(f"--dataset {dataset}: the splits are one folder deeper; name {dataset}/{name}")


def _split_folder(folder: str, files: list[str], dataset: str, named: dict[str, str]) -> SplitFolder:
    prefix = "" if folder in ("", ".") else folder + "/"
    inside = [path for path in files if path.startswith(prefix)]
    own = [path for path in inside if path.removeprefix(prefix) in TABLES]
    root = [path for path in files if path in TABLES and path not in own]
    if len(own + root) > 1:
        raise DataError(f"--dataset {dataset}: {' and '.join(own + root)} both name classes; leave one")
    images = [path for path in inside if is_image(path)]
    # By path where splits are folders, by its parts where they are not: the order of all runs so far.
    images.sort(key=None if prefix else lambda path: tuple(path.split("/")))
    table = (own + root)[0] if own + root else None
    left_out = [path for path in inside if not is_image(path) and path != table]
    if deeper := [path for path in left_out if path.rsplit("/", 1)[-1] in TABLES]:
        raise DataError(f"--dataset {dataset}: {deeper[0]} is not read there; a table belongs in the split's folder")
    if table:
        return SplitFolder(folder, table, images, [], left_out)
    if strays := [path for path in images if "/" not in path.removeprefix(prefix)]:
        where = "SPLIT/CLASS/ or CLASS/" if named or not prefix else f"{folder}/CLASS/"
        raise DataError(
            f"--dataset {dataset}: {shortened(strays, 3)} is in no class folder; images belong in {where}, or in a"
            f" table metadata.csv with the columns file_name and label; or {WAY_OUT}"
        )
    classes = [path.removeprefix(prefix).split("/")[0] for path in images]
    _refuse_lost_classes(prefix, set(classes), left_out, dataset)
    return SplitFolder(folder, None, images, classes, left_out)


def _refuse_lost_classes(prefix: str, classes: set[str], left_out: Sequence[str], dataset: str) -> None:
    """A class whose every image has an ending that is not read would vanish."""
    for name, rest in sorted(_by_first_folder(path.removeprefix(prefix) for path in left_out).items()):
        endings = sorted({ending(path) for path in rest})
        if name not in classes and not NOT_PICTURES.issuperset(endings):
            raise DataError(
                f"--dataset {dataset}: class {name} would lose all its {len(rest)} files: {', '.join(endings)} is not"
                " read here; convert them to JPEG or PNG, or move the folder away"
            )
