"""Whether an exported file says of images what the model says of them, and how fast it is."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf

from data import shortened
from data.reading.decode import decode
from data.reading.names import composed
from data.reading.splits import Splits
from train.errors import ConfigError, RunError
from train.export.formats import Run
from train.inference.predictor import Predictor, resize_for

AT_SIZES = 8  # images that are also judged at other sizes
ROUNDS, WARM_UP = 30, 3  # of measuring the speed


@dataclass(frozen=True)
class View:
    """A decoded image to judge by."""

    name: str
    pixels: torch.Tensor  # uint8 [3, height, width], as `decode` returns it
    label: int | None  # its class in the model; None for an image that was made another size


@dataclass(frozen=True)
class Agreement:
    """What a file and the model say of the same images."""

    images: int = 0  # of the split; the others were made of them
    resized: int = 0
    equal: int = 0  # images of the split that get the same label
    right: int = 0  # to which the model gives the right label
    right_after: int = 0  # and the file
    largest: float = 0.0  # difference of a probability, over all images; NaN if the file computed one
    worst: str = ""  # the image with that difference
    disputed: list[str] = field(default_factory=list)  # other label, and no close call

    @property
    def lost(self) -> float:
        """Accuracy that the file lacks, from -1 to 1."""
        return (self.right - self.right_after) / self.images

    def line(self) -> str:
        """For people to read."""
        before, after = self.right / self.images, self.right_after / self.images
        return (
            f"accuracy {before:.3f} -> {after:.3f}, largest difference of a probability {self.largest:.2g} (also in"
            f" {self.resized} copies of other sizes), {self.equal} of {self.images} labels equal"
        )


def views(splits: Splits, label_names: list[str]) -> Iterator[View]:
    """Every validation image; and of AT_SIZES of them, spread over the split, a smaller and a larger copy.

    Args:
        splits: whose validation split judges.
        label_names: of the model, which may have more classes.

    Raises:
        ConfigError: the data has a class that the model does not know.
    """
    position = {composed(name): index for index, name in enumerate(label_names)}
    if strange := [name for name in splits.label_names if composed(name) not in position]:
        raise ConfigError(f"--dataset {splits.dataset}: has classes that the model has not: {shortened(strange, 5)}")
    split = splits.validation
    every = math.ceil(len(split) / AT_SIZES)
    for index in range(len(split)):
        name, label = split.image_name(index), composed(splits.label_names[split.labels[index]])
        view = View(name, decode(split.read(index), name), position[label])
        yield view
        if index % every == 0:
            yield from _other_sizes(view)


def _other_sizes(view: View) -> Iterator[View]:
    """Half the size, and 1.5 times, with odd sides."""
    for factor in (0.5, 1.5):
        size = [int(side * factor) | 1 for side in view.pixels.shape[1:]]
        pixels = tvf.resize(view.pixels, size, antialias=True)
        yield View(f"{view.name} at {size[0]} x {size[1]} pixels", pixels, None)


def compare(predictor: Predictor, run: Run, images: Iterable[View], tolerance: float) -> Agreement:
    """Compute every image both ways.

    Args:
        predictor: in float32.
        run: computes the file.
        images: what to compute.
        tolerance: a label may differ where the model's two best classes are closer than this.

    Raises:
        RunError: the file cannot compute an image.
    """
    found, resize = Agreement(), resize_for(predictor.model)
    for view in images:
        expected = predictor.probabilities(resize(view.pixels)[None])[0].numpy()
        found = _counted(found, view, expected, _computed(run, view), tolerance)
    return found


def _computed(run: Run, view: View) -> np.ndarray:
    try:
        return run(view.pixels.permute(1, 2, 0).contiguous().numpy())
    except Exception as error:  # of onnxruntime or torch, of any type
        raise RunError(f"{view.name}: the exported file fails: {' '.join(str(error).split())[:300]}") from error


def _counted(found: Agreement, view: View, expected: np.ndarray, got: np.ndarray, tolerance: float) -> Agreement:
    if expected.shape != got.shape:
        raise RunError(f"{view.name}: the exported file gives {got.shape} numbers, the model {expected.shape}")
    before, after = int(expected.argmax()), int(got.argmax())
    difference = float(np.abs(expected - got).max())
    if not (difference <= found.largest or math.isnan(found.largest)):  # NaN is the worst, and stays
        found = replace(found, largest=difference, worst=view.name)
    best = np.sort(expected)[-2:]
    if before != after and best[-1] - best[0] > tolerance:
        found = replace(found, disputed=[*found.disputed, view.name])
    if view.label is None:
        return replace(found, resized=found.resized + 1)
    return replace(
        found,
        images=found.images + 1,
        equal=found.equal + (before == after),
        right=found.right + (before == view.label),
        right_after=found.right_after + (after == view.label),
    )


def refuse_other_answers(found: Agreement, tolerance: float) -> None:
    """For a file that shall compute what the model computes.

    Raises:
        RunError: a probability differs by more than the tolerance, or a label that is no close call; names the image.
    """
    if not found.largest <= tolerance:
        raise RunError(
            f"refused: {found.worst}: a probability differs by {found.largest:.2g}, more than the tolerance of"
            f" {tolerance:g}; nothing was written"
        )
    if found.disputed:
        raise RunError(f"refused: {found.disputed[0]}: gets another label; nothing was written")


def refuse_lost_accuracy(found: Agreement, tolerance: float) -> None:
    """For a file that is allowed to be less exact.

    Raises:
        RunError: it loses more accuracy than the tolerance, or computes NaN; names the image with the most difference.
    """
    if math.isnan(found.largest) or found.lost > tolerance + 1e-9:
        raise RunError(
            f"refused: loses {100 * found.lost:.1f} points of accuracy, more than {100 * tolerance:g}; {found.worst}"
            f" differs the most, by {found.largest:.2g} of a probability; nothing was written"
        )


def milliseconds(before: Run, after: Run, images: Iterable[np.ndarray]) -> tuple[float, float, float]:
    """Medians of both for one image, measured in turns; and the median of how many times as fast the second is."""
    times: list[tuple[float, float]] = []
    waiting = list(images)
    for round_ in range(WARM_UP + ROUNDS):
        image = waiting[round_ % len(waiting)]
        pair = (_seconds(before, image), _seconds(after, image))
        if round_ >= WARM_UP:
            times.append(pair)
    first, second = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return first, second, statistics.median(one / other for one, other in times)


def _seconds(run: Run, image: np.ndarray) -> float:
    started = time.perf_counter()
    run(image)
    return time.perf_counter() - started
