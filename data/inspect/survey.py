"""One look at every image of both splits, and what follows from it: counts, sizes, copies, warnings."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data import DataError, shortened
from data.cache.check import all_images
from data.inspect.duplicates import MOST_PAIRS, connected, near_pairs, picture_bits
from data.reading.decode import Header, Resize, decode, read_header
from data.reading.rare import MOST_NAMED, few_validation_images
from data.reading.repeats import WARNING, across, contradicting, repeated, warnings_about
from data.reading.splits import Split, Splits, content
from data.threads import in_threads


@dataclass(frozen=True)
class Seen:
    """One image; of one that cannot be decoded only the first four and the problem."""

    split: str
    index: int
    label: int
    name: str
    problem: str | None = None
    digest: bytes | None = None
    header: Header | None = None
    bits: np.ndarray | None = None  # of `picture_bits`


def look(splits: Splits, resize: Resize | None = None) -> Iterator[tuple[Seen, torch.Tensor | None]]:
    """Every image, training first, with its pixels uint8 [3, h, w] if `resize` is given and it can be decoded."""

    work = all_images(splits)

    def see(item: tuple[Split, int]) -> tuple[Seen, torch.Tensor | None]:
        split, index = item
        who = (split.name, index, split.labels[index], split.image_name(index))
        try:
            data = split.read(index)
            image = decode(data, who[3])
        except DataError as error:
            return Seen(*who, problem=str(error)), None
        seen = Seen(*who, None, content(data), read_header(data), picture_bits(image))
        return seen, resize(image) if resize else None

    return in_threads(see, work, "looking at images", len(work))


def survey(splits: Splits, seen: Sequence[Seen]) -> dict[str, Any]:
    """What inspect.json holds.

    Args:
        splits: the data.
        seen: every image, in the order of `look`.
    """
    exact = repeated([image.digest for image in seen])
    near, complete = near_groups(seen)
    sound = [image for image in seen if image.problem is None]
    headers = [image.header for image in sound if image.header is not None]
    bad = [image for image in seen if image.problem is not None]
    warnings = _warnings_on_counts(splits, sound, len(bad))
    warnings += warnings_about(splits, exact) + warnings_about(splits, near, "group of near duplicates")
    if not complete:
        warnings.append(f"{WARNING}more than {MOST_PAIRS:,} pairs of near duplicates; the rest was not looked for")
    return {
        "dataset": splits.dataset,
        "classes": splits.label_names,
        "notes": splits.notes,
        "warnings": warnings,
        "images": {split.name: _counts(split, splits.label_names) for split in (splits.train, splits.validation)},
        "files": _files(headers),
        "undecodable": [_entry(splits, image) | {"problem": image.problem} for image in bad],
        "exact_duplicates": [_group(splits, seen, group) for group in exact],
        "near_duplicates": [_group(splits, seen, group) for group in near],
    }


def near_groups(seen: Sequence[Seen]) -> tuple[list[list[int]], bool]:
    """Positions of near duplicates, with all files of the same bytes as one of them; and whether all were found."""
    files: dict[bytes, list[int]] = {}
    for position, image in enumerate(seen):
        if image.bits is not None and image.digest is not None:
            files.setdefault(image.digest, []).append(position)
    contents = list(files.values())
    if not contents:
        return [], True
    pairs = near_pairs(np.stack([seen[positions[0]].bits for positions in contents]))
    groups = [sorted(p for number in group for p in contents[number]) for group in connected(pairs)]
    return groups, len(pairs) < MOST_PAIRS


def suspicious(
    splits: Splits, seen: Sequence[Seen], probabilities: Sequence[Sequence[float] | None], least: float
) -> list[dict[str, Any]]:
    """Images whose label a model contradicts with a probability of at least `least`, the surest first."""
    found = []
    for image, row in zip(seen, probabilities, strict=True):
        if row is None:
            continue
        best = int(np.argmax(row))
        if best != image.label and row[best] >= least:
            told = {"predicted": splits.label_names[best], "probability": row[best], "of_label": row[image.label]}
            found.append(_entry(splits, image) | told)
    return sorted(found, key=lambda item: (item["split"] == "train", -item["probability"]))


def _entry(splits: Splits, image: Seen) -> dict[str, Any]:
    label = splits.label_names[image.label]
    return {"split": image.split, "index": image.index, "name": image.name, "class": label}


def _group(splits: Splits, seen: Sequence[Seen], group: Sequence[int]) -> dict[str, Any]:
    disputed = contradicting(splits, group) is not None
    images = [_entry(splits, seen[position]) for position in group]
    return {"across_splits": across(splits, group), "contradictory_labels": disputed, "images": images}


def _counts(split: Split, names: Sequence[str]) -> dict[str, int]:
    counts = Counter(split.labels)
    return {name: counts[index] for index, name in enumerate(names)}


def _files(headers: Sequence[Header]) -> dict[str, Any]:
    """Sizes by area, and how often each format, mode and orientation occurs."""
    by_area = sorted(((h.width, h.height) for h in headers), key=lambda size: (size[0] * size[1], size))
    named = {"smallest": 0, "median": len(by_area) // 2, "largest": -1}
    found: dict[str, Any] = {"sizes": {name: list(by_area[at]) for name, at in named.items()} if by_area else {}}
    for name in ("format", "mode", "orientation"):
        counts = Counter(str(getattr(header, name)) for header in headers)
        found[f"{name}s"] = dict(counts.most_common())
    return found


def _warnings_on_counts(splits: Splits, sound: Sequence[Seen], bad: int) -> list[str]:
    lines = [f"{WARNING}{bad} of {len(sound) + bad} images cannot be decoded"] if bad else []
    counts = {name: Counter(i.label for i in sound if i.split == name) for name in ("train", "validation")}
    names = list(enumerate(splits.label_names))
    if never := [name for index, name in names if not counts["train"][index]]:
        lines.append(f"{WARNING}no training image of {shortened(never, MOST_NAMED)}")
    return lines + few_validation_images(splits.label_names, counts["validation"])
