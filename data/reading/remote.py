"""Data at an address: s3://, gs://, hf://, https://, listed through fsspec and read by `datasets`.

Credentials come from where each library looks for them (environment, ~/.aws, instance roles), never from the address:
addresses are printed and recorded.
"""

import re
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

import fsspec
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from data import DataError
from data.addresses import refusal, without_secrets

T = TypeVar("T")
TRIES, PAUSE = 4, 0.5  # seconds, doubled after each try
SPLIT_NAME = re.compile(r"(?:^|[/_.-])(train|training|test|testing|validation|valid|val|dev)(?=[/_.-]|$)")
CANONICAL = {"training": "train", "testing": "test"}
EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def is_remote(dataset: str) -> bool:
    """Whether a --dataset is an address."""
    return "://" in dataset


def list_remote(dataset: str) -> tuple[str, dict[str, list[str]]]:
    """The data files below an address, by split, and the `datasets` module that reads them: parquet or imagefolder.

    A split is named by a folder or the beginning of a file name: train, validation (valid, val, dev) or test. If no
    name says, everything is train.

    Raises:
        DataError: the address contains credentials, does not exist, may not be read, or holds no images.
    """
    if reason := refusal(dataset):
        raise DataError(f"--dataset {reason}")
    try:
        system, root = fsspec.core.url_to_fs(dataset)
        # A web server lists no folders, so there the address names the file.
        found = [root] if root.endswith(".parquet") else with_retries(lambda: system.find(root))
    except Exception as error:  # each protocol's library raises its own types
        raise DataError(f"--dataset {dataset}: {explain(error, dataset)}") from error
    addresses = sorted(system.unstrip_protocol(path) for path in found)
    shards = [address for address in addresses if address.endswith(".parquet")]
    pictures = [address for address in addresses if _suffix(address) in ImageFolder.EXTENSIONS]
    tables = [address for address in addresses if address.rsplit("/", 1)[-1] in ImageFolder.METADATA_FILENAMES]
    if not shards and not pictures:
        raise DataError(f"--dataset {dataset}: no parquet file and no image there, or no such bucket or folder")
    below = system.unstrip_protocol(root).rstrip("/")
    return ("parquet", by_split(shards, below)) if shards else ("imagefolder", by_split(pictures + tables, below))


def by_split(addresses: list[str], below: str) -> dict[str, list[str]]:
    """Sort files into splits by the names in their paths below the data set's address."""
    files: dict[str, list[str]] = {}
    for address in addresses:
        match = SPLIT_NAME.search(address.removeprefix(below).lower())
        name = match[1] if match else ""
        files.setdefault(CANONICAL.get(name, name), []).append(address)
    if files.keys() == {""}:
        return {"train": files[""]}
    files.pop("", None)  # a README's picture beside the splits
    return files


def with_retries(work: Callable[[], T]) -> T:
    """Call `work` again after passing errors: a dropped connection, a busy server."""
    for number in range(TRIES):
        try:
            return work()
        except (FileNotFoundError, PermissionError):
            raise
        except (OSError, TimeoutError):
            if number == TRIES - 1:
                raise
            time.sleep(PAUSE * 2**number)
    raise AssertionError("not reached")


def explain(error: Exception, dataset: str) -> str:
    """A library's error in one line that says what to do."""
    text = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__  # it may name a signed address
    protocol = urlsplit(dataset).scheme
    if isinstance(error, ImportError | ValueError) and protocol in EXTRAS and EXTRAS[protocol] in text:
        return f'{protocol}:// needs the package {EXTRAS[protocol]}: pip install -e ".[s3]" has that of s3://'
    if isinstance(error, FileNotFoundError) and protocol:
        return "there is no such bucket or folder"
    name = type(error).__name__
    if isinstance(error, PermissionError) or "Credentials" in name or "credentials" in text:
        return f"access is denied ({text}); credentials come from the environment, such as AWS_ACCESS_KEY_ID, or ~/.aws"
    return f"cannot be read: {text}"


def _suffix(address: str) -> str:
    return PurePosixPath(address).suffix.lower()
