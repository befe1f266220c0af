"""SWAP HERE: parameter groups, the optimizer and the schedule. Whatever these functions return, the loop uses."""

from typing import Any

import torch
from torch import nn

from train.config.schema import RecipeConfig
from train.errors import ConfigError
from train.optimizers.arguments import parse_arguments
from train.optimizers.layers import by_layer
from train.optimizers.lookup import optimizer_by_name
from train.optimizers.schedules import Schedule, schedule_by_name


def build_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters of `model`. To use your own, return it from here.

    Raises:
        ConfigError: no such optimizer, or an argument that it does not take.
    """
    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.layer_decay < 1:
        groups = by_layer(model, groups, recipe.learning_rate, recipe.layer_decay)
    return optimizer_by_name(model, groups, recipe.optim, recipe.optim_args, recipe.learning_rate, recipe.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, recipe: RecipeConfig, total_updates: int) -> Schedule:
    """The learning-rate schedule. To use your own, return `Schedule(your_scheduler)` from here.

    Raises:
        ConfigError: no such schedule, or an argument that it does not take.
    """
    name, arguments = recipe.lr_scheduler_type, recipe.lr_scheduler_kwargs
    if recipe.layer_decay < 1 and {"max_lr", "base_lr"} & parse_arguments("lr_scheduler_kwargs", arguments).keys():
        raise ConfigError("--layer_decay: max_lr or base_lr would give all layers one rate; --learning_rate sets it")
    return schedule_by_name(optimizer, name, arguments, recipe.warmup_steps, total_updates)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """As in the Trainer: all parameters decay but biases and LayerNorms. So position embeddings and BatchNorm do."""
    not_decayed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm)
    }
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = [parameter for name, parameter in trained.items() if name not in not_decayed]
    rest = [parameter for name, parameter in trained.items() if name in not_decayed]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
