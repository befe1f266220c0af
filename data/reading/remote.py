"""Data at an address: s3://, gs://, hf://, https://, listed through fsspec and read by `datasets`.

Credentials come from where each library looks for them (environment, ~/.aws, instance roles), never from the address:
addresses are printed and recorded.
"""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from data import DataError
from data.addresses import refusal, without_secrets
from data.reading.folders import is_image
from data.reading.listing import list_store

T = TypeVar("T")
TRIES, PAUSE = 4, 0.5  # seconds, doubled after each try
SPLIT_NAME = re.compile(r"(?:^|[/_.-])(train|training|test|testing|validation|valid|val|dev)(?=[/_.-]|$)")
CANONICAL = {"training": "train", "testing": "test"}
EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def is_remote(dataset: str) -> bool:
    """Whether a --dataset is an address."""
    return "://" in dataset


def connect(dataset: str) -> tuple[Any, str, dict[str, dict]]:
    """The file system of an address, its root there, and all files below it as `list_store` gives them.

    Raises:
        DataError: the address contains credentials, does not exist, may not be read, or holds no images.
    """
    if reason := refusal(dataset):
        raise DataError(f"--dataset {reason}")
    try:
        system, root = fsspec.core.url_to_fs(dataset)
        if root.endswith(".parquet"):  # a web server lists no folders, so there the address names the file
            return system, root, {"": {"name": root}}
        infos = with_retries(lambda: list_store(system, root))
    except Exception as error:  # each protocol's library raises its own types
        raise DataError(f"--dataset {dataset}: {explain(error, dataset)}") from error
    if not any(path.endswith(".parquet") or is_image(path) for path in infos):
        raise DataError(f"--dataset {dataset}: no parquet file and no image there, or no such bucket or folder")
    return system, root, infos


def parquet_files(system: Any, root: str, infos: dict[str, dict]) -> dict[str, list[str]]:
    """The addresses of the parquet files, by split; none if there are no such files.

    A split is named by a folder or the beginning of a file name: train, validation (valid, val, dev) or test. If no
    name says, everything is train.
    """
    shards = sorted(system.unstrip_protocol(info["name"]) for info in infos.values() if _is_parquet(info["name"]))
    return by_split(shards, system.unstrip_protocol(root).rstrip("/"))


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet")


def by_split(addresses: list[str], below: str) -> dict[str, list[str]]:
    """Sort files into splits by the names in their paths below the data set's address."""
    files: dict[str, list[str]] = {}
    for address in addresses:
        match = SPLIT_NAME.search(address.removeprefix(below).lower())
        name = match[1] if match else ""
        files.setdefault(CANONICAL.get(name, name), []).append(address)
    if files.keys() <= {""}:
        return {"train": files[""]} if files else {}
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


def explain(error: BaseException, dataset: str) -> str:
    """A library's error in one line that says what to do: of a wrapper, the reason that it hides."""
    while error.__cause__ is not None and not isinstance(error, FileNotFoundError | PermissionError):
        error = error.__cause__
    text = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
    protocol = urlsplit(dataset).scheme
    if isinstance(error, ImportError | ValueError) and protocol in EXTRAS and EXTRAS[protocol] in text:
        return f'{protocol}:// needs the package {EXTRAS[protocol]}: pip install -e ".[s3]" has that of s3://'
    if isinstance(error, FileNotFoundError) and protocol:
        return "there is no such bucket or folder"
    name = type(error).__name__
    if protocol and (isinstance(error, PermissionError) or "Credentials" in name or "credentials" in text):
        return f"access is denied ({text}); credentials come from the environment, such as AWS_ACCESS_KEY_ID, or ~/.aws"
    return f"cannot be read: {text}"
