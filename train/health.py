"""Are losses and gradients numbers? An update with one that is not changes nothing, and ends the run."""

from dataclasses import dataclass, field

import torch
from torch.distributed.tensor import DTensor


class NonFiniteError(ArithmeticError):
    """The loss or the gradient of an update was nan or infinite; neither it nor any later one was applied."""

    def __init__(self, what: str, update: int) -> None:
        """`what` is wrong with `update` (from 1)."""
        super().__init__(what)
        self.what, self.update = what, update


@dataclass
class Health:
    """The verdict on the updates so far, kept on the device: to read it there and then would make the host wait.

    From the first bad update on, all are refused, so that the weights stay those before it until the host asks.
    """

    device: torch.device
    dtype: torch.dtype  # of the losses
    refused: torch.Tensor = field(init=False)  # how many updates: the first bad one, and all after it
    first: torch.Tensor = field(init=False)  # loss and gradient norm of the first bad one

    def __post_init__(self) -> None:
        """Nothing was refused yet."""
        self.refused = torch.zeros((), dtype=torch.int64, device=self.device)
        self.first = torch.zeros(2, dtype=self.dtype, device=self.device)

    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Refuse this update and all later ones if one of its two numbers is none."""
        numbers = torch.stack([loss, grad_norm])
        self.first = torch.where(self.refused > 0, self.first, numbers)
        self.refused += (self.refused > 0) | ~torch.isfinite(numbers).all()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimizer, unless it is refused; queued on a GPU without waiting for the verdict."""
        if not refuses_on_device(optimizer):
            if not self.refused:
                optimizer.step()
            return
        # The same two attributes by which torch's GradScaler has a fused kernel leave everything as it is.
        optimizer.grad_scale, optimizer.found_inf = None, (self.refused > 0).float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf

    def check(self, update: int) -> None:
        """Read the verdict after `update` updates, for which the host waits until the device has done them.

        Raises:
            NonFiniteError: one was refused; tells the first.
        """
        if count := int(self.refused):
            loss, grad_norm = self.first
            what = "the loss" if not torch.isfinite(loss) else "the gradient norm"
            value = loss if not torch.isfinite(loss) else grad_norm
            raise NonFiniteError(f"{what} is {value.item()}", update - count + 1)


def refuses_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's kernel can leave out a step by itself: torch's fused ones on CUDA, unless sharded."""
    first = optimizer.param_groups[0]["params"][0]
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return fused and first.is_cuda and not isinstance(first, DTensor)
