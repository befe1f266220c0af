"""Every image is decoded once before training, so that a broken one stops a run at its start, not in its third hour."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import config as datasets_config
from tqdm import tqdm

from data import DataError, files, shortened
from data.cores import usable_cores
from data.reading.decode import decode
from data.reading.splits import Split, Splits, check_classes

MOST_LISTED = 5
AT_ONCE = 256  # images queued for the threads; a million futures would fill the memory


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded, and why."""

    split: str
    index: int
    problem: str  # begins with the image's name


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
    bad = _read(known)
    if bad is None:
        bad = find_bad_images(all_images(splits))
        _write(known, bad)
    elif bad:
        bad = still_bad(splits, bad)
    return leave_out(splits, bad, skip_bad)


def still_bad(splits: Splits, bad: Sequence[BadImage]) -> list[BadImage]:
    """Decode them again: they may have been repaired in a way that the fingerprint does not see."""
    by_name = {split.name: split for split in (splits.train, splits.validation)}
    return find_bad_images([(by_name[image.split], image.index) for image in bad])


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
    kept = {split.name: split.select(good_rows(split, bad)) for split in (splits.train, splits.validation)}
    check_classes(kept["train"], kept["validation"], splits.label_names, splits.dataset)
    return replace(splits, train=kept["train"], validation=kept["validation"], notes=splits.notes + notes)


def good_rows(split: Split, bad: Iterable[BadImage]) -> list[int]:
    """The indices of a split's images that are not among the bad ones."""
    out = {image.index for image in bad if image.split == split.name}
    return [index for index in range(len(split)) if index not in out]


def all_images(splits: Splits) -> list[tuple[Split, int]]:
    """(split, index) of every image: training first, then validation."""
    return [(split, index) for split in (splits.train, splits.validation) for index in range(len(split))]


def find_bad_images(
    work: Sequence[tuple[Split, int]], keep: Callable[[int, torch.Tensor], None] | None = None
) -> list[BadImage]:
    """Decode the images, in threads (Pillow's decoders release the lock), with a progress bar.

    Args:
        work: (split, index) of each.
        keep: called with the position in `work` and the decoded image, in any thread and order.
    """

    def judge(position: int, item: tuple[Split, int]) -> BadImage | None:
        split, index = item
        try:
            image = decode(split.read(index), split.image_name(index))
        except DataError as error:
            return BadImage(split.name, index, str(error))
        if keep is not None:
            keep(position, image)
        return None

    shown = "preparing images" if keep else "checking images"
    bar = tqdm(total=len(work), desc=shown, leave=False, disable=not sys.stderr.isatty())
    with bar, _threads() as pool:
        bad = []
        for first in range(0, len(work), AT_ONCE):
            some = work[first : first + AT_ONCE]
            for found in pool.map(judge, range(first, first + len(some)), some):
                bar.update()
                if found is not None:
                    bad.append(found)
        return bad


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """One thread per core, each computing alone; Ctrl-C does not wait for what is queued."""
    inner = torch.get_num_threads()
    pool = ThreadPoolExecutor(usable_cores(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(inner)


def cache_folder(cache_dir: str | None) -> Path:
    """Where results and prepared images are kept: beside the tables of `datasets`."""
    folder = Path(cache_dir) / "datasets" if cache_dir else Path(datasets_config.HF_DATASETS_CACHE)
    return folder / "plainloop"


def _read(path: Path) -> list[BadImage] | None:
    """The result of an earlier pass; None if there was none, or its file is damaged."""
    try:
        return [BadImage(**image) for image in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, bad: list[BadImage]) -> None:
    """Keep the result. If the cache cannot be written, the next run only takes longer."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps([vars(image) for image in bad]))
