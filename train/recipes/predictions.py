"""predictions.csv: what the best model of a run takes each validation image for. A run that has it is finished."""

import csv
import io
import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from data import files
from train.errors import ConfigError
from train.system.streams import printable

PREDICTIONS = "predictions.csv"
MOST_WRONG, MOST_RIGHT = 24, 8  # that are shown
COLUMNS = ["image", "label", "predicted", "probability", "label_probability", "loss"]
FORMULA = ("=", "+", "-", "@", "\t", "'")  # a spreadsheet computes what begins so, unless a quote stands before it


class Prediction(NamedTuple):
    """What one image was taken for."""

    index: int  # of the image in its split
    label: int  # index of a class
    predicted: int
    probability: float  # of the class that was predicted, 0..1
    label_probability: float
    loss: float  # cross-entropy in nats


def write_predictions(
    folder: Path, predictions: list[Prediction], names: Iterable[str], label_names: list[str]
) -> None:
    """Write one row for each image, in the order of the split.

    Args:
        folder: of the run.
        predictions: by the index of the image.
        names: of the split's images, by index; there may be more.
        label_names: by the index of the class.
    """
    images, classes = list(islice(names, predictions[-1].index + 1)), list(map(spreadsheet_safe, label_names))
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for index, label, predicted, *numbers in predictions:
        shown = (f"{number:.6g}" for number in numbers)
        table.writerow([spreadsheet_safe(images[index]), classes[label], classes[predicted], *shown])
    files.write_text(folder / PREDICTIONS, text.getvalue())


def spreadsheet_safe(name: str) -> str:
    """Text of others, which neither a terminal nor a spreadsheet may take for a command."""
    text = printable(name).encode(errors="backslashreplace").decode()
    return f"'{text}" if text.startswith(FORMULA) else text


def worst(predictions: list[Prediction], most: int = MOST_WRONG) -> list[Prediction]:
    """The wrong ones, those of the greatest loss first."""
    wrong = [found for found in predictions if found.predicted != found.label]
    return sorted(wrong, key=lambda found: -found.loss)[:most]


def some_right(predictions: list[Prediction], most: int = MOST_RIGHT) -> list[Prediction]:
    """Right ones at equal steps from the surest to the least sure."""
    right = sorted((found for found in predictions if found.predicted == found.label), key=lambda found: found.loss)
    if len(right) <= most:
        return right
    return [right[round(number * (len(right) - 1) / (most - 1))] for number in range(most)]


def read_predictions(folder: Path) -> list[tuple[str, str]]:
    """(label, predicted) of each image.

    Raises:
        ConfigError: the file cannot be read, or is not such a table.
    """
    return [(label, predicted) for _, label, predicted, *_ in _rows(folder)]


def read_images(folder: Path, label_names: list[str]) -> tuple[list[str], list[Prediction]]:
    """The name of each image, and what it was taken for.

    Args:
        folder: of the run.
        label_names: by the index of the class.

    Raises:
        ConfigError: the file cannot be read, or is not such a table of these classes.
    """
    rows, position = _rows(folder), {spreadsheet_safe(name): index for index, name in enumerate(label_names)}
    try:
        predictions = [
            Prediction(index, position[label], position[predicted], *map(float, numbers))
            for index, (_, label, predicted, *numbers) in enumerate(rows)
        ]
        if not all(math.isfinite(found.probability + found.label_probability) for found in predictions):
            raise ValueError("a probability")
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{folder / PREDICTIONS}: cannot be used: {error} is no class of the run, or no number"
        ) from error
    return [row[0] for row in rows], predictions


def _rows(folder: Path) -> list[list[str]]:
    path = folder / PREDICTIONS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        if header != COLUMNS or not rows or any(len(row) != len(COLUMNS) for row in rows):
            raise ValueError("it is not the table that a run writes")
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be used: {getattr(error, 'strerror', None) or error}") from error
    return rows
