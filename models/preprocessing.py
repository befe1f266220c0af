"""What a checkpoint's preprocessor_config.json says: the size that images get, and how pixels are normalised."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from models import ModelError

# PIL's numbers, which preprocessor_config.json stores, for the filters that torchvision has for tensors.
RESAMPLE = {
    0: InterpolationMode.NEAREST_EXACT,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class Preprocessing:
    """Size in pixels and normalisation of one checkpoint, read from its `preprocessor_config.json`."""

    height: int
    width: int
    interpolation: InterpolationMode
    mean: tuple[float, ...] | None  # of values in 0..1; None does not normalise
    std: tuple[float, ...] | None
    rescale_factor: float  # 1/255 for nearly every checkpoint


class Normalize(nn.Module):
    """uint8 [n, 3, h, w] -> float32 [n, 3, h, w], bit-equal to the pixels of transformers' ViTImageProcessor.

    The processor folds rescaling into the normalisation: (x - mean / factor) / (std / factor), in float32
    tensors. Dividing by 255 first, or folding in Python floats, is off by one unit in the last place, which
    fine-tuning amplifies a thousandfold in ten updates.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Not part of the weights: the checkpoint's preprocessor_config.json holds the numbers."""
        super().__init__()
        self.factor, self.normalise = preprocessing.rescale_factor, preprocessing.mean is not None
        for name, value in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            constant = (torch.tensor(value or [1.0]) * (1.0 / self.factor)).view(-1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise a batch on the device it is on."""
        pixels = pixels.to(torch.float32)
        if not self.normalise:
            return pixels * self.factor
        return (pixels - self.mean.float()) / self.std.float()  # float32 also in a model moved to float64


def read_preprocessing(processor: dict[str, Any]) -> Preprocessing:
    """Understand the content of a `preprocessor_config.json`.

    Raises:
        ModelError: it asks for something that this project does not do, which would silently change pixels.
    """
    if processor.get("do_center_crop"):
        raise ModelError("preprocessor_config.json asks for do_center_crop, which ViT checkpoints do not use")
    if not processor.get("do_resize", True):
        raise ModelError("preprocessor_config.json says do_resize: false; images of one size are needed")
    resample = processor.get("resample", 2)
    if resample not in list(RESAMPLE):
        raise ModelError(f"preprocessor_config.json: resample is {resample!r}, known are {sorted(RESAMPLE)}")
    try:
        height, width = _size(processor.get("size"))
        normalise = processor.get("do_normalize", True)
        mean, std = (_three(processor.get(name, [0.5] * 3)) for name in ("image_mean", "image_std"))
        factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
        if not all(map(math.isfinite, (factor, *mean, *std))):
            raise ValueError(f"image_mean {mean}, image_std {std} and rescale_factor {factor} must be finite")
        if min(height, width) < 1 or not factor > 0 or not all(value > 0 for value in std):
            raise ValueError("sizes, standard deviations and the rescale factor must be positive")
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"preprocessor_config.json: a value is not of the form that ViT's has: {error}") from error
    return Preprocessing(
        height=height,
        width=width,
        interpolation=RESAMPLE[resample],
        mean=mean if normalise else None,
        std=std if normalise else None,
        rescale_factor=factor,
    )


def _three(values: Any) -> tuple[float, ...]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _size(size: Any) -> tuple[int, int]:
    """`224` (older files) and `{"height": 224, "width": 224}` -> (height, width) in pixels."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise ModelError(f"preprocessor_config.json: size is {size!r}, expected height and width")
