"""Decode once: images resized to the model's size, kept as uint8 in memory or in a memory-mapped file.

A file is named by a digest of everything its pixels depend on: the data's fingerprint, the resizing, and the versions
of the libraries. It is written under another name, flushed and renamed, and its record comes last, so that a killed
build leaves nothing that looks finished. A second process waits for the file of the first.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision

from data import DataError, files
from data.cache.check import CheckResult, cache_folder, check_images, decode_all, good_rows, without_bad
from data.reading.decode import Resize, decode
from data.reading.splits import Split, Splits

GIB = 2**30
WAITING = "another process is preparing the same images; waiting for it"


@dataclass(frozen=True)
class Decoded:
    """Pixels of a split, decoded and resized each time they are asked for."""

    split: Split
    resize: Resize

    def __getitem__(self, indices: Sequence[int]) -> torch.Tensor:
        """uint8 [n, 3, h, w]; DataError names an image that cannot be decoded."""
        images = (decode(self.split.read(index), self.split.image_name(index)) for index in indices)
        return torch.stack([self.resize(image) for image in images])


@dataclass(frozen=True)
class Kept:
    """The same pixels, bit for bit, from what was prepared once."""

    storage: torch.Tensor  # uint8 [images of both splits, 3, h, w]: in memory, mapped from a file, or on a device
    rows: torch.Tensor  # int64: where each image of the split is in `storage`
    file: Path | None = None  # that `storage` is mapped from

    def __getitem__(self, indices: Sequence[int]) -> torch.Tensor:
        """uint8 [n, 3, h, w], a copy."""
        return self.storage[self.rows[torch.as_tensor(indices)]]

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is not forked, which maps the file by itself: torch sends it no mapped tensor."""
        return vars(self) | ({"storage": self.storage.shape} if self.file else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the file again; OSError if it is gone."""
        vars(self).update(state)
        if self.file:
            vars(self)["storage"] = _mapped(self.file, state["storage"])


Pixels = Decoded | Kept


@dataclass(frozen=True)
class CachePolicy:
    """Where prepared images may be kept, and how much space they may take."""

    kind: str = "auto"  # auto, memory, disk or none
    memory_gib: float = 2.0
    disk_gib: float = 32.0
    folder: str | None = None  # the Hub cache; None for its usual place
    shared: bool = False  # several processes need the same images: one file serves them all

    def choose(self, size: int) -> tuple[str, str]:
        """memory, disk or none for that many bytes, and why.

        Raises:
            DataError: the kind that was asked for cannot hold them.
        """
        gib = size / GIB
        needs = f"{gib:.2f} GiB of pixels" if gib > 0.1 else f"{size / 2**20:.1f} MiB of pixels"
        if self.kind == "none":
            return "none", "as asked"
        if self.kind != "disk" and gib <= self.memory_gib and not (self.shared and self.kind == "auto"):
            return "memory", needs
        if self.kind == "memory":
            raise DataError(f"--image_cache memory: {needs} are more than --cache_memory {self.memory_gib:g}")
        problem = self._why_not_on_disk(gib)
        if problem is None:
            return "disk", needs
        if self.kind == "disk":
            raise DataError(f"--image_cache disk: {needs} are more than {problem}")
        return "none", f"{needs} are more than {problem}, so every epoch decodes them again"

    def _why_not_on_disk(self, gib: float) -> str | None:
        if gib > self.disk_gib:
            return f"--cache_size {self.disk_gib:g}"
        there = cache_folder(self.folder)
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / GIB
        return f"the {free:.1f} GiB free in {there}" if gib > free else None


def prepare_images(
    splits: Splits, resize: Resize, policy: CachePolicy, skip_bad: bool, say: Callable[[str], None]
) -> tuple[Splits, dict[str, Pixels], str, str]:
    """Decode every image once, to know that all are sound and to keep them if the policy allows.

    Returns:
        The splits, without bad images if `skip_bad`; the pixels of each, by the split's name; where they are kept
        (memory, disk or none), and why.

    Raises:
        DataError: images cannot be decoded, or the cache cannot be written.
    """
    shape = (len(splits.train) + len(splits.validation), 3, resize.height, resize.width)
    kind, reason = policy.choose(torch.Size(shape).numel())
    if kind == "none":
        splits = check_images(splits, skip_bad, policy.folder)
        decoded = {split.name: Decoded(split, resize) for split in (splits.train, splits.validation)}
        return splits, decoded, kind, reason
    if kind == "memory":
        storage, file = torch.empty(shape, dtype=torch.uint8), None
        checked = _fill(storage, splits, resize)
    else:
        storage, checked, file = _on_disk(splits, resize, shape, policy, say)
    kept, offset = {}, 0
    for split in (splits.train, splits.validation):
        kept[split.name] = Kept(storage, torch.tensor(good_rows(split, checked.bad), dtype=torch.int64) + offset, file)
        offset += len(split)
    return without_bad(splits, checked, skip_bad), kept, kind, reason


def _fill(storage: torch.Tensor, splits: Splits, resize: Resize) -> CheckResult:
    """Decode all images into `storage`, uint8 [images, 3, h, w]."""

    def keep(row: int, image: torch.Tensor) -> None:
        storage[row] = resize(image)

    return decode_all(splits, keep)


def _on_disk(
    splits: Splits,
    resize: Resize,
    shape: tuple[int, ...],
    policy: CachePolicy,
    say: Callable[[str], None],
) -> tuple[torch.Tensor, CheckResult, Path]:
    folder = cache_folder(policy.folder)
    file = folder / f"images-{_key(splits, resize)}.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.alone(file.with_suffix(".lock"), lambda: say(WAITING)):
            checked = _read_record(file, shape)
            if checked is None:
                checked = _build(file, splits, resize, shape)
                _make_room(folder, file, policy.disk_gib)
            os.utime(file)  # the least recently used file goes first
            storage = _mapped(file, shape)
    except OSError as error:
        raise DataError(
            f"the image cache in {folder} cannot be written: {error.strerror or error}; --image_cache none does without"
        ) from error
    return storage, checked, file


def _mapped(file: Path, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_file(str(file), shared=False, size=torch.Size(shape).numel(), dtype=torch.uint8).view(shape)


def _key(splits: Splits, resize: Resize) -> str:
    """Digest of everything that the pixels depend on."""
    resizing = (resize.height, resize.width, resize.interpolation.value)
    if resize.before_crop is not None:  # without, the file of an earlier version is found again
        resizing += (resize.before_crop,)
    versions = (PIL.__version__, torchvision.__version__)
    return hashlib.blake2b(repr((splits.fingerprint(), resizing, versions)).encode(), digest_size=16).hexdigest()


def _build(file: Path, splits: Splits, resize: Resize, shape: tuple[int, ...]) -> CheckResult:
    """Write the file, then its record. The caller holds the lock, so one temporary name is enough."""
    _record(file).unlink(missing_ok=True)
    making, size = file.with_suffix(".tmp"), max(1, torch.Size(shape).numel())
    with making.open("wb") as out:
        files.reserve(out, size)  # a full disk shows now, and not as a crash while it is mapped
        storage = torch.from_file(str(making), shared=True, size=size, dtype=torch.uint8)
        checked = _fill(storage[: torch.Size(shape).numel()].view(shape), splits, resize)
        del storage  # Windows renames no file that is mapped
        os.fsync(out.fileno())  # mapped pages, too
    making.replace(file)
    files.write_text(_record(file), json.dumps({"shape": shape} | checked.document()))
    return checked


def _record(file: Path) -> Path:
    return file.with_suffix(".json")


def _read_record(file: Path, shape: tuple[int, ...]) -> CheckResult | None:
    """What was found while a finished file was built; None if it is missing, incomplete or of another shape."""
    try:
        content = json.loads(_record(file).read_text(encoding="utf-8"))
        if content["shape"] != list(shape) or file.stat().st_size != torch.Size(shape).numel():
            return None
        return CheckResult.from_document(content, shape[0])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_room(folder: Path, newest: Path, most_gib: float) -> None:
    """Delete the least recently used files until all together take at most `most_gib`.

    A file that another process has mapped stays readable there until that process ends; Windows does not delete it.
    """
    found = sorted(folder.glob("images-*.bin"), key=lambda file: file.stat().st_mtime_ns)
    left = sum(file.stat().st_size for file in found)
    for file in found:
        if left > most_gib * GIB and file != newest:
            left -= file.stat().st_size
            with contextlib.suppress(PermissionError):
                for part in (file, _record(file)):  # not the lock: another process may be waiting for it
                    part.unlink(missing_ok=True)
