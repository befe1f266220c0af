"""What a checkpoint's own image processor says, in two halves: resize uint8 on the CPU, normalise on the device."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from data import DataError

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

    def resize(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [3, any, any] -> uint8 [3, height, width], antialiased, aspect ratio not kept (as ViT does)."""
        return tvf.resize(image, [self.height, self.width], interpolation=self.interpolation, antialias=True)


class Normalize(nn.Module):
    """uint8 [n, 3, h, w] -> `dtype` [n, 3, h, w], bit-equal to the pixels of transformers' ViTImageProcessor.

    The processor folds rescaling into the normalisation: (x - mean / factor) / (std / factor), in float32
    tensors. Dividing by 255 first, or folding in Python floats, is off by one unit in the last place, which
    fine-tuning amplifies a thousandfold in ten updates. Wider dtypes widen afterwards for the same reason.
    """

    def __init__(self, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is what the model's parameters have; autocast narrows further by itself."""
        super().__init__()
        self.dtype, self.factor = dtype, preprocessing.rescale_factor
        self.normalise = preprocessing.mean is not None
        for name, value in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, (torch.tensor(value or [1.0]) * (1.0 / self.factor)).view(-1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise a batch on whatever device it is."""
        pixels = pixels.to(torch.float32)
        return ((pixels - self.mean) / self.std if self.normalise else pixels * self.factor).to(self.dtype)


def read_preprocessing(processor: dict[str, Any]) -> Preprocessing:
    """Understand the content of a `preprocessor_config.json`.

    Raises:
        DataError: it asks for something that this project does not do, which would silently change pixels.
    """
    if processor.get("do_center_crop"):
        raise DataError("preprocessor_config.json asks for do_center_crop, which ViT checkpoints do not use")
    if not processor.get("do_resize", True):
        raise DataError("preprocessor_config.json says do_resize: false; images of one size are needed")
    resample = processor.get("resample", 2)
    if resample not in list(RESAMPLE):
        raise DataError(f"preprocessor_config.json: resample is {resample!r}, known are {sorted(RESAMPLE)}")
    try:
        height, width = _size(processor.get("size"))
        normalise = processor.get("do_normalize", True)
        mean, std = (_three(processor.get(name, [0.5] * 3)) for name in ("image_mean", "image_std"))
        factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
        if min(height, width) < 1 or not factor > 0 or not all(value > 0 for value in std):
            raise ValueError("sizes, standard deviations and the rescale factor must be positive")
    except (TypeError, ValueError) as error:
        raise DataError(f"preprocessor_config.json: a value is not of the form that ViT's has: {error}") from error
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
    raise DataError(f"preprocessor_config.json: size is {size!r}, expected height and width")
