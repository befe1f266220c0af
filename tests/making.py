"""Optimizers and schedules for tests, from the values that matter to them."""

import torch
from torch import nn

from train.config.schema import RecipeConfig
from train.optim import build_optimizer, build_schedule
from train.optimizers.schedules import Schedule
from train.precision import Precision
from train.state import Best, TrainState


def make_optimizer(model: nn.Module, name: str, arguments: str | None = None, lr: float = 1e-2, decay: float = 0.0):
    """As the flags --optim, --optim_args, --learning_rate and --weight_decay build it."""
    return build_optimizer(model, RecipeConfig(optim=name, optim_args=arguments, learning_rate=lr, weight_decay=decay))


def make_schedule(
    optimizer: torch.optim.Optimizer, name: str, arguments: str | None = None, warmup: float = 0, total: int = 10
) -> Schedule:
    """As the flags --lr_scheduler_type, --lr_scheduler_kwargs and --warmup_steps build it."""
    recipe = RecipeConfig(lr_scheduler_type=name, lr_scheduler_kwargs=arguments, warmup_steps=warmup)
    return build_schedule(optimizer, recipe, total)


def make_state(model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, **options) -> TrainState:
    """A state with a constant learning rate, for steps of the loop."""
    return TrainState(model, optimizer, make_schedule(optimizer, "constant"), precision, Best("loss", False), **options)
