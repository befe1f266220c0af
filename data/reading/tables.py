"""A dataset's name or folder -> one table for `train` and, where there is one, one for `validation`.

Reading is left to the `datasets` library, one split at a time: read together, splits whose class lists differ would be
cast onto the first one's *indices* without a word.
"""

import logging
import sys
from collections import Counter
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from data import DataError
from data.reading.remote import explain, is_remote, list_remote, with_retries

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
Table = datasets.Dataset | datasets.IterableDataset


def read_tables(
    dataset: str,
    config_name: str | None,
    cache_dir: str | None,
    offline: bool,
    notes: list[str],
    streaming: bool = False,
) -> tuple[dict[str, Table], dict[str, list[str]]]:
    """The tables of `train` and, where there is one, `validation`, and the files of each."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    source = dataset
    if is_remote(dataset):
        return _read_remote(dataset, cache_dir, notes, streaming)
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
                streaming=streaming,
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
    if builder.name == "imagefolder" and Path(source).is_dir() and not streaming:
        unused = sum(len(found) for split, found in files.items() if split not in chosen.values())
        _note_other_files(Path(source), sum(map(len, tables.values())) + unused, notes)
    return tables, {name: files[split] for name, split in chosen.items()}


def _read_remote(
    dataset: str, cache_dir: str | None, notes: list[str], streaming: bool
) -> tuple[dict[str, Table], dict[str, list[str]]]:
    module, files = list_remote(dataset)
    chosen = _choose_splits(files, dataset, notes)
    options = {"drop_labels": False} if module == "imagefolder" else {}
    where = str(Path(cache_dir) / "datasets") if cache_dir else None

    def load(split: str) -> Table:
        return datasets.load_dataset(
            module, data_files={"train": files[split]}, split="train", cache_dir=where, streaming=streaming, **options
        )

    try:
        tables = {name: with_retries(lambda split=split: load(split)) for name, split in chosen.items()}
    except Exception as error:  # of `datasets`, fsspec, or the protocol's library
        raise DataError(f"--dataset {dataset}: {explain(error.__cause__ or error, dataset)}") from error
    return tables, {name: files[split] for name, split in chosen.items()}


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
