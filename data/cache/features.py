"""What a frozen backbone makes of each image, kept for the next run on the same data."""

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data import files
from data.cache.check import cache_folder
from data.cache.prepared import WAITING, CachePolicy, make_room

Features = dict[str, torch.Tensor]  # by the split's name: float [images, features]


def kept_features(
    key: Any, counts: dict[str, int], policy: CachePolicy, compute: Callable[[], Features], say: Callable[[str], None]
) -> tuple[Features, bool]:
    """The features of every image: from the file of an earlier run, or computed, and then kept in a file.

    Args:
        key: everything that they depend on, as `repr` has it.
        counts: how many images each split has.
        policy: no file is read or written unless it lets prepared images be kept on disk.
        compute: the features.
        say: told what a person should know.

    Returns:
        The features, and whether they were computed now.
    """
    if policy.kind not in ("auto", "disk"):
        return compute(), True
    folder = cache_folder(policy.folder)
    file = folder / f"features-{hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()}.safetensors"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.alone(file.with_suffix(".lock"), lambda: say(WAITING)))
        except OSError as error:
            say(f"features are not kept for the next run: {folder} cannot be written: {error.strerror or error}")
            return compute(), True
        found = _read(file, counts)
        if found is not None:
            return found, False
        found = compute()
        try:
            making = file.with_suffix(".tmp")
            save_file(found, making)
            making.replace(file)
            make_room(folder, file, policy.disk_gib)
        except (OSError, SafetensorError) as error:
            say(f"features are not kept for the next run: {file}: {error}")
        return found, True


def _read(file: Any, counts: dict[str, int]) -> Features | None:
    """None if there is no such file, or it is damaged."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError):
        return None
    return found if {name: len(rows) for name, rows in found.items()} == counts else None
