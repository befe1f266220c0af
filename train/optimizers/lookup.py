"""From a name and arguments to an optimizer."""

from typing import Any

import torch
from torch import nn

from train.distributed.parallel import is_sharded
from train.errors import ConfigError
from train.optimizers.arguments import refusals_of
from train.optimizers.muon import MuonWithAdamW
from train.optimizers.names import check_optimizer, import_class, optimizer_parameters


def optimizer_by_name(
    model: nn.Module,
    groups: list[dict[str, Any]],
    name: str,
    arguments: str | None,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """An optimizer of torch.optim, or of any package, over parameter groups.

    Args:
        model: whose parameters the groups hold.
        groups: each with its own `weight_decay`.
        name: a class of torch.optim in any case, or `package.module:Class`.
        arguments: `momentum=0.9,nesterov=true`
        learning_rate: the peak, which the schedule multiplies.
        weight_decay: of the groups that decay.

    Raises:
        ConfigError: no such class, or an argument that it does not take, with those that it takes.
    """
    options = check_optimizer(name, arguments, weight_decay)
    owner, takes = optimizer_parameters(name)
    cls = import_class("optim", name) if ":" in name else getattr(torch.optim, owner)
    if "weight_decay" not in takes:
        groups = [{"params": group["params"]} for group in groups]
    if cls is getattr(torch.optim, "Muon", None):
        if any(map(is_sharded, model.parameters())):
            raise ConfigError(f"--optim {name}: needs whole matrices, which --fsdp spreads over the processes")
        return MuonWithAdamW(model, groups, learning_rate, options)
    # One fused kernel instead of one per parameter and operation, where the class has it; so does the Trainer.
    if "fused" in takes and not options.keys() & {"foreach", "differentiable", "fused"}:
        options["fused"] = True
    with refusals_of(f"--optim {name}"):
        return cls(groups, lr=learning_rate, **options)
