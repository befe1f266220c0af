"""What a checkpoint's preprocessor_config.json says: the size that images get, and how pixels are normalised."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from models import ModelError
from models.config import SIDES, shown

PROCESSOR_FILE = "preprocessor_config.json"
# The processors of transformers that do what is done here. Files of all but the first must state what decides.
PROCESSORS = ("ViTImageProcessor", "DeiTImageProcessor", "BitImageProcessor")
TO_STATE = ("do_center_crop", "image_mean", "image_std", "resample", "size")
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
    before_crop: tuple[int, ...] | None  # shortest edge, or height and width, of which the middle is cut out
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
    kind = _kind(processor)
    if not processor.get("do_resize", True):
        raise ModelError("preprocessor_config.json says do_resize: false; images of one size are needed")
    resample = processor.get("resample", 2)
    if resample not in list(RESAMPLE):
        raise ModelError(f"preprocessor_config.json: resample is {resample!r}, known are {sorted(RESAMPLE)}")
    (height, width), before_crop = _sizes(processor, kind)
    try:
        normalise = processor.get("do_normalize", True)
        mean, std = (_three(processor.get(name, [0.5] * 3)) for name in ("image_mean", "image_std"))
        factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
        if not all(map(math.isfinite, (factor, *mean, *std))):
            raise ValueError(f"image_mean {mean}, image_std {std} and rescale_factor {factor} must be finite")
        if not factor > 0 or not all(value > 0 for value in std):
            raise ValueError("standard deviations and the rescale factor must be positive")
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"preprocessor_config.json: a value is not of the form that ViT's has: {error}") from error
    return Preprocessing(
        height=height,
        width=width,
        before_crop=before_crop,
        interpolation=RESAMPLE[resample],
        mean=mean if normalise else None,
        std=std if normalise else None,
        rescale_factor=factor,
    )


def for_side(processor: dict[str, Any], side: int) -> dict[str, Any]:
    """The content of a `preprocessor_config.json` that takes the same part of each image, in `side` x `side` pixels."""
    size, wanted = {"height": side, "width": side}, read_preprocessing(processor)
    if wanted.before_crop is None:
        return processor | {"size": size}
    larger = [round(edge * side / wanted.height) for edge in wanted.before_crop]
    names = ["shortest_edge"] if len(larger) == 1 else ["height", "width"]
    return processor | {"size": dict(zip(names, larger, strict=True)), "crop_size": size}


def _kind(processor: dict[str, Any]) -> str:
    """Which of PROCESSORS it is, by whatever name."""
    named = processor.get("image_processor_type") or processor.get("feature_extractor_type") or PROCESSORS[0]
    kind = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in PROCESSORS:
        known = ", ".join(PROCESSORS)
        raise ModelError(f"preprocessor_config.json: image_processor_type is {shown(named)}, known are {known}")
    if kind != PROCESSORS[0] and (silent := [entry for entry in TO_STATE if entry not in processor]):
        raise ModelError(f"preprocessor_config.json: does not say {', '.join(silent)}, which a {kind} must")
    return kind


def _sizes(processor: dict[str, Any], kind: str) -> tuple[list[int], tuple[int, ...] | None]:
    """Height and width in pixels of the result; and what is resized to before the middle is cut out, if it is."""
    size = processor.get("size")
    if kind == "BitImageProcessor" and type(size) is int:
        size = {"shortest_edge": size}
    if not processor.get("do_center_crop"):
        return _height_and_width("size", size), None
    crop = _height_and_width("do_center_crop, and crop_size", processor.get("crop_size"))
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        before = [size["shortest_edge"]]
        fits = _is_side(before[0]) and before[0] >= max(crop)
    else:
        before = _height_and_width("size", size)
        fits = before[0] >= crop[0] and before[1] >= crop[1]
    if not fits:  # transformers would add black margins
        raise ModelError(f"preprocessor_config.json: size is {shown(size)}, from which crop_size {crop} cannot be cut")
    return crop, tuple(before)


def _height_and_width(name: str, size: Any) -> list[int]:
    """`224` (older files) and `{"height": 224, "width": 224}` -> height and width in pixels."""
    pair = (
        [size["height"], size["width"]] if isinstance(size, dict) and {"height", "width"} <= size.keys() else [size] * 2
    )
    if not all(map(_is_side, pair)):
        most = SIDES["image_size"]
        raise ModelError(
            f"preprocessor_config.json: {name} is {shown(size)}, expected height and width, at most {most}"
        )
    return pair


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= SIDES["image_size"]


def _three(values: Any) -> tuple[float, ...]:
    red, green, blue = values
    return float(red), float(green), float(blue)
