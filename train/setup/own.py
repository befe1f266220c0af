"""A model and data sets of your own, from Python."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from data.loading.loader import OwnImages
from data.pipeline import DataPipeline, LoadingOptions, dataset_pipeline
from train.checkpoint import resume
from train.config.record import check_output_dir, is_run
from train.config.schema import FLAGS, AugmentConfig, Config, DataConfig, ModelConfig, RecipeConfig, RunConfig
from train.distributed.collectives import on_rank_zero
from train.errors import ConfigError
from train.loss import LossSum, check_is_sum, cross_entropy_sum
from train.optim import build_schedule
from train.optimizers.schedules import Schedule
from train.output.run_output import RunOutput
from train.precision import choose_compute
from train.setup.inputs import make_plan
from train.setup.job import describe, open_output, start_state
from train.state import TrainState
from train.system.console import say
from train.system.lock import Lock


def own_run(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Dataset,
    validation: Dataset,
    label_names: list[str],
    run: RunConfig,
    recipe: RecipeConfig,
    schedule: Schedule | None = None,
    loss_sum_fn: LossSum = cross_entropy_sum,
    fingerprint: str | None = None,
) -> tuple[TrainState, DataPipeline, RunOutput]:
    """What `fit` needs to train a model of your own on data of your own, with checkpoints, `best` and exact resume.

    Args:
        model: uint8 images [n, 3, h, w] -> logits [n, classes].
        optimizer: of its parameters.
        train, validation: map-style; item i is a uint8 image [3, h, w] and the index of its class.
        label_names: of the classes, by index.
        run: `output_dir` must be set; `resume_from_checkpoint="auto"` continues the run in it.
        recipe: how long to train, and how often to log, evaluate and save.
        schedule: by default the one that `recipe` names.
        loss_sum_fn: the loss, summed over images.
        fingerprint: identity of the data, which a resume compares; by default `train.fingerprint()` if there is such.

    Raises:
        ConfigError: something given cannot be used or would have no effect, or the folder holds another run.
    """
    _check(model, optimizer, train, validation, run, recipe, schedule)
    config = Config(replace(run, preset="python"), DataConfig(), ModelConfig(), AugmentConfig(), recipe)
    check_output_dir(run.output_dir, resuming=run.resume_from_checkpoint is not None and is_run(run.output_dir))
    precision = choose_compute(run)
    plan = make_plan(recipe, len(train), run)
    options = LoadingOptions(recipe.per_device_eval_batch_size)
    images = OwnImages(train, run.seed), OwnImages(validation, run.seed)
    data = dataset_pipeline(*images, plan, precision.device, label_names, options, say)
    data = replace(data, fingerprint=fingerprint or getattr(train, "fingerprint", lambda: None)())
    check_is_sum(loss_sum_fn, len(label_names), precision)
    model.to(precision.device, precision.dtype)
    schedule = schedule or build_schedule(optimizer, recipe, plan.total_updates)
    state = start_state(model, optimizer, schedule, precision, recipe, label_names, loss_sum_fn, plan.total_updates)
    decided = describe(config, precision, data) | {"own": _identity(state, len(train), len(validation))}
    with ExitStack() as after_failure:
        lock = after_failure.enter_context(Lock())
        checkpoint = on_rank_zero(lambda: resume.find_checkpoint(run, lock))
        output = open_output(config, state, decided, checkpoint, lock, weights_loaded=False)
        after_failure.pop_all()  # from here on `output` releases the lock
    return state, data, output


# What `own_run` leaves to the program that calls it.
WITHOUT_EFFECT = (
    *("preset", "eval_only", "cache_dir", "debug", "verbose", "torch_compile", "tune_malloc", "torch_profiler", "fsdp"),
    *("optim", "optim_args", "learning_rate", "weight_decay", "layer_decay", "seeds", "sweep", "folds"),
)
OF_THE_SCHEDULE = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")


def _identity(state: TrainState, *images: int) -> dict[str, Any]:
    """What a resume compares besides the flags, as far as it can be told; the model, by the names of its weights."""
    groups = [{name: str(v) for name, v in group.items() if name != "params"} for group in state.optimizer.param_groups]
    return {
        "images": list(images),
        "optimizer": [type(state.optimizer).__name__, *groups],
        "schedule": type(state.schedule.scheduler).__name__,
        "loss": getattr(state.loss_sum_fn, "__qualname__", type(state.loss_sum_fn).__name__),
    }


def _check(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Dataset,
    validation: Dataset,
    run: RunConfig,
    recipe: RecipeConfig,
    schedule: Schedule | None,
) -> None:
    """Refuse what would fail late, or have no effect."""
    given = asdict(run) | asdict(recipe)
    for name in WITHOUT_EFFECT + (OF_THE_SCHEDULE if schedule else ()):
        if given[name] != FLAGS[name].default:
            raise ConfigError(f"{name}={given[name]!r}: has no effect in own_run")
    if epoch := [name for name in ("logging_steps", "eval_steps", "save_steps") if given[name] == "epoch"]:
        raise ConfigError(f"{epoch[0]}='epoch': name a number of updates; an epoch has len(train) / batch size of them")
    if run.output_dir is None:
        raise ConfigError("output_dir: name the folder of the run")
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ConfigError(f"schedule: is a {type(schedule).__name__}; pass Schedule(it), of train.optimizers.schedules")
    trained = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) not in trained for group in optimizer.param_groups for parameter in group["params"]):
        raise ConfigError("optimizer: holds parameters that are not the model's, so it would train another model")
    for name, images in (("train", train), ("validation", validation)):
        if len(images) == 0:
            raise ConfigError(f"{name}: is empty")
