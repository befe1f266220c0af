"""How often a run logs, evaluates and saves, once its length is known."""

import math

from data.plan import Plan, StreamPlan
from train.config.schema import Config, RecipeConfig
from train.errors import ConfigError
from train.system.console import say

FEWEST = 3  # evaluations: fewer say little about where the best model was


def settle_intervals(config: Config, plan: Plan | StreamPlan) -> None:
    """Turn `epoch` into a number of updates; evaluate once an epoch where a run would see too few evaluations.

    Only where the data set is named and the intervals are not, in a new run, and not in debug, whose recipe is meant.

    Raises:
        ConfigError: an epoch was asked for, and the length of the stream is unknown.
    """
    recipe, epoch = config.recipe, _updates_in_epoch(plan)
    if recipe.min_steps and epoch and math.ceil(recipe.num_train_epochs * epoch) < recipe.min_steps:
        say(
            f"length: {recipe.min_steps} updates, {recipe.min_steps / epoch:.3g} epochs, as --min_steps says;"
            f" {recipe.num_train_epochs:g} epochs would be fewer"
        )
    if _may_choose(config) and epoch is not None and epoch < recipe.eval_steps:
        evaluations = math.ceil(plan.total_updates / recipe.eval_steps)
        if evaluations < min(FEWEST, math.ceil(plan.total_updates / epoch)):
            say(
                f"evaluation: every {recipe.eval_steps} updates would be {evaluations} in a run of"
                f" {plan.total_updates}, so once an epoch, every {epoch} updates; --eval_steps sets it"
            )
            recipe.eval_steps = recipe.save_steps = epoch
    _warn_of_patience(recipe, plan.total_updates, epoch)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        if getattr(recipe, name) == "epoch":
            if epoch is None:
                raise ConfigError(f"--{name} epoch: the length of this stream is not known; name a number of updates")
            setattr(recipe, name, epoch)


def _warn_of_patience(recipe: RecipeConfig, updates: int, epoch: int | None) -> None:
    every = epoch if recipe.eval_steps == "epoch" else recipe.eval_steps
    if recipe.early_stopping_patience and every and recipe.early_stopping_patience >= math.ceil(updates / every):
        say(
            f"warning: --early_stopping_patience {recipe.early_stopping_patience} cannot end this run early: it has"
            f" {math.ceil(updates / every)} evaluations; --eval_steps makes them more frequent"
        )


def _may_choose(config: Config) -> bool:
    new = not config.continues and config.run.preset != "debug"
    return new and "dataset" in config.named and not {"eval_steps", "save_steps"} & set(config.named)


def _updates_in_epoch(plan: Plan | StreamPlan) -> int | None:
    if isinstance(plan, Plan):
        return plan.updates_per_epoch
    return math.ceil(plan.samples / plan.samples_in(1)) if plan.samples else None
