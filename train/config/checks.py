"""Flags that can be judged without data and model; names and arguments even before torch is imported."""

from typing import TYPE_CHECKING

from train.config.early_end import parse_early_end
from train.config.metrics import PER_CLASS, check_metric
from train.config.reporting import check_installed
from train.config.schema import FLAGS, Config, RecipeConfig
from train.distributed.env import world_size
from train.errors import ConfigError
from train.optimizers.arguments import refusals_of
from train.optimizers.names import check_optimizer, check_schedule, has_warmup

if TYPE_CHECKING:
    import torch


def check_flags(config: Config) -> list[str]:
    """Judge names and arguments of optimizer, schedule and metric.

    Returns:
        What was changed, in a line each: a warm-up that only the preset asked for gives way to a schedule without one.

    Raises:
        ConfigError: a name or an argument that cannot be used.
    """
    recipe, notes = config.recipe, []
    notes += _check_recipes(config)
    check_installed(config.run.trackers)
    check_optimizer(recipe.optim, recipe.optim_args, recipe.weight_decay)
    check_schedule(recipe.lr_scheduler_type, recipe.lr_scheduler_kwargs)
    if recipe.warmup_steps and not has_warmup(recipe.lr_scheduler_type):
        if "warmup_steps" in config.named:
            raise ConfigError(
                f"--warmup_steps {recipe.warmup_steps:g}: {recipe.lr_scheduler_type} has no warm-up; leave it out, or"
                " choose a schedule of transformers"
            )
        notes.append(f"schedule: {recipe.lr_scheduler_type} has no warm-up, so the preset's is left out")
        recipe.warmup_steps = 0
    early_end = parse_early_end(recipe.early_stopping_patience, recipe.until, recipe.max_time)
    chosen = {"metric_for_best_model": recipe.metric_for_best_model.removeprefix("eval_")}
    if early_end.until is not None:
        chosen["until"] = early_end.until[0]
    for flag, name in chosen.items():
        if name.split("/")[0] not in PER_CLASS:  # those need the class names
            check_metric(flag, name, [])
    return notes


def _check_recipes(config: Config) -> list[str]:
    """Recipes that would change nothing, or change the same thing twice."""
    model, augment, recipe = config.model, config.augment, config.recipe
    if model.freeze == "backbone" and recipe.layer_decay < 1:
        raise ConfigError("--layer_decay: has no effect with --freeze backbone, as the head is one layer")
    if model.freeze == "backbone" and model.gradient_checkpointing:
        raise ConfigError("--gradient_checkpointing: has no effect with --freeze backbone, which keeps no activations")
    if config.run.folds and (why := why_features_change(config)):
        raise ConfigError(f"--folds: needs --freeze backbone and features computed once; {why}")
    if config.run.torch_compile == "on" and why_features_change(config) is None:
        raise ConfigError("--torch_compile on: has no effect on a head that trains on features computed once")
    if augment.augment_magnitude != FLAGS["augment_magnitude"].default and augment.augment != "rand":
        raise ConfigError(f"--augment_magnitude: is for --augment rand, and this is --augment {augment.augment}")
    if augment.logit_adjustment and augment.sampler == "balanced":
        raise ConfigError(
            "--logit_adjustment: would count rare classes twice beside --sampler balanced; leave out one of them"
        )
    notes = []
    if augment.class_weights == "balanced" and augment.sampler == "balanced":
        notes.append("class weights and sampler are both balanced, so rare classes count twice over; one is enough")
    if model.freeze == "backbone" and not config.continues:
        notes += _defaults_for_a_head(config)
    return notes


def _defaults_for_a_head(config: Config) -> list[str]:
    """A head alone learns slowly at the rate of a whole model. On features that are computed once, epochs cost little.

    Measured on 100, 300 and 1,034 images of beans (docs/recipes.md).
    """
    recipe, suited = config.recipe, {}
    if "learning_rate" not in config.named:
        suited["learning_rate"] = 0.002
    if not {"num_train_epochs", "max_steps"} & set(config.named):
        suited["num_train_epochs"] = 20.0
    if not suited or config.run.preset in ("debug", "trainer"):  # which are meant as they are
        return []
    flags = " ".join(f"--{name} {value:g}" for name, value in suited.items())
    if why := why_features_change(config):
        return [f"--freeze backbone: {flags} would suit a head alone; not set, as {why}"]
    for name, value in suited.items():
        setattr(recipe, name, value)
    return [f"--freeze backbone: {flags}, which suits a head alone"]


def why_features_change(config: Config) -> str | None:
    """Why the features of a frozen backbone cannot be computed once; None if they can."""
    augment = config.augment
    if config.model.freeze != "backbone":
        return "the backbone is not frozen"
    if config.data.streaming:
        return "a stream is not kept"
    if world_size() > 1:
        return "there are several processes"
    if augment.augment != "none" or augment.random_resized_crop is not None or augment.random_erasing:
        return "augmentation changes the images in every epoch"
    if augment.mixup or augment.cutmix:
        return "MixUp and CutMix change the images of every batch"
    return None


def try_out(recipe: RecipeConfig, device: "torch.device") -> None:
    """Judge the values of arguments by updating two small layers with this optimizer and schedule.

    Many a value is refused only by the first step; then a folder would be there already, and an hour of data read.

    Raises:
        ConfigError: a value that its class refuses, or one that it needs and was not given.
    """
    import torch
    from torch import nn

    from train.optimizers.lookup import optimizer_by_name
    from train.optimizers.schedules import schedule_by_name

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(device)
    groups = [{"params": list(model.parameters()), "weight_decay": recipe.weight_decay}]
    optimizer = optimizer_by_name(
        model, groups, recipe.optim, recipe.optim_args, recipe.learning_rate, recipe.weight_decay
    )
    name, total = recipe.lr_scheduler_type, max(recipe.max_steps, 1000)  # the run's length is not known yet
    schedule = schedule_by_name(optimizer, name, recipe.lr_scheduler_kwargs, recipe.warmup_steps, total)
    model(torch.ones(1, 2, device=device)).sum().backward()
    with refusals_of(f"--optim {recipe.optim}"):
        optimizer.step()
    with refusals_of(f"--lr_scheduler_type {name}"):
        for _ in range(max(1, min(recipe.max_steps, 1000))):  # no further than the run: OneCycleLR has an end
            schedule.step()
        schedule.step_on_metric(0.0)
