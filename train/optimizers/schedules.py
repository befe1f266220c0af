"""Learning-rate schedules by name, and `Schedule`, through which the loop drives any of them."""

import inspect
import json
import math
import warnings
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from train.errors import ConfigError
from train.optimizers.arguments import like, refusals_of
from train.optimizers.names import check_schedule, has_warmup, import_class, schedule_parameters
from train.optimizers.signatures import Parameters, transformers_schedules


class Schedule:
    """Any schedule of torch or transformers, stepped after every update or, like ReduceLROnPlateau, on a metric.

    A schedule is a function of how often it stepped, so a checkpoint holds that number and a resume steps a fresh one
    as often; this is exact for every class, including those that close over functions. Only a schedule that steps on a
    metric has a memory of its own.
    """

    def __init__(self, scheduler: LRScheduler, depends_on_length: bool = True) -> None:
        """Wrap a scheduler.

        Args:
            scheduler: of any class.
            depends_on_length: whether it would have been another one if the run were longer. If not, a run may be
                lengthened when it is resumed.
        """
        self.scheduler, self.depends_on_length, self.steps = scheduler, depends_on_length, 0
        self._on_metric = steps_on_metric(scheduler)

    def step(self) -> None:
        """After an update that was applied."""
        if not self._on_metric:
            self.scheduler.step()
        self.steps += 1

    def step_on_metric(self, value: float) -> None:
        """After an evaluation, with the metric that chooses the best model."""
        if self._on_metric:
            self.scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        if not self._on_metric:
            return {"steps": self.steps}
        memory = {name: value for name, value in self.scheduler.state_dict().items() if _is_json(value)}
        return {"memory": memory, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring a fresh schedule to where the saved one was."""
        if self._on_metric:
            for name, value in state["memory"].items():
                if not like(vars(self.scheduler)[name], value):
                    raise ValueError(f"{name} of the schedule is {value!r}")
            self.scheduler.load_state_dict(state["memory"])
            self.steps = state.get("steps", 0)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about stepping before the optimizer does, which is the point here
            for _ in range(state["steps"]):
                self.step()


def schedule_by_name(
    optimizer: torch.optim.Optimizer, name: str, arguments: str | None, warmup_steps: float, total_updates: int
) -> Schedule:
    """A schedule of transformers or torch.

    Args:
        optimizer: whose learning rates it sets.
        name: one that transformers.get_scheduler knows, or a class of torch.optim.lr_scheduler in any case, or
            `package.module:Class`.
        arguments: `num_cycles=2`, or a JSON object.
        warmup_steps: updates, or below 1 a share of all updates. Only get_scheduler's schedules have a warm-up.
        total_updates: of the whole run.

    Raises:
        ConfigError: no such schedule, or an argument that it does not take, with those that it takes.
    """
    options = check_schedule(name, arguments)
    warmup = math.ceil(warmup_steps * total_updates) if warmup_steps < 1 else int(warmup_steps)
    if warmup and not has_warmup(name):
        raise ConfigError(f"--warmup_steps: {name} has no warm-up; leave it at 0, or take one of get_scheduler's")
    owner, takes = schedule_parameters(name)
    with refusals_of(f"--lr_scheduler_type {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about stepping before the optimizer does, which building one does
        if owner in transformers_schedules():
            from transformers import get_scheduler  # a second of imports, not needed by torch's schedules

            scheduler = get_scheduler(owner, optimizer, warmup, total_updates, options)
        else:
            cls = import_class("lr_scheduler_type", name) if ":" in name else getattr(lr_scheduler, owner)
            given = _run_length(takes, total_updates) | _peak(takes, [group["lr"] for group in optimizer.param_groups])
            scheduler = cls(optimizer, **(given | options))
    return Schedule(scheduler, _depends_on_length(owner, takes, options, warmup_steps))


def steps_on_metric(scheduler: LRScheduler) -> bool:
    """Whether it steps on a metric, like ReduceLROnPlateau, rather than after every update."""
    first = next(iter(inspect.signature(scheduler.step).parameters.values()), None)
    return first is not None and first.name.startswith("metric") and first.default is inspect.Parameter.empty


def _depends_on_length(owner: str, takes: Parameters, options: dict[str, Any], warmup_steps: float) -> bool:
    if owner in transformers_schedules():
        return "num_training_steps" in takes or 0 < warmup_steps < 1
    return bool(_run_length(takes, 1).keys() - options)


def _run_length(takes: Parameters, total: int) -> dict[str, Any]:
    """Required arguments that the length of the run answers."""
    known = {"T_max": total, "total_steps": total, "total_iters": total}
    required = {name for name, parameter in takes.items() if parameter.default is inspect.Parameter.empty}
    filled = {name: known[name] for name in required & known.keys()}
    if takes.keys() >= {"max_lr", "total_steps"}:  # OneCycleLR declares it optional, but cannot be built without
        filled["total_steps"] = total
    return filled


def _peak(takes: Parameters, peaks: list[float]) -> dict[str, Any]:
    """Required arguments that --learning_rate answers, for each group."""
    known = {"max_lr": peaks, "base_lr": [peak / 10 for peak in peaks]}
    return {name: known[name] for name in known.keys() & takes.keys()}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return not inspect.isroutine(value)
