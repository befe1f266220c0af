"""The whole way from decoded pixels to probabilities as one torch module, which every format is made from.

Training resizes with torchvision, whose antialiased resize exporters lack for images of any size. Here it is two
matrix products: each row of a weight matrix, computed in the graph from the size of the image, says how much of each
pixel an output pixel is made of. That is exact for every filter, and needs no operator that a runtime may lack.
"""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from data.reading.decode import MOST_LONG, Resize
from models.classifier import Classifier
from train.inference.predictor import resize_for

CUBIC = -0.5  # Pillow's and torchvision's coefficient where they antialias
# torchvision resizes uint8 with integer weights below 2**15: of the powers of two up to 2**22, the largest that allows.
SHIFTS = tuple(2.0**bits for bits in range(23))
LARGEST = 2.0**15


class Graph(nn.Module):
    """uint8 image [height, width, 3], RGB, upright, of any size -> probabilities [classes], float32."""

    def __init__(self, classifier: Classifier) -> None:
        """`classifier` in evaluation mode, on the CPU, in float32."""
        super().__init__()
        self.classifier, self.resize = classifier, resize_for(classifier)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Resize, cut out the middle where the checkpoint does, normalise, classify."""
        rows, columns = resize_weights(self.resize, image.shape[0], image.shape[1])
        pixels = image.permute(2, 0, 1).float()
        pixels = rounded(rows @ rounded(pixels @ columns.T))  # width first, and rounded between, as torchvision does
        return self.classifier(pixels[None])[0].softmax(-1)


def rounded(pixels: torch.Tensor) -> torch.Tensor:
    """Whole numbers from 0 to 255, halves upwards; as floats."""
    return torch.floor(pixels + 0.5).clamp(0, 255)


def resize_weights(resize: Resize, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `resize` makes each pixel of, for an image of this size: float32 [resize.height, height], [.width, width].

    While a graph is traced, `height` and `width` are symbols: no `if` here may depend on them.
    """
    size = torch.stack([torch.scalar_tensor(side, dtype=torch.float64) for side in (height, width)])
    target = torch.tensor([resize.height, resize.width], dtype=torch.float64)
    kept, resized = size, target
    if resize.before_crop is not None:
        kept = torch.minimum(size, MOST_LONG * size.min())  # as decode's Resize, of a picture far longer than wide
        larger = torch.tensor(resize.before_crop, dtype=torch.float64)
        resized = larger if len(larger) == 2 else torch.floor(larger * kept / kept.min())
    start, first = torch.round((size - kept) / 2), torch.floor((resized - target) / 2)  # halves to even, and down
    matrices = [
        _weights(resize.interpolation, length, start[axis], kept[axis], resized[axis], first[axis], out)
        for axis, (length, out) in enumerate(((height, resize.height), (width, resize.width)))
    ]
    return matrices[0], matrices[1]


def _weights(
    interpolation: InterpolationMode,
    length: int,
    start: torch.Tensor,
    kept: torch.Tensor,
    resized: torch.Tensor,
    first: torch.Tensor,
    out: int,
) -> torch.Tensor:
    """The weights along one side: float32 [out, length].

    Args:
        interpolation: the filter.
        length: of the image.
        start: the first pixel that is used.
        kept: how many are used.
        resized: how many pixels they become.
        first: of those, the first that is kept,
        out: and how many are.
    """
    pixel = torch.arange(length, dtype=torch.float64)[None] - start
    inside = (pixel >= 0) & (pixel < kept)
    # The outermost pixels too, though a crop may drop them: the largest weight is theirs, and decides the rounding.
    middle = torch.arange(out, dtype=torch.float64) + first
    target = torch.cat([torch.zeros(1, dtype=torch.float64), middle, resized[None] - 1])[:, None]
    scale = kept / resized
    if interpolation == InterpolationMode.NEAREST_EXACT:
        nearest = torch.minimum(torch.floor((target.float() + 0.5) * scale.float()), kept - 1)
        return (pixel == nearest)[1:-1].float()
    distance = (pixel + 0.5 - (target + 0.5) * scale) / scale.clamp(min=1)
    weights = FILTERS[interpolation](distance) * inside
    weights = weights / weights.sum(1, keepdim=True)
    shifts = torch.tensor(SHIFTS, dtype=torch.float64)
    shift = torch.where(torch.floor(weights.max() * shifts + 0.5) < LARGEST, shifts, 1.0).max()
    return (torch.round(weights * shift) / shift)[1:-1].float()


def _triangle(distance: torch.Tensor) -> torch.Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    x = distance.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


FILTERS: dict[InterpolationMode, Callable[[torch.Tensor], torch.Tensor]] = {
    InterpolationMode.BILINEAR: _triangle,
    InterpolationMode.BICUBIC: _cubic,
}
