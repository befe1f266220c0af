"""Optimizers and schedules by name: which there are, and what they take. Judged without importing torch."""

import importlib
import inspect
from collections.abc import Collection, Sequence
from typing import Any

from train.errors import ConfigError
from train.optimizers.arguments import check_arguments, parse_arguments, refusals_of
from train.optimizers.signatures import Parameters, torch_optimizers, torch_schedules, transformers_schedules

ALIASES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}  # the Trainer's names for it
UNFIT = {"LBFGS": "needs a closure", "SparseAdam": "takes sparse gradients only"}
BASES = {"optim": "Optimizer", "lr_scheduler_type": "lr_scheduler.LRScheduler"}
NEED_OBJECTS = {"SequentialLR", "ChainedScheduler", "LambdaLR", "MultiplicativeLR"}  # which no flag can hold
SET_BY_THE_RUN = {"T_max", "total_steps", "total_iters", "max_lr", "base_lr"}  # its length, or --learning_rate
SET_BY_THE_LOOP = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def check_optimizer(name: str, arguments: str | None, weight_decay: float) -> dict[str, Any]:
    """The keyword arguments of an optimizer.

    Raises:
        ConfigError: no such class, or an argument or form of value that it does not take.
    """
    owner, takes = optimizer_parameters(name)
    if owner in UNFIT:
        raise ConfigError(f"--optim {name}: {UNFIT[owner]}, which this loop does not provide")
    options = parse_arguments("optim_args", arguments)
    check_arguments("optim_args", owner, options, takes, {"params", "lr", "weight_decay"})
    if weight_decay and "weight_decay" not in takes:
        raise ConfigError(f"--weight_decay {weight_decay}: {owner} takes none; leave it at 0")
    return options


def check_schedule(name: str, arguments: str | None) -> dict[str, Any]:
    """The keyword arguments of a schedule.

    Raises:
        ConfigError: no such schedule, or an argument or form of value that it does not take.
    """
    options = parse_arguments("lr_scheduler_kwargs", arguments)
    owner, takes = schedule_parameters(name)
    check_arguments("lr_scheduler_kwargs", owner, options, takes, SET_BY_THE_LOOP)
    needed = {key for key, parameter in takes.items() if parameter.default is inspect.Parameter.empty}
    needed -= {"kwargs", *options, *SET_BY_THE_LOOP, *SET_BY_THE_RUN}
    if needed and (":" not in name or owner in torch_schedules()):
        missing = ",".join(f"{key}=..." for key in sorted(needed))
        raise ConfigError(f"--lr_scheduler_type {name}: needs --lr_scheduler_kwargs {missing}")
    return options


def optimizer_parameters(name: str) -> tuple[str, Parameters]:
    """`adamw` -> AdamW and its parameters; `package.module:Class` -> those of that class."""
    return _find("optim", ALIASES.get(name, name), torch_optimizers(), unfit=UNFIT)


def schedule_parameters(name: str) -> tuple[str, Parameters]:
    """`cosine`, `CosineAnnealingLR`, `package.module:Class` -> the schedule's full name and its parameters."""
    if name in transformers_schedules():
        return name, transformers_schedules()[name]
    return _find("lr_scheduler_type", name, torch_schedules(), NEED_OBJECTS, also=list(transformers_schedules()))


def has_warmup(name: str) -> bool:
    """Whether the schedule of that name takes --warmup_steps."""
    return "num_warmup_steps" in schedule_parameters(name)[1]


def import_class(flag: str, name: str) -> type:
    """The class that `package.module:Class` names; ConfigError if it cannot be imported."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(f"--{flag} {name}: must have the form package.module:Class")
    with refusals_of(f"--{flag} {name}"):
        found = getattr(importlib.import_module(module), attribute)
    if not inspect.isclass(found):
        raise ConfigError(f"--{flag} {name}: is not a class")
    return found


def _find(
    flag: str, name: str, known: dict[str, Parameters], unfit: Collection[str], also: Sequence[str] = ()
) -> tuple[str, Parameters]:
    if ":" in name:
        found = import_class(flag, name)
        base = BASES[flag]
        parents = [parent.__name__ for parent in found.__mro__]  # by name, because torch is not imported yet
        if base.rpartition(".")[2] not in parents:
            raise ConfigError(f"--{flag} {name}: is not a torch.optim.{base}")
        return found.__name__, dict(inspect.signature(found).parameters)
    owner = next((known_name for known_name in known if _plain(known_name) == _plain(name)), None)
    if owner is None:
        offered = ", ".join([*also, *sorted(known.keys() - set(unfit))])
        raise ConfigError(f"--{flag} {name}: no such name; choose from {offered}")
    return owner, known[owner]


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
