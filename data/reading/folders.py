"""The rule of image folders: which split and which class every file belongs to. Paths in, splits out; nothing is read.

1. Hidden and system files and folders do not exist.
2. Only the first folder below the data set's own can be a split: one of the names in SPLITS, in any case, that holds
   class folders or a table. One that holds images itself is a class. If some first folders are splits, all that hold
   images must be, but for a `test` folder of images without classes, which nothing uses. If all first folders are
   named like splits and hold images themselves, none of them names a class, and the data set is refused.
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

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder as HubImageFolder

from data import DataError, shortened

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing", "holdout"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
IMAGE_ENDINGS = frozenset(HubImageFolder.EXTENSIONS)  # as `datasets` reads them
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
NOT_PICTURES |= {".log", ".cfg", ".ini", ".toml", ".pkl", ".pt", ".db", ".zip", ".tar"}
OVERLAP = "--dataset {}: the folders of two splits overlap; each file may be in one split only"
OR_TABLE = "images belong in class folders, or in a table metadata.csv with the columns file_name and label"
WAY_OUT = "name the folders with --train_dir, --validation_dir and --test_dir"


@dataclass(frozen=True)
class SplitFolder:
    """One split: its images in order, all paths relative to the data set's folder."""

    folder: str  # "" if the data set is one split
    table: str | None  # names the class of each image; None if the folders do
    images: list[str]
    classes: list[str]  # of each image; empty if there is a table
    left_out: list[str]  # visible files that are neither images nor the table

    @property
    def prefix(self) -> str:
        """Begins the path of every file of the split."""
        return _prefix(self.folder)


def _prefix(folder: str) -> str:
    return f"{folder}/" if folder else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of ours."""
    return name.startswith(".") or name in HIDDEN


def is_image(path: str) -> bool:
    """Whether a path ends as images do, in any case."""
    return ending(path) in IMAGE_ENDINGS


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
    folders = _named_folders(named, files, dataset) if named else _find_splits(files, dataset)
    splits: dict[str, SplitFolder] = {}
    for folder, split in folders.items():
        if split in splits:
            both = f"'{splits[split].folder}' and '{folder}'"
            raise DataError(f"--dataset {dataset}: {both} are both the {split} split; {WAY_OUT}")
        splits[split] = _split_folder(folder, files, dataset, named)
    used = [path for split in splits.values() for path in (*split.images, *split.left_out, split.table)]
    images = [path for split in splits.values() for path in split.images]
    if len(set(images)) != len(images):
        raise DataError(OVERLAP.format(dataset))
    return splits, sorted(set(files) - set(used))


def _named_folders(named: dict[str, str], files: list[str], dataset: str) -> dict[str, str]:
    """Folder -> split, as --train_dir and its like say."""
    folders: dict[str, str] = {}
    for split, given in named.items():
        path = PurePosixPath(given)
        folder = "" if path == PurePosixPath(".") else str(path)
        inside = given and not path.is_absolute() and ".." not in path.parts
        if not inside or not any(file.startswith(_prefix(folder)) for file in files):
            raise DataError(f"--{split}_dir {given}: is no folder inside --dataset {dataset} that holds files")
        if folder in folders:
            raise DataError(OVERLAP.format(dataset))
        folders[folder] = split
    return folders


def _find_splits(files: list[str], dataset: str) -> dict[str, str]:
    """Folder -> split; {"": "train"} if no folder is one."""
    below = _by_first_folder(files)
    root_table = any(path in TABLES for path in files)
    holding = {name: rest for name, rest in below.items() if any(map(is_image, rest)) or _has_table(rest)}
    splits = {
        name: SPLIT_OF[name.casefold()]
        for name, rest in below.items()
        if name.casefold() in SPLIT_OF
        and (_has_classes(rest) or _has_table(rest) or (root_table and any(map(is_image, rest))))
    }
    if not splits:
        _refuse_near_splits(holding, files, dataset)
        return {"": "train"}
    unlabelled = {name for name in holding if SPLIT_OF.get(name.casefold()) == "test" and name not in splits}
    if others := sorted(holding.keys() - splits.keys() - unlabelled):
        what = f"splits ({shortened(sorted(splits), 5)}) and other folders ({shortened(others, 5)}) lie side by side"
        raise DataError(f"--dataset {dataset}: {what}; {WAY_OUT}")
    return splits


def _by_first_folder(files: Iterable[str]) -> dict[str, list[str]]:
    below: dict[str, list[str]] = defaultdict(list)
    for path in files:
        first, slash, rest = path.partition("/")
        if slash:
            below[first].append(rest)
    return dict(below)


def _has_classes(paths: Iterable[str]) -> bool:
    """Whether there are folders of images, or of what may be images in a format that is not read."""
    return any("/" in path and ending(path) not in NOT_PICTURES for path in paths)


def _has_table(paths: Iterable[str]) -> bool:
    return any(path in TABLES for path in paths)


def _holds_images_itself(paths: Iterable[str]) -> bool:
    return any("/" not in path and is_image(path) for path in paths)


def _inner_splits(paths: Iterable[str]) -> set[str]:
    """The splits that the folders inside a folder would be."""
    inner = _by_first_folder(paths).items()
    return {SPLIT_OF[name.casefold()] for name, rest in inner if name.casefold() in SPLIT_OF and _has_classes(rest)}


def _refuse_near_splits(holding: dict[str, list[str]], files: list[str], dataset: str) -> None:
    """Refuse what would be classes by the letter: `seg_train/CLASS/`, `FOLDER/train/CLASS/`, `train/*` + `test/*`."""
    for name, rest in sorted(holding.items()):
        words = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)  # of seg_train, TrainSet, trainA, train2017
        if _has_classes(rest) and not _holds_images_itself(rest) and SPLIT_OF.keys() & {w.lower() for w in words}:
            raise DataError(f"--dataset {dataset}: the folder '{name}' may be a split or a class; {WAY_OUT}")
    if _holds_images_itself(files) or _has_table(files):
        return
    inner = {name: _inner_splits(rest) for name, rest in holding.items()}
    if inner and (all(inner.values()) or any(len(splits) > 1 for splits in inner.values())):
        named = ", ".join(f"{dataset}/{name}" for name, splits in sorted(inner.items()) if splits)
        raise DataError(f"--dataset {dataset}: the splits are one folder deeper; name {named}, or {WAY_OUT}")
    if len(holding) > 1 and all(name.casefold() in SPLIT_OF for name in holding):
        which = " and ".join(sorted(holding))
        raise DataError(f"--dataset {dataset}: {which} hold images and no class folders; {OR_TABLE}")


def _split_folder(folder: str, files: list[str], dataset: str, named: dict[str, str]) -> SplitFolder:
    prefix = _prefix(folder)
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
        raise DataError(f"--dataset {dataset}: {shortened(strays, 3)} in no class folder; {OR_TABLE}; or {WAY_OUT}")
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
