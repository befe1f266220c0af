"""Every image is decoded once before training, so that a broken one stops a run at its start, not in its third hour."""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data import DataError, files, shortened
from data.reading.content import cache_folder
from data.reading.decode import decode
from data.reading.repeats import repeated, warnings_about
from data.reading.splits import ChangedError, Split, Splits, check_classes, content
from data.threads import in_threads

MOST_LISTED = 5


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded, and why."""

    split: str
    index: int
    problem: str  # begins with the image's name


@dataclass(frozen=True)
class CheckResult:
    """What decoding every image once has found. It depends on the data alone, and is kept beside what was decoded."""

    bad: list[BadImage]
    repeated: list[list[int]]  # positions in `all_images` of sound images of the same bytes

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"bad": [vars(image) for image in self.bad], "repeated": self.repeated}

    @classmethod
    def from_document(cls, document: dict[str, Any], images: int) -> "CheckResult":
        """The opposite; KeyError, TypeError or ValueError if it is damaged, or older than this."""
        groups = document["repeated"]
        if not all(0 <= position < images for group in groups for position in group) or not all(groups):
            raise ValueError("a position is that of no image")
        return cls([BadImage(**image) for image in document["bad"]], groups)


def check_images(splits: Splits, skip_bad: bool, cache_dir: str | None = None) -> Splits:
    """Make sure that all images decode.

    The result is kept under the fingerprint of the data, so that only the first run on it pays for the pass.

    Args:
        splits: what to check.
        skip_bad: leave out bad images, with a note for each, instead of refusing the data.
        cache_dir: the Hub cache to keep the result in; None for its usual place.

    Raises:
        DataError: names the images that cannot be decoded.
    """
    known = cache_folder(cache_dir) / f"checked-{splits.fingerprint()}.json"
    checked = _read(known, len(splits.train) + len(splits.validation))
    if checked is None:
        checked = decode_all(splits)
        _write(known, checked)
    return without_bad(splits, checked, skip_bad)


def decode_all(splits: Splits, keep: Callable[[Split, int, torch.Tensor], None] | None = None) -> CheckResult:
    """Decode every image; `keep` is called with its split, its index there and its pixels, in any thread."""
    work = all_images(splits)
    digests: list[bytes | None] = [None] * len(work)

    def note(position: int, image: torch.Tensor, data: bytes) -> None:
        split, index = work[position]
        digests[position] = split.digest(index) or content(data)  # `read` has compared them
        if keep is not None:
            keep(split, index, image)

    return CheckResult(find_bad_images(work, note), repeated(digests))


def without_bad(splits: Splits, checked: CheckResult, skip_bad: bool) -> Splits:
    """The splits without bad images, with a note on each, and on images that are there more than once.

    Raises:
        DataError: there are bad images and `skip_bad` is off.
    """
    kept = leave_out(splits, checked.bad, skip_bad)
    # Added in place, because a copy of the splits would read every row for its fingerprint again.
    kept.notes.extend(line for line in warnings_about(splits, checked.repeated) if line not in kept.notes)
    return kept


def leave_out(splits: Splits, bad: Sequence[BadImage], skip_bad: bool) -> Splits:
    """The splits without the bad images, with a note for each.

    Raises:
        DataError: there are bad images and `skip_bad` is off; names them.
    """
    if not bad:
        return splits
    if not skip_bad:
        total, listed = (
            len(splits.train) + len(splits.validation),
            shortened([b.problem for b in bad], MOST_LISTED, "; "),
        )
        raise DataError(f"{len(bad)} of {total} images cannot be used (--skip_bad_images leaves them out): {listed}")
    notes = [f"left out: {image.problem}" for image in bad]
    train, validation = (split.select(good_rows(split, bad)) for split in (splits.train, splits.validation))
    check_classes(train, validation, splits.label_names, splits.dataset, trained_on=len(splits.train) > 0)
    return replace(splits, train=train, validation=validation, notes=splits.notes + notes)


def good_rows(split: Split, bad: Iterable[BadImage]) -> list[int]:
    """The indices of a split's images that are not among the bad ones."""
    out = {image.index for image in bad if image.split == split.name}
    return [index for index in range(len(split)) if index not in out]


def all_images(splits: Splits) -> list[tuple[Split, int]]:
    """(split, index) of every image: training first, then validation."""
    return [(split, index) for split in (splits.train, splits.validation) for index in range(len(split))]


def find_bad_images(
    work: Sequence[tuple[Split, int]], keep: Callable[[int, torch.Tensor, bytes], None] | None = None
) -> list[BadImage]:
    """Decode the images, in threads, with a progress bar.

    Args:
        work: (split, index) of each.
        keep: called with the position in `work`, the decoded image and its bytes, in any thread and order.
    """

    def judge(item: tuple[int, tuple[Split, int]]) -> BadImage | None:
        position, (split, index) = item
        try:
            data = split.read(index)
            image = decode(data, split.image_name(index))
        except ChangedError:
            raise
        except DataError as error:
            return BadImage(split.name, index, str(error))
        if keep is not None:
            keep(position, image, data)
        return None

    return [bad for bad in in_threads(judge, enumerate(work), "reading images", len(work)) if bad is not None]


def _read(path: Path, images: int) -> CheckResult | None:
    """The result of an earlier pass; None if there was none, or its file is damaged."""
    try:
        return CheckResult.from_document(json.loads(path.read_text(encoding="utf-8")), images)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, checked: CheckResult) -> None:
    """Keep the result. If the cache cannot be written, the next run only takes longer."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(checked.document()))
