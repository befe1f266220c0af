"""SWAP HERE: the loss. Training divides a *sum* over images, so that accumulation and short batches stay exact."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from train.errors import ConfigError

LossSum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits [n, classes], labels [n] -> their losses' sum


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over the images; the label -100 stands for no image and counts nothing."""
    return F.cross_entropy(logits, labels, reduction="sum")


def check_is_sum(loss_sum: LossSum, classes: int) -> None:
    """Refuse a loss that averages: the loop divides by the number of images itself.

    Raises:
        ConfigError: the loss of two images is not the sum of their losses.
    """
    logits, labels = torch.linspace(-1, 1, 2 * classes).view(2, classes), torch.tensor([0, classes - 1])
    both = loss_sum(logits, labels)
    one_by_one = loss_sum(logits[:1], labels[:1]) + loss_sum(logits[1:], labels[1:])
    if both.shape or not torch.allclose(both, one_by_one, rtol=1e-4):
        raise ConfigError(
            f"the loss of two images is {both.tolist()}, but their losses add up to {one_by_one.tolist()}: it must be a"
            ' sum over images, such as cross_entropy(..., reduction="sum")'
        )
