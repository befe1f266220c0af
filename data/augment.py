"""What training does to images at random, by torchvision's v2 transforms.

Images are changed one at a time, each seeded by (seed, epoch, index): a transform draws once for whatever it is handed,
so a batch would share one crop. Mixing works on a whole batch, because it blends its images with each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torchvision.transforms import InterpolationMode, v2

from data.plan import IGNORED, Sample
from data.reading.decode import Resize
from data.seeds import derive_seed

Augment = Callable[[torch.Tensor], torch.Tensor]  # one image uint8 [3, any, any] -> uint8 [3, h, w]
Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # pixels, labels -> the same, blended


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed at random; by default not at all."""

    policy: str = "none"  # none, flip, flip_both, trivial, rand or auto
    magnitude: int = 9  # of rand
    crop: float | None = None  # least share of the area that a random crop keeps
    erasing: float = 0.0  # share of the images that lose a rectangle
    fill: tuple[int, ...] = (0, 0, 0)  # colour of what is turned in from outside, or erased

    @property
    def active(self) -> bool:
        """Whether images are changed at all."""
        return self.policy != "none" or self.crop is not None or self.erasing > 0

    def stored(self, resize: Resize) -> Resize:
        """The size to keep training images in: larger where they are cropped.

        A crop of average area then has as many pixels as the model takes.
        """
        if self.crop is None:
            return resize
        factor = 1 / math.sqrt((self.crop + 1) / 2)
        height, width = math.ceil(resize.height * factor), math.ceil(resize.width * factor)
        return replace(resize, height=height, width=width, before_crop=None)

    def build(self, resize: Resize) -> Augment | None:
        """The transform of one image, as `stored` has it, to the size of `resize`; None if nothing is to be changed.

        TrivialAugmentWide: Mueller and Hutter, 2021. RandAugment: Cubuk et al., 2019. AutoAugment: the same, 2018, with
        the policy found on ImageNet. Random erasing: Zhong et al., 2017. What is erased or turned in from outside has
        the mean colour, which is zero for the model.
        """
        if not self.active:
            return None
        steps: list[torch.nn.Module] = []
        size, fill = (resize.height, resize.width), list(self.fill)
        if self.crop is not None:
            steps.append(v2.RandomResizedCrop(size, (self.crop, 1.0), interpolation=resize.interpolation))
        if self.policy != "none":
            steps.append(v2.RandomHorizontalFlip())
        bilinear = {"interpolation": InterpolationMode.BILINEAR, "fill": fill}
        if self.policy == "flip_both":
            steps.append(v2.RandomVerticalFlip())
        elif self.policy == "trivial":
            steps.append(v2.TrivialAugmentWide(**bilinear))
        elif self.policy == "rand":
            steps.append(v2.RandAugment(magnitude=self.magnitude, **bilinear))
        elif self.policy == "auto":
            steps.append(v2.AutoAugment(**bilinear))
        if self.erasing > 0:
            steps.append(v2.RandomErasing(self.erasing, value=fill))
        return v2.Compose(steps)


def augmented(augment: Augment, images: torch.Tensor, seed: int, samples: Sequence[Sample]) -> torch.Tensor:
    """Each image of a batch changed as its (epoch, index) says.

    What a transform draws depends on the sample alone: the same pixels for any number of workers, and after a resume.

    Args:
        augment: of one image.
        images: uint8 [n, 3, any, any].
        seed: of the run.
        samples: of each image.
    """
    changed = []
    for image, (epoch, index) in zip(images, samples, strict=True):
        # The generator itself, because torch.manual_seed costs 70 times as much.
        torch.default_generator.manual_seed(derive_seed(seed, "augment", epoch, index))
        changed.append(augment(image))
    return torch.stack(changed)


def as_they_are(pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """No mixing."""
    return pixels, labels


def build_mix(mixup: float, cutmix: float, classes: int) -> Mix:
    """Blend each image of a batch, and its label, with its neighbour; drawn from torch's global generator.

    MixUp: Zhang et al., 2017. CutMix: Yun et al., 2019. With both, one of the two is drawn for each batch.

    Args:
        mixup, cutmix: alpha of the Beta distribution that the share is drawn from; 0 leaves the method out.
        classes: number of classes.

    Returns:
        A function from pixels [n, 3, h, w] and labels [n] to float32 pixels and the share of each class [n, classes].
        The shares of an image sum to 1. One that stands in for none has no share of its own.
    """
    methods = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    methods += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    if not methods:
        return as_they_are
    method = v2.RandomChoice(methods) if len(methods) > 1 else methods[0]

    def mix(pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.nn.functional.one_hot(labels.clamp(min=0), classes).float() * (labels != IGNORED)[:, None]
        return method(pixels.float(), shares)  # normalisation is linear, so pixels can be blended before it

    return mix
