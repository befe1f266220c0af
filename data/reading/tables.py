"""A dataset's name or folder -> its splits, each as a table with the class of every image.

Image folders are listed and read by the project's own rule (folders.py); parquet, arrow and Hub names by `datasets`,
one split at a time: reading them together, it would silently map a split whose class list differs onto the *indices*
of the first one's.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder as HubImageFolder
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from data import DataError, shortened
from data.reading.columns import Labelled, read_labels
from data.reading.folders import SPLIT_OF, SPLITS, WAY_OUT, ending, is_image
from data.reading.image_folder import ImageFolder, arrange_folder, downloads, paths_below, read_split
from data.reading.listing import Listing, list_folder
from data.reading.remote import connect, explain, is_remote, parquet_files, with_retries

Table = datasets.Dataset | datasets.IterableDataset
Files = dict[str, list[str]]  # by split
TABLE_ENDINGS = {".parquet", ".arrow"}
ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}


@dataclass(frozen=True)
class DatasetSpec:
    """Which data set is asked for, and how it is to be read: the flags of the same names."""

    dataset: str
    config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    cache_dir: str | None = None
    offline: bool = False
    folders: dict[str, str] = field(default_factory=dict)  # of the splits: --train_dir, ...

    @property
    def tables_dir(self) -> str | None:
        """Where `datasets` keeps its tables."""
        return str(Path(self.cache_dir) / "datasets") if self.cache_dir else None


@dataclass(frozen=True)
class Found:
    """The splits that a data set has; each is read when it is asked for."""

    files: Files
    read: Callable[[str], Labelled]  # by the name that the data set gives the split
    stream: Callable[[str], datasets.IterableDataset]
    notes: list[str]


def find_data(spec: DatasetSpec) -> Found:
    """What a data set holds.

    Raises:
        DataError: there is no such data set, it has no train split, or it cannot be read.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    with _explained(spec.dataset):
        return _find(spec)


@contextmanager
def _explained(dataset: str) -> Iterator[None]:
    """Errors of `datasets`, fsspec or a protocol's library, dozens of types, as one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"--dataset {dataset}: {explain(error, dataset)}") from error


def _find(spec: DatasetSpec) -> Found:
    dataset, notes = spec.dataset, []
    if is_remote(dataset):
        system, root, infos = connect(dataset)
        if files := parquet_files(system, root, infos):
            _refuse_named(spec, "parquet files")
            return _of_datasets(spec, "parquet", files, None, notes)
        local = downloads(system, infos, spec.tables_dir, notes)
        folder = arrange_folder(dataset, Listing(list(infos)), spec.folders, local, None, notes)
        return _of_folder(spec, folder, lambda path: system.unstrip_protocol(infos[path]["name"]))
    source = _local_or_hub(dataset, spec.cache_dir, spec.offline)
    root = Path(source)
    if root.is_dir():
        listing = list_folder(root, dataset)
        _refuse_archives(listing, dataset)
        if spec.folders or _is_image_folder(listing):
            folder = arrange_folder(dataset, listing, spec.folders, paths_below(root), root, notes)
            _check_card(spec, listing, folder, root)
            return _of_folder(spec, folder, lambda path: str(root / path))
        if pictures := [path for path in listing.files if is_image(path)]:
            notes.append(f"left out: {len(pictures)} images beside the tables: {shortened(pictures, 3)}")
    _refuse_named(spec, "a Hub name" if not root.is_dir() else "tables")
    builder = datasets.load_dataset_builder(source, spec.config_name, cache_dir=spec.tables_dir)
    files = {str(split): list(found) for split, found in (builder.config.data_files or {}).items()}
    return _of_datasets(spec, builder.name, files, builder.info.features, notes)


def _local_or_hub(dataset: str, cache_dir: str | None, offline: bool) -> str:
    if Path(dataset).exists():
        if not Path(dataset).is_dir():
            raise DataError(f"--dataset {dataset}: is a file; name the folder that holds train/ and validation/")
        return str(Path(dataset).resolve())
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or dataset.endswith("/"):
        raise DataError(f"--dataset {dataset}: there is no such folder")
    return _cached_snapshot(dataset, cache_dir) if offline else dataset


def _cached_snapshot(dataset: str, cache_dir: str | None) -> str:
    try:
        return snapshot_download(dataset, repo_type="dataset", cache_dir=cache_dir, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError) as error:
        raise DataError(
            f"--dataset {dataset}: no such folder, and the Hub cannot be reached and its cache does not hold"
            " it; name a local folder, or train on the built-in leaves with --preset leaves"
        ) from error


def _is_image_folder(listing: Listing) -> bool:
    """Whether the images are files, and not in tables."""
    endings = {ending(path) for path in listing.files}
    return any(map(is_image, listing.files + listing.unreadable)) and not endings & TABLE_ENDINGS


def _check_card(spec: DatasetSpec, listing: Listing, folder: ImageFolder, root: Path) -> None:
    """Refuse an image folder whose README says, as on the Hub, that other files are the splits than its folders say."""
    if spec.config_name:
        raise DataError(f"--dataset_config_name {spec.config_name}: an image folder has no configurations")
    if spec.folders or "README.md" not in listing.files:
        return
    text = (root / "README.md").read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---") or "data_files" not in text.split("\n---", 1)[0]:
        return
    builder = datasets.load_dataset_builder(str(root), cache_dir=spec.tables_dir)
    declared = {str(name): set(filter(is_image, files)) for name, files in (builder.config.data_files or {}).items()}
    ours = {SPLIT_OF.get(name, name): set(files) for name, files in declared.items()}
    if ours != {name: {str(root / path) for path in split.images} for name, split in folder.splits.items()}:
        raise DataError(
            f"--dataset {spec.dataset}: README.md declares other splits than the folders' names do; {WAY_OUT}"
        )


def _refuse_archives(listing: Listing, dataset: str) -> None:
    archives = [path for path in listing.files if ending(path) in ARCHIVES]
    others = {ending(path) for path in listing.files} - ARCHIVES
    if not listing.files and not listing.unreadable:
        raise DataError(f"--dataset {dataset}: the folder holds no files")
    if archives and not (
        others & TABLE_ENDINGS or any(map(is_image, listing.files)) or ".tar" in map(ending, archives)
    ):
        raise DataError(f"--dataset {dataset}: {shortened(archives, 3)} is an archive (zip, tar); unpack it first")


def _refuse_named(spec: DatasetSpec, what: str) -> None:
    if spec.folders:
        flags = ", ".join(f"--{split}_dir" for split in spec.folders)
        raise DataError(f"{flags}: name folders of images, and --dataset {spec.dataset} is {what}")


def _of_folder(spec: DatasetSpec, folder: ImageFolder, address: Callable[[str], str]) -> Found:
    files = {name: [address(path) for path in split.images] for name, split in folder.splits.items()}

    def read(name: str) -> Labelled:
        with _explained(spec.dataset):
            return with_retries(lambda: read_split(folder, name, spec.image_column, spec.label_column))

    def stream(name: str) -> datasets.IterableDataset:
        split = folder.splits[name]
        if split.table or any(path.removeprefix(split.prefix).count("/") > 1 for path in split.images):
            raise DataError(f"--streaming true: {spec.dataset} must hold images in SPLIT/CLASS/, and nothing deeper")
        if odd := [file for file in files[name] if set(file) & set("*?[]") or "::" in file]:
            raise DataError(f"--streaming true: {odd[0]}: such a name cannot be streamed; rename it")
        with _explained(spec.dataset):
            return _load(spec, "imagefolder", files[name], streaming=True, drop_labels=False)

    return Found(files, read, stream, folder.notes)


def _of_datasets(
    spec: DatasetSpec, module: str, files: Files, declared: datasets.Features | None, notes: list[str]
) -> Found:
    options: dict[str, Any] = {"drop_labels": False} if module == "imagefolder" else {}
    if module == "imagefolder":
        _check_depth(files, spec.dataset)

    def table(name: str, streaming: bool) -> Table:
        with _explained(spec.dataset):
            return _as_declared(_load(spec, module, files[name], streaming=streaming, **options), declared)

    def read(name: str) -> Labelled:
        return read_labels(table(name, False), spec.dataset, spec.image_column, spec.label_column)

    return Found(files, read, lambda name: table(name, True), notes)


def _load(spec: DatasetSpec, module: str, files: list[str], **options: Any) -> Table:
    given = {"data_files": {"train": files}, "split": "train", "cache_dir": spec.tables_dir}
    return with_retries(lambda: datasets.load_dataset(module, **given, **options))


def find_split(files: Files, name: str) -> str | None:
    """What the data set calls its train, validation or test split; None if it has none."""
    return next((called for called in (name, *SPLITS[name]) if called in files), None)


def choose_splits(files: Files, dataset: str, notes: list[str]) -> dict[str, str]:
    """Which of the dataset's splits is `train`, and which, if any, is `validation`. A test split is for neither.

    Raises:
        DataError: there is no train split.
    """
    if "train" not in files:
        raise DataError(f"--dataset {dataset}: has no train split; it has {', '.join(sorted(files)) or 'none'}")
    validation = find_split(files, "validation")
    chosen = {"train": "train"} | ({"validation": validation} if validation else {})
    if others := sorted(set(files) - set(chosen.values())):
        notes.append(f"other splits: {', '.join(others)}")
    return chosen


def _check_depth(files: Files, dataset: str) -> None:
    """Refuse an image beside the class folders, which would become a class named like the folder above them."""
    images = [file for found in files.values() for file in found if is_image(file)]
    has_table = any(Path(file).name in HubImageFolder.METADATA_FILENAMES for found in files.values() for file in found)
    depths = Counter(file.count("/") for file in images)
    if len(depths) > 1 and not has_table:
        stray = next(file for file in images if file.count("/") != depths.most_common(1)[0][0])
        raise DataError(f"--dataset {dataset}: {stray} is not as deep as the others; images belong in SPLIT/CLASS/")


def _as_declared(table: Table, declared: datasets.Features | None) -> Table:
    """Use the class names that the card declares for a column of plain numbers."""
    for name, feature in (declared or {}).items():
        if isinstance(feature, datasets.ClassLabel | datasets.Image) and isinstance(
            table.features.get(name), datasets.Value | dict
        ):
            table = table.cast_column(name, feature)
    return table
