"""From a name to the optimizer or schedule class, and the arguments that it takes."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import SchedulerType

from train.errors import ConfigError
from train.optimizers.arguments import check_arguments, parse_arguments
from train.optimizers.muon import MuonWithAdamW

ALIASES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}  # the Trainer's names for it
UNFIT = {"LBFGS": "needs a closure", "SparseAdam": "takes sparse gradients only"}


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
    cls = find_optimizer(name)
    options, takes = check_optimizer(name, arguments, weight_decay), parameters_of(cls)
    if "weight_decay" not in takes:
        groups = [{"params": group["params"]} for group in groups]
    if cls is getattr(torch.optim, "Muon", None):
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ConfigError(f"--optim {name}: needs whole matrices, which --fsdp spreads over the processes")
        return MuonWithAdamW(model, groups, learning_rate, options)
    # One fused kernel instead of one per parameter and operation, where the class has it; so does the Trainer.
    if "fused" in takes and not options.keys() & {"foreach", "differentiable", "fused"}:
        options["fused"] = True
    try:
        return cls(groups, lr=learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--optim {name}: {error}") from error


def check_optimizer(name: str, arguments: str | None, weight_decay: float) -> dict[str, Any]:
    """The keyword arguments of an optimizer, as far as they can be judged without a model.

    Raises:
        ConfigError: no such class, or an argument or a value that it does not take.
    """
    cls = find_optimizer(name)
    takes = parameters_of(cls)
    options = parse_arguments("optim_args", arguments)
    check_arguments("optim_args", cls.__name__, options, takes, {"params", "lr", "weight_decay"})
    if weight_decay and "weight_decay" not in takes:
        raise ConfigError(f"--weight_decay {weight_decay}: {cls.__name__} takes none; leave it at 0")
    return options


def find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """`adamw` -> torch.optim.AdamW; `package.module:Class` -> that class."""
    name = ALIASES.get(name, name)
    known = _classes(torch.optim, torch.optim.Optimizer)
    found = _import("optim", name) if ":" in name else known.get(_plain(name))
    if found is None:
        raise ConfigError(f"--optim {name}: no such class; torch.optim has {', '.join(sorted(known))}")
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(f"--optim {name}: is not a torch.optim.Optimizer")
    if found.__name__ in UNFIT and found.__module__.startswith("torch.optim"):
        raise ConfigError(f"--optim {name}: {UNFIT[found.__name__]}, which this loop does not provide")
    return found


def find_scheduler(name: str) -> type[LRScheduler]:
    """`CosineAnnealingLR`, `cosineannealinglr` or `package.module:Class` -> the class."""
    known = _classes(torch.optim.lr_scheduler, LRScheduler)
    found = _import("lr_scheduler_type", name) if ":" in name else known.get(_plain(name))
    if found is None:
        names = [item.value for item in SchedulerType] + sorted(item.__name__ for item in known.values())
        raise ConfigError(f"--lr_scheduler_type {name}: no such schedule; there are {', '.join(names)}")
    return found


def parameters_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class by name."""
    return dict(inspect.signature(function).parameters)


def _classes(module: Any, base: type) -> dict[str, type]:
    found = {_plain(name): item for name, item in vars(module).items() if inspect.isclass(item)}
    return {name: item for name, item in found.items() if issubclass(item, base) and item is not base}


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _import(flag: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--{flag} {name}: {error}; the form is package.module:Class") from error
