"""A dataset's name or folder -> one table for `train` and, where there is one, one for `validation`.

The `datasets` library reads one split at a time: reading them together, it would silently map a split whose class list
differs onto the *indices* of the first one's.
"""

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from data import DataError
from data.reading.remote import explain, is_remote, list_remote, with_retries

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
Table = datasets.Dataset | datasets.IterableDataset
Files = dict[str, list[str]]  # by split


def read_tables(
    dataset: str,
    config_name: str | None,
    cache_dir: str | None,
    offline: bool,
    notes: list[str],
    streaming: bool = False,
) -> tuple[dict[str, Table], Files]:
    """The tables of `train` and, where there is one, `validation`, and the files of each.

    Raises:
        DataError: there is no such data set, it has no train split, or it cannot be read.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    tables_dir = str(Path(cache_dir) / "datasets") if cache_dir else None
    options: dict[str, Any] = {"split": "train", "cache_dir": tables_dir, "streaming": streaming}
    source = dataset if is_remote(dataset) else _local_or_hub(dataset, cache_dir, offline)
    try:
        module, files, declared = _list(source, config_name, tables_dir)
        chosen = _choose_splits(files, dataset, notes)
        if module == "imagefolder":
            options["drop_labels"] = False
            _check_depth({name: files[split] for name, split in chosen.items()}, dataset)
        tables: dict[str, Table] = {}
        for name, split in chosen.items():
            data_files = {"train": files[split]}
            table = with_retries(lambda some=data_files: datasets.load_dataset(module, data_files=some, **options))
            tables[name] = _as_declared(table, declared)
    except DataError:
        raise
    except Exception as error:  # of `datasets`, fsspec or a protocol's library: dozens of types
        raise DataError(f"--dataset {dataset}: {explain(error.__cause__ or error, dataset)}") from error
    if module == "imagefolder" and Path(source).is_dir() and not streaming:
        unused = sum(len(found) for split, found in files.items() if split not in chosen.values())
        _note_other_files(Path(source), sum(map(len, tables.values())) + unused, notes)
    return tables, {name: files[split] for name, split in chosen.items()}


def _local_or_hub(dataset: str, cache_dir: str | None, offline: bool) -> str:
    if Path(dataset).exists():
        if not Path(dataset).is_dir():
            raise DataError(f"--dataset {dataset}: is a file; name the folder that holds train/ and validation/")
        if not any(path.is_file() for path in Path(dataset).rglob("*")):
            raise DataError(f"--dataset {dataset}: the folder holds no files")
        return str(Path(dataset).resolve())
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or dataset.endswith("/"):
        raise DataError(f"--dataset {dataset}: there is no such folder")
    return _cached_snapshot(dataset, cache_dir) if offline else dataset


def _list(source: str, config_name: str | None, cache_dir: str | None) -> tuple[str, Files, datasets.Features | None]:
    """The module of `datasets` that reads the files, the files by split, and the columns as the card declares them."""
    if is_remote(source):
        return *list_remote(source), None
    builder = datasets.load_dataset_builder(source, config_name, cache_dir=cache_dir)
    files = {str(split): list(found) for split, found in (builder.config.data_files or {}).items()}
    if builder.name == "imagefolder":
        files = _by_folders(files, source)
    return builder.name, files, builder.info.features


def _cached_snapshot(dataset: str, cache_dir: str | None) -> str:
    try:
        return snapshot_download(dataset, repo_type="dataset", cache_dir=cache_dir, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError) as error:
        raise DataError(
            f"--dataset {dataset}: no such folder, and the Hub cannot be reached and its cache does not hold"
            " it; name a local folder, or train on the built-in leaves with --preset leaves"
        ) from error


def _choose_splits(files: Files, dataset: str, notes: list[str]) -> dict[str, str]:
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


def _check_depth(files: Files, dataset: str) -> None:
    """Refuse an image beside the class folders, which would become a class named like the folder above them."""
    images = [file for found in files.values() for file in found if Path(file).suffix.lower() in ImageFolder.EXTENSIONS]
    has_table = any(Path(file).name in ImageFolder.METADATA_FILENAMES for found in files.values() for file in found)
    depths = Counter(file.count("/") for file in images)
    if len(depths) > 1 and not has_table:
        stray = next(file for file in images if file.count("/") != depths.most_common(1)[0][0])
        raise DataError(f"--dataset {dataset}: {stray} is not as deep as the others; images belong in SPLIT/CLASS/")


def _as_declared(table: datasets.Dataset, declared: datasets.Features | None) -> datasets.Dataset:
    """Use the class names that the card declares for a column of plain numbers."""
    for name, feature in (declared or {}).items():
        if isinstance(feature, datasets.ClassLabel | datasets.Image) and isinstance(
            table.features.get(name), datasets.Value | dict
        ):
            table = table.cast_column(name, feature)
    return table


def _note_other_files(folder: Path, used: int, notes: list[str]) -> None:
    """Count the files that the loader of image folders leaves out because it does not know their ending."""
    others = sum(path.name not in ImageFolder.METADATA_FILENAMES for path in _files_in(folder)) - used
    if others > 0:
        notes.append(f"{others} files in {folder} are not images, or not named in the table, and are not used")


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _by_folders(files: Files, source: str) -> Files:
    """If no folder is named like a split, everything is one split; `datasets` would read a split from `train_1.jpg`."""
    folder, names = Path(source), {"train", "test", *VALIDATION_NAMES}
    if not folder.is_dir() or any(path.is_dir() and path.name in names for path in folder.rglob("*")):
        return files
    return {"train": [str(path) for path in _files_in(folder)]}
