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

    storage: torch.Tensor  # uint8 [images, 3, h, w]: in memory, mapped from a file, or on a device
    rows: torch.Tensor  # int64: where each image of the split is in `storage`
    file: Path | None = None  # that `storage` is mapped from
    start: int = 0  # of `storage` in the file

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
            shape, end = state["storage"], self.start + state["storage"].numel()
            vars(self)["storage"] = _mapped(self.file, end)[self.start :].view(shape)


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


Shapes = dict[str, torch.Size]  # by the split's name: images, 3, height, width


def prepare_images(
    splits: Splits,
    resize: Resize,
    policy: CachePolicy,
    skip_bad: bool,
    say: Callable[[str], None],
    train_resize: Resize | None = None,
) -> tuple[Splits, dict[str, Pixels], str, str]:
    """Decode every image once, to know that all are sound and to keep them if the policy allows.

    Args:
        splits: encoded images.
        resize: to the size that the model takes.
        policy: where decoded images may be kept.
        skip_bad: leave out images that cannot be decoded, instead of refusing the data.
        say: told what a person should know.
        train_resize: the size to keep training images in, if it is another one, such as for random crops.

    Returns:
        The splits, without bad images if `skip_bad`; the pixels of each, by the split's name; where they are kept
        (memory, disk or none), and why.

    Raises:
        DataError: images cannot be decoded, or the cache cannot be written.
    """
    resizes = {splits.train.name: train_resize or resize, splits.validation.name: resize}
    both = (splits.train, splits.validation)
    shapes = {s.name: torch.Size([len(s), 3, resizes[s.name].height, resizes[s.name].width]) for s in both}
    kind, reason = policy.choose(_total(shapes))
    if kind == "none":
        splits = check_images(splits, skip_bad, policy.folder)
        decoded = {split.name: Decoded(split, resizes[split.name]) for split in (splits.train, splits.validation)}
        return splits, decoded, kind, reason
    if kind == "memory":
        storage, file = torch.empty(_total(shapes), dtype=torch.uint8), None
        checked = _fill(storage, splits, resizes, shapes)
    else:
        storage, checked, file = _on_disk(splits, resizes, shapes, policy, say)
    kept, start = {}, 0
    for (name, part), split in zip(_parts(storage, shapes).items(), both, strict=True):
        kept[name] = Kept(part, torch.tensor(good_rows(split, checked.bad), dtype=torch.int64), file, start)
        start += part.numel()
    return without_bad(splits, checked, skip_bad), kept, kind, reason


def _total(shapes: Shapes) -> int:
    """Bytes."""
    return sum(shape.numel() for shape in shapes.values())


def _parts(storage: torch.Tensor, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Views of uint8 [bytes], one after the other."""
    parts = storage.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _fill(storage: torch.Tensor, splits: Splits, resizes: dict[str, Resize], shapes: Shapes) -> CheckResult:
    """Decode all images into `storage`, uint8 [bytes]."""
    parts = _parts(storage, shapes)

    def keep(split: Split, index: int, image: torch.Tensor) -> None:
        parts[split.name][index] = resizes[split.name](image)

    return decode_all(splits, keep)


def _on_disk(
    splits: Splits, resizes: dict[str, Resize], shapes: Shapes, policy: CachePolicy, say: Callable[[str], None]
) -> tuple[torch.Tensor, CheckResult, Path]:
    folder = cache_folder(policy.folder)
    file = folder / f"images-{_key(splits, resizes)}.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.alone(file.with_suffix(".lock"), lambda: say(WAITING)):
            checked = _read_record(file, shapes)
            if checked is None:
                checked = _build(file, splits, resizes, shapes)
                make_room(folder, file, policy.disk_gib)
            os.utime(file)  # the least recently used file goes first
            storage = _mapped(file, _total(shapes))
    except OSError as error:
        raise DataError(
            f"the image cache in {folder} cannot be written: {error.strerror or error}; --image_cache none does without"
        ) from error
    return storage, checked, file


def _mapped(file: Path, size: int) -> torch.Tensor:
    return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)


def _key(splits: Splits, resizes: dict[str, Resize]) -> str:
    """Digest of everything that the pixels depend on."""
    versions = (PIL.__version__, torchvision.__version__)
    return hashlib.blake2b(
        repr((splits.fingerprint(), list(resizes.values()), versions)).encode(), digest_size=16
    ).hexdigest()


def _build(file: Path, splits: Splits, resizes: dict[str, Resize], shapes: Shapes) -> CheckResult:
    """Write the file, then its record. The caller holds the lock, so one temporary name is enough."""
    _record(file).unlink(missing_ok=True)
    making, size = file.with_suffix(".tmp"), _total(shapes)
    with making.open("wb") as out:
        files.reserve(out, max(1, size))  # a full disk shows now, and not as a crash while it is mapped
        storage = torch.from_file(str(making), shared=True, size=size, dtype=torch.uint8)
        checked = _fill(storage, splits, resizes, shapes)
        del storage  # Windows renames no file that is mapped
        os.fsync(out.fileno())  # mapped pages, too
    making.replace(file)
    files.write_text(_record(file), json.dumps({"shapes": shapes} | checked.document()))
    return checked


def _record(file: Path) -> Path:
    return file.with_suffix(".json")


def _read_record(file: Path, shapes: Shapes) -> CheckResult | None:
    """What was found while a finished file was built; None if it is missing, incomplete or of another shape."""
    try:
        content = json.loads(_record(file).read_text(encoding="utf-8"))
        if content["shapes"] != {name: list(shape) for name, shape in shapes.items()}:
            return None
        if file.stat().st_size != _total(shapes):
            return None
        return CheckResult.from_document(content, sum(shape[0] for shape in shapes.values()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_room(folder: Path, newest: Path, most_gib: float) -> None:
    """Delete the least recently used files until all together take at most `most_gib`.

    A file that another process has mapped stays readable there until that process ends; Windows does not delete it.
    """
    kept = (*folder.glob("images-*.bin"), *folder.glob("features-*.safetensors"))
    found = sorted(kept, key=lambda file: file.stat().st_mtime_ns)
    left = sum(file.stat().st_size for file in found)
    for file in found:
        if left > most_gib * GIB and file != newest:
            left -= file.stat().st_size
            with contextlib.suppress(PermissionError):
                for part in (file, _record(file)):  # not the lock: another process may be waiting for it
                    part.unlink(missing_ok=True)
