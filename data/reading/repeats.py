"""Images of the same bytes: across the splits they flatter validation, and with two labels one of them is wrong."""

from collections.abc import Sequence

from data import shortened
from data.reading.splits import Split, Splits

MOST_NAMED = 3
WARNING = "warning: "  # begins a note that people must not miss


def repeated(digests: Sequence[bytes | None]) -> list[list[int]]:
    """The positions of each digest that occurs more than once, ascending; None is no digest."""
    found: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        if digest is not None:
            found.setdefault(digest, []).append(position)
    return [positions for positions in found.values() if len(positions) > 1]


def place(splits: Splits, position: int) -> tuple[Split, int]:
    """(split, index) of an image, where positions count through the training images and then the validation images."""
    before = len(splits.train)
    return (splits.train, position) if position < before else (splits.validation, position - before)


def label_of(splits: Splits, position: int) -> int:
    """The class of the image at a position."""
    split, index = place(splits, position)
    return split.labels[index]


def across(splits: Splits, group: Sequence[int]) -> bool:
    """Whether ascending positions lie in both splits."""
    return group[0] < len(splits.train) <= group[-1]


def contradicting(splits: Splits, group: Sequence[int]) -> int | None:
    """The first position whose label is not that of the group's first; None if all have the same."""
    first = label_of(splits, group[0])
    return next((position for position in group if label_of(splits, position) != first), None)


def warnings_about(splits: Splits, groups: Sequence[Sequence[int]], what: str = "image") -> list[str]:
    """At most two lines: on groups that lie in both splits, and on groups with more than one label.

    Args:
        splits: through which the positions count.
        groups: positions of images that are the same, ascending.
        what: to call one group.
    """

    def name(position: int) -> str:
        split, index = place(splits, position)
        return " ".join(split.image_name(index).split())

    def labelled(position: int) -> str:
        return f"{name(position)}: {splits.label_names[label_of(splits, position)]}"

    leaks = [(group[0], group[-1]) for group in groups if across(splits, group)]
    others = ((group[0], contradicting(splits, group)) for group in groups)
    disputed = [(one, other) for one, other in others if other is not None]
    lines = []
    if leaks:
        named = _shown([f"{name(one)} = {name(other)}" for one, other in leaks[:MOST_NAMED]], len(leaks))
        is_in = f"{what} is" if len(leaks) == 1 else f"{what}s are"
        lines.append(
            f"{WARNING}{len(leaks)} {is_in} in both train and validation, so validation scores are too high ({named})"
        )
    if disputed:
        named = _shown([f"{labelled(one)} = {labelled(other)}" for one, other in disputed[:MOST_NAMED]], len(disputed))
        has = f"{what} has" if len(disputed) == 1 else f"{what}s have"
        lines.append(f"{WARNING}{len(disputed)} {has} more than one label, and at most one is right ({named})")
    return lines


def _shown(named: list[str], total: int) -> str:
    return shortened([*named, *[""] * (total - len(named))], MOST_NAMED)
