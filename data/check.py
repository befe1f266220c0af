"""One full decode of every image before training: a broken one stops a run at its start, not in its third hour."""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import config as datasets_config
from tqdm import tqdm

from data import DataError
from data.images import decode
from data.sources import Split, Splits, check_classes

MOST_LISTED = 5


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded, and why."""

    split: str
    index: int
    problem: str  # begins with the image's name


def check_images(splits: Splits, skip_bad: bool, cache_dir: str | None = None) -> Splits:
    """The splits, once all their images are known to decode.

    The finding is kept under the fingerprint of the data, so that only the first run on it pays for the pass.

    Args:
        splits: what to check.
        skip_bad: leave bad images out, with a note of each, instead of refusing the data.
        cache_dir: the Hub cache to keep the finding in; None for its usual place.

    Raises:
        DataError: names the images that cannot be decoded.
    """
    known = _cache_file(splits.fingerprint(), cache_dir)
    bad = _read(known)
    if bad is None:
        bad = find_bad_images(_all_images(splits))
        _write(known, bad)
    elif bad:  # they may have been mended in a way that the fingerprint does not see
        by_name = {split.name: split for split in (splits.train, splits.validation)}
        bad = find_bad_images([(by_name[image.split], image.index) for image in bad])
    if not bad:
        return splits
    if not skip_bad:
        total = len(splits.train) + len(splits.validation)
        more = f"; and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else ""
        listed = "; ".join(image.problem for image in bad[:MOST_LISTED])
        raise DataError(
            f"{len(bad)} of {total} images are not usable (--skip_bad_images leaves them out): {listed}{more}"
        )
    notes = [f"left out: {image.problem}" for image in bad]
    kept = {split.name: _without(split, bad) for split in (splits.train, splits.validation)}
    check_classes(kept["train"], kept["validation"], splits.label_names, splits.dataset)
    return replace(splits, train=kept["train"], validation=kept["validation"], notes=splits.notes + notes)


def _all_images(splits: Splits) -> list[tuple[Split, int]]:
    return [(split, index) for split in (splits.train, splits.validation) for index in range(len(split))]


def find_bad_images(work: Sequence[tuple[Split, int]]) -> list[BadImage]:
    """Decode the images, in threads (Pillow's decoders release the lock), with a progress bar."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = tqdm(
            pool.map(_judge, work), "checking images", len(work), leave=False, disable=not sys.stderr.isatty()
        )
        return [image for image in results if image is not None]


def _judge(item: tuple[Split, int]) -> BadImage | None:
    split, index = item
    try:
        decode(split.read(index), split.image_name(index))
    except DataError as error:
        return BadImage(split.name, index, str(error))
    return None


def _without(split: Split, bad: list[BadImage]) -> Split:
    out = {image.index for image in bad if image.split == split.name}
    return split.select([index for index in range(len(split)) if index not in out])


def _cache_file(fingerprint: str, cache_dir: str | None) -> Path:
    folder = Path(cache_dir) / "datasets" if cache_dir else Path(datasets_config.HF_DATASETS_CACHE)
    return folder / "plainloop" / f"checked-{fingerprint}.json"


def _read(path: Path) -> list[BadImage] | None:
    """What an earlier pass found; None if there was none, or its file is damaged."""
    try:
        return [BadImage(**image) for image in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, bad: list[BadImage]) -> None:
    """Keep the finding, whole or not at all. A cache that cannot be written costs the next run its time, no more."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps([vars(image) for image in bad]), encoding="utf-8")
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
