"""SWAP HERE: the training loss, as the sum over images. The loop divides by the number of images in the update.

Evaluation always reports plain cross-entropy, so that runs with different losses can be compared.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from data.plan import IGNORED
from train.errors import ConfigError
from train.precision import Precision

# logits [n, classes], and either labels int64 [n] or the share of each class [n, classes] -> sum of the losses
LossSum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(weight: torch.Tensor | None, label_smoothing: float, adjustment: torch.Tensor | None = None) -> LossSum:
    """The training loss. To use your own, such as `focal_loss_sum`, return it from here.

    Args:
        weight: of each class [classes], which --class_weights asks for.
        label_smoothing: share of every label that is spread over all classes.
        adjustment: of each class [classes], added to the logits, which --logit_adjustment asks for.
    """
    return partial(cross_entropy_sum, weight=weight, label_smoothing=label_smoothing, adjustment=adjustment)


def cross_entropy_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    adjustment: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy in nats, summed over the images; the label -100 marks padding and adds nothing.

    Args:
        logits: [n, classes].
        labels: int64 [n]; or, after MixUp or CutMix, the share of each class [n, classes], all zero for padding.
        weight: of each class [classes]; the sum is not divided by the weights.
        label_smoothing: share of every label that is spread over all classes (Szegedy et al., 2016).
        adjustment: of each class [classes], added to the logits (Menon et al., Long-tail learning via logit
            adjustment, 2021). Labels are then smoothed in its proportions: spread evenly, they would ask for less
            distance between a frequent class and a rare one than the adjustment takes away.
    """
    spread: float | torch.Tensor = 1 / logits.shape[-1]
    if adjustment is not None:
        logits, spread = logits + adjustment, adjustment.softmax(-1)
        if label_smoothing and not labels.is_floating_point():
            kept = labels != IGNORED
            labels = F.one_hot(labels.where(kept, 0), logits.shape[-1]).to(logits.dtype) * kept[:, None]
    if not labels.is_floating_point():
        return F.cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=label_smoothing)
    whole = labels.sum(-1, keepdim=True)  # 1, but 0 for padding, which stays 0
    shares = (1 - label_smoothing) * labels + label_smoothing * spread * whole
    return F.cross_entropy(logits, shares.to(torch.promote_types(logits.dtype, torch.float32)), weight, reduction="sum")


def focal_loss_sum(logits: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss, summed over the images: (1 - p)^gamma times cross-entropy (Lin et al., 2017).

    An example of a loss of your own: logits [n, classes], labels int64 [n] with -100 for padding.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** gamma * losses).sum()


def check_is_sum(loss_sum: LossSum, classes: int, precision: Precision) -> None:
    """Refuse a loss that averages: the loop divides by the number of images itself.

    Raises:
        ConfigError: the loss of two images is not the sum of their losses.
    """
    where = {"dtype": precision.dtype, "device": precision.device}
    logits = torch.linspace(-1, 1, 2 * classes, **where).view(2, classes)
    labels = torch.tensor([0, classes - 1], device=precision.device)
    both = loss_sum(logits, labels)
    one_by_one = loss_sum(logits[:1], labels[:1]) + loss_sum(logits[1:], labels[1:])
    if both.shape or not torch.allclose(both, one_by_one, rtol=1e-4):
        raise ConfigError(
            f'the loss function must return a sum over images, such as cross_entropy(..., reduction="sum"): of two'
            f" images it is {both.tolist()}, but of each alone {one_by_one.tolist()} in all"
        )
