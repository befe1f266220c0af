"""Parameter groups, optimizers and schedules: the place to swap one."""

import importlib
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import SchedulerType, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from train import ConfigError
from train.arguments import check_arguments, parse_arguments
from train.muon import MuonWithAdamW

ALIASES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}  # the Trainer's names for it
UNFIT = {"LBFGS": "needs a closure", "SparseAdam": "takes sparse gradients only"}


def build_optimizer(
    model: nn.Module, name: str, arguments: str | None, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer over all parameters of `model`. To use your own, return it from here.

    Args:
        model: its trainable parameters are optimized; biases and LayerNorms without decay.
        name: a class of torch.optim in any case, or `package.module:Class`.
        arguments: `momentum=0.9,nesterov=true`
        learning_rate: peak; the schedule multiplies it.
        weight_decay: of all other parameters.

    Raises:
        ConfigError: no such class, or an argument that it does not take, with those that it takes.
    """
    groups = parameter_groups(model, weight_decay)
    optimizer_class = find_optimizer(name)
    takes = _parameters(optimizer_class)
    options = parse_arguments("optim_args", arguments)
    check_arguments("optim_args", optimizer_class.__name__, options, takes, {"params", "lr", "weight_decay"})
    if "weight_decay" not in takes:
        if weight_decay:
            raise ConfigError(f"--weight_decay {weight_decay}: {optimizer_class.__name__} takes none; leave it at 0")
        groups = [{"params": group["params"]} for group in groups]
    if optimizer_class is getattr(torch.optim, "Muon", None):
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ConfigError(f"--optim {name}: needs whole matrices, which --fsdp spreads over the processes")
        return MuonWithAdamW(model, groups, learning_rate, options)
    # One fused kernel instead of one per parameter and operation, where the class has it; like the Trainer's.
    if "fused" in takes and not options.keys() & {"foreach", "differentiable", "fused"}:
        options["fused"] = True
    try:
        return optimizer_class(groups, lr=learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--optim {name}: {error}") from error


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: what decays, and the biases and LayerNorms that do not. Every parameter is in exactly one."""
    spared = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm)
    }
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = [parameter for name, parameter in trained.items() if name not in spared]
    others = [parameter for name, parameter in trained.items() if name in spared]
    if len(decayed) + len(others) != len(trained):
        raise AssertionError("a parameter is in no group, or in two")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """`adamw` -> torch.optim.AdamW; `package.module:Class` -> that class."""
    name = ALIASES.get(name, name)
    known = _classes(torch.optim, torch.optim.Optimizer)
    found = _import("optim", name) if ":" in name else known.get(_plain(name))
    if found is None:
        raise ConfigError(f"--optim {name}: no such class; torch.optim has {', '.join(sorted(known))}")
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(f"--optim {name}: is no torch.optim.Optimizer")
    if found.__name__ in UNFIT and found.__module__.startswith("torch.optim"):
        raise ConfigError(f"--optim {name}: {UNFIT[found.__name__]}, which this loop does not give")
    return found


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    name: str,
    arguments: str | None,
    warmup_steps: float,
    total_updates: int,
) -> LRScheduler:
    """The learning-rate schedule, stepped once an update. To use your own, return it from here.

    Args:
        optimizer: whose learning rates it sets.
        name: one that transformers.get_scheduler knows, or a class of torch.optim.lr_scheduler in any case, or
            `package.module:Class`.
        arguments: `num_cycles=2`, or a JSON object.
        warmup_steps: updates, or below 1 a share of all updates. Only get_scheduler's schedules take it.
        total_updates: of the whole run.

    Raises:
        ConfigError: no such schedule, or an argument that it does not take, with those that it takes.
    """
    options = parse_arguments("lr_scheduler_kwargs", arguments)
    warmup = math.ceil(warmup_steps * total_updates) if warmup_steps < 1 else int(warmup_steps)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about stepping before the optimizer did, which building does
            if name in {item.value for item in SchedulerType}:
                takes = _parameters(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)])
                check_arguments("lr_scheduler_kwargs", name, options, takes, _GIVEN)
                _refuse_warmup(name, warmup, takes)
                return get_scheduler(name, optimizer, warmup, total_updates, options)
            scheduler_class = find_scheduler(name)
            takes = _parameters(scheduler_class)
            check_arguments("lr_scheduler_kwargs", scheduler_class.__name__, options, takes, _GIVEN)
            _refuse_warmup(name, warmup, takes)
            given = _run_length(takes, total_updates) | _peak(takes, optimizer.param_groups[0]["lr"])
            return scheduler_class(optimizer, **(given | options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--lr_scheduler_type {name}: {error}") from error


_GIVEN = {
    "optimizer",
    "num_warmup_steps",
    "num_training_steps",
    "last_epoch",
}  # set by the loop, not by a flag


def find_scheduler(name: str) -> type[LRScheduler]:
    """`CosineAnnealingLR`, `cosineannealinglr` or `package.module:Class` -> the class."""
    known = _classes(torch.optim.lr_scheduler, LRScheduler)
    found = _import("lr_scheduler_type", name) if ":" in name else known.get(_plain(name))
    if found is None:
        names = [item.value for item in SchedulerType] + sorted(item.__name__ for item in known.values())
        raise ConfigError(f"--lr_scheduler_type {name}: no such schedule; there are {', '.join(names)}")
    return found


def depends_on_length(name: str, arguments: str | None, warmup_steps: float) -> bool:
    """Whether the schedule would have been another one, had the run been planned longer; if so it cannot grow."""
    if 0 < warmup_steps < 1:
        return True
    if name in {item.value for item in SchedulerType}:
        takes = _parameters(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)])
        return "num_training_steps" in takes
    return bool(_run_length(_parameters(find_scheduler(name)), 1).keys() - parse_arguments("", arguments))


def needs_metric(scheduler: LRScheduler) -> bool:
    """Whether it steps on an evaluation's metric, such as ReduceLROnPlateau, rather than on every update."""
    first = next(iter(inspect.signature(scheduler.step).parameters.values()), None)
    return first is not None and first.name.startswith("metric") and first.default is inspect.Parameter.empty


def _run_length(takes: dict[str, inspect.Parameter], total: int) -> dict[str, Any]:
    """Required arguments that the length of the run answers."""
    known = {"T_max": total, "total_steps": total, "total_iters": total}
    required = {name for name, parameter in takes.items() if parameter.default is inspect.Parameter.empty}
    filled = {name: known[name] for name in required & known.keys()}
    if takes.keys() >= {"max_lr", "total_steps"}:  # OneCycleLR: optional in form, demanded when it is built
        filled["total_steps"] = total
    return filled


def _peak(takes: dict[str, inspect.Parameter], peak: float) -> dict[str, Any]:
    """Required arguments that --learning_rate answers."""
    known = {"max_lr": peak, "base_lr": peak / 10}
    return {name: known[name] for name in known.keys() & takes.keys()}


def _refuse_warmup(name: str, warmup: int, takes: dict[str, inspect.Parameter]) -> None:
    if warmup and "num_warmup_steps" not in takes:
        raise ConfigError(f"--warmup_steps: {name} has no warm-up; leave it at 0, or take one of get_scheduler's")


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
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
