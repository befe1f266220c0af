"""One full decode of every image before training: a broken one stops a run at its start, not in its third hour."""

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data import DataError
from data.images import decode
from data.sources import Split

MOST_LISTED = 5


def check_images(splits: Iterable[Split]) -> None:
    """Decode all images, in threads (Pillow's decoders release the lock), with a progress bar.

    Raises:
        DataError: names the images that cannot be decoded.
    """
    work = [(split, index) for split in splits for index in range(len(split))]
    with ThreadPoolExecutor(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) as pool:
        results = tqdm(
            pool.map(_problem, work),
            "checking images",
            len(work),
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        bad = [problem for problem in results if problem]
    if bad:
        more = f"; and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else ""
        raise DataError(f"{len(bad)} of {len(work)} images are not usable: {'; '.join(bad[:MOST_LISTED])}{more}")


def _problem(item: tuple[Split, int]) -> str | None:
    split, index = item
    try:
        decode(split.read(index), split.image_name(index))
    except DataError as error:
        return str(error)
    return None
