"""Classes with few images: what their figures are worth."""

from collections import Counter
from collections.abc import Mapping

from data import shortened
from data.reading.repeats import WARNING
from data.reading.splits import Splits

FEWEST = 5  # validation images of a class below which its figures mean little
UNEQUAL = 3  # times as many training images in the largest class as in the smallest, from which accuracy misleads
MOST_NAMED = 10


def few_validation_images(label_names: list[str], counts: Mapping[int, int]) -> list[str]:
    """A warning on classes with fewer than FEWEST validation images, if there are any.

    Args:
        label_names: by the index of the class.
        counts: validation images by the index of the class.
    """
    few = [f"{name} ({counts[index]})" for index, name in enumerate(label_names) if counts[index] < FEWEST]
    if not few:
        return []
    return [
        f"{WARNING}fewer than {FEWEST} validation images, so that a class's figures mean little:"
        f" {shortened(few, MOST_NAMED)}"
    ]


def unequal_classes(splits: Splits) -> tuple[str, str] | None:
    """The rarest and the largest class of the training images with their counts, if those are UNEQUAL; else None."""
    counts = Counter(splits.train.labels)
    if not counts:
        return None
    (largest, most), (rarest, least) = counts.most_common()[0], counts.most_common()[-1]
    if most <= UNEQUAL * least:
        return None
    return tuple(f"{count} of {splits.label_names[index]}" for index, count in ((rarest, least), (largest, most)))
