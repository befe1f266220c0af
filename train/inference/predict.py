"""Any number of image files through a model, in order and in bounded memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch

from data import DataError
from data.threads import in_threads
from train.inference.images import read_image
from train.inference.predictor import Predictor


class Row(NamedTuple):
    """What one file was taken for."""

    path: str
    probabilities: torch.Tensor | None  # [classes]; None if the file cannot be used
    error: str = ""  # why not


def predict_files(
    predictor: Predictor, paths: Iterable[str], batch_size: int, total: int | None = None
) -> Iterator[Row]:
    """One row for each file, in order.

    Decoding runs on all cores, ahead of the model. A batch is `batch_size` files in a row; those among them that
    cannot be used get a row with the reason, and the batch is smaller.

    Args:
        predictor: the model.
        paths: of the files; they are taken as they are needed.
        batch_size: images in one call of the model.
        total: number of files, if it is known, for the progress bar.
    """

    def prepared(path: str) -> tuple[str, torch.Tensor | str]:
        try:
            return path, predictor.pixels(read_image(path), path)
        except DataError as error:
            return path, str(error).removeprefix(f"{path}: ")
        except OSError as error:
            return path, f"cannot be read: {error.strerror or error}"

    found_in_order = in_threads(prepared, paths, "predicting", total)
    while files := list(islice(found_in_order, batch_size)):
        pixels = [found for _, found in files if isinstance(found, torch.Tensor)]
        rows = iter(predictor.probabilities(torch.stack(pixels))) if pixels else iter(())
        for path, found in files:
            yield Row(path, next(rows)) if isinstance(found, torch.Tensor) else Row(path, None, found)
