"""From image bytes to probabilities: the one way for prediction, evaluation, export and server alike."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data import files
from data.reading.decode import Resize, decode
from models.classes import put_first
from models.classifier import Classifier
from models.loading import load_model
from models.source import Source, read_checkpoint
from train.config.record import check_trained
from train.errors import ConfigError
from train.precision import Precision
from train.system.device import choose_attention


def resize_for(model: Classifier) -> Resize:
    """From an image of any size to what the model takes."""
    wanted = model.preprocessing
    return Resize(wanted.height, wanted.width, wanted.interpolation, wanted.before_crop)


@dataclass(frozen=True)
class Predictor:
    """Image bytes -> probabilities, by the decoding, the resizing and the `Classifier` of training.

    An image gets the same bits wherever batches are cut alike; in other batches the last bits may differ.
    """

    model: Classifier
    precision: Precision
    label_names: list[str]  # by the index of the class

    def pixels(self, data: bytes, name: str) -> torch.Tensor:
        """One image as the model takes it: uint8 [3, height, width], on the CPU. Any thread may call it.

        Args:
            data: of a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF file.
            name: what to call the image in an error.

        Raises:
            DataError: the image cannot be decoded.
        """
        return resize_for(self.model)(decode(data, name))

    @torch.inference_mode()
    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, height, width] -> float32 [n, classes] (float64 in fp64), on the CPU."""
        with self.precision.autocast():
            logits = self.model(pixels.to(self.precision.device))
        return (logits if logits.dtype == torch.float64 else logits.float()).cpu()

    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, height, width] -> [n, classes], of which each row adds up to 1."""
        return self.logits(pixels).softmax(-1)

    def __call__(self, data: bytes, name: str = "image") -> tuple[str, dict[str, float]]:
        """The most probable class of one image, and the probability of each class, the most probable first.

        Raises:
            DataError: the image cannot be decoded.
        """
        row = self.probabilities(self.pixels(data, name)[None])[0]
        ranking = ranked(row, self.label_names)
        return ranking[0][0], dict(ranking)


def ranked(row: torch.Tensor, label_names: Sequence[str], top: int | None = None) -> list[tuple[str, float]]:
    """Probabilities [classes] -> the `top` most probable classes, or all of them, with their probabilities."""
    order = row.argsort(descending=True, stable=True).tolist()[:top]
    values = row.tolist()
    return [(label_names[index], values[index]) for index in order]


def load_predictor(
    model: str,
    precision: Precision,
    data_classes: Sequence[str] = (),
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
) -> Predictor:
    """Load a trained model, in evaluation mode on its device.

    Args:
        model: folder of a finished run or of a checkpoint, or the name of a model on the Hub.
        precision: device and precision to compute in.
        data_classes: of data to judge it on; they become its first ones.
        revision: branch, tag or commit of a model on the Hub.
        cache_dir: the Hub cache to download to.
        offline: use what that cache holds, and do not ask the network.

    Raises:
        ConfigError: the run has no model yet, or the model was never trained.
        ModelError: in one line, what is wrong with the files or the weights, or that it lacks one of these classes.
    """
    check_trained(model)
    name = files.follow(model)
    if offline and not Path(name).exists():
        raise ConfigError(f"{model}: there is no such folder, and as a name on the Hub, its cache does not hold it")
    source = Source(name, revision, cache_dir, offline)
    with source.explained():
        classes = read_checkpoint(source).classes
    if not classes:
        raise ConfigError(f"{model}: names no classes; only a trained classifier can be used")
    if data_classes:
        classes = put_first(classes, list(data_classes), model)
    attention = choose_attention(precision.device, precision.name)
    where = {"revision": revision, "cache_dir": cache_dir, "offline": offline}
    loaded = load_model(name, classes, attention=attention, dtype=precision.dtype, **where)
    loaded.model.to(precision.device).eval()
    return Predictor(loaded.model, precision, distinct(classes))


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with the index behind those that several classes share: ImageNet has two cranes, bird and machine."""
    counts, taken = Counter(names), set(names)
    found = []
    for index, name in enumerate(names):
        other = name if counts[name] == 1 else f"{name} ({index})"
        while other in taken and counts[name] > 1:
            other += "'"
        taken.add(other)
        found.append(other)
    return found
