"""Which images a page shows, and the pictures themselves."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from train.recipes.predictions import Prediction, some_right, worst

MOST_PICTURES, MOST_BYTES = 200, 1_900_000  # of one page, in base64
QUALITY = 75  # of a JPEG
NOT_STORED = "the images of this run are not stored, so they cannot be shown"

ImageBytes = Callable[[int], bytes]  # the encoded validation image of an index


@dataclass(frozen=True)
class Pictures:
    """Thumbnails by the index of the validation image, base64; and why there are none."""

    by_index: dict[int, str] = field(default_factory=dict)
    missing: str | None = None

    def within(self, share: int) -> "Pictures":
        """The first of them, as many as one part of so many of a page may hold."""
        kept, size = {}, 0
        for index, encoded in list(self.by_index.items())[: MOST_PICTURES // share]:
            size += len(encoded)
            if size > MOST_BYTES // share:
                break
            kept[index] = encoded
        return Pictures(kept, self.missing)


def by_cell(predictions: list[Prediction]) -> dict[tuple[int, int], list[Prediction]]:
    """(label, predicted) -> its images, those of the greatest loss first."""
    cells: dict[tuple[int, int], list[Prediction]] = defaultdict(list)
    for found in sorted(predictions, key=lambda found: -found.loss):
        cells[found.label, found.predicted].append(found)
    return cells


def make_pictures(predictions: list[Prediction], image: ImageBytes, share: int = 1) -> Pictures:
    """Thumbnails of the images that tell most, as many as a page may hold.

    Args:
        predictions: of every validation image.
        image: where the bytes come from.
        share: one page is shared by this many runs.

    Raises:
        DataError: an image cannot be read, or has changed since it was judged.
    """
    # Only here, as they bring torch along, which a page without pictures does not need.
    from data.reading.thumbnail import thumbnail
    from data.threads import in_threads

    indices = chosen(predictions, MOST_PICTURES // share)
    small = in_threads(lambda index: thumbnail(image(index), QUALITY), indices, "thumbnails", len(indices))
    return Pictures(dict(zip(indices, small, strict=True)))


def chosen(predictions: list[Prediction], most: int) -> list[int]:
    """Indices of at most that many images, the most telling first: mistakes, a few right ones, then each cell's worst.

    The cells of the confusion matrix take turns, wrong ones before right ones.
    """
    cells = sorted(by_cell(predictions).items(), key=lambda item: (item[0][0] == item[0][1], -len(item[1])))
    in_turns = chain.from_iterable(zip_longest(*(found[:most] for _, found in cells)))
    order = chain(worst(predictions), some_right(predictions), filter(None, in_turns))
    return list(dict.fromkeys(found.index for found in order))[:most]
