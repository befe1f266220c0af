"""SWAP HERE: the training loss, as the sum over images. The loop divides by the number of images in the update.

Evaluation always reports plain cross-entropy, so that runs with different losses can be compared.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from train.errors import ConfigError

LossSum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits [n, classes], labels [n] -> sum of the losses


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over the images; the label -100 marks padding and adds nothing."""
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
            f'the loss function must return a sum over images, such as cross_entropy(..., reduction="sum"): of two'
            f" images it is {both.tolist()}, but of each alone {one_by_one.tolist()} in all"
        )
