"""--folds: how good a head on a frozen backbone is on images that it has not seen, from the training images alone."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from data.plan import Balance
from data.seeds import derive_seed
from train.config.schema import Config, RecipeConfig, RunConfig
from train.errors import ConfigError, NonFiniteError
from train.evaluate import balanced_accuracy
from train.loop import train_step
from train.loss import LossSum
from train.optim import build_optimizer, build_schedule
from train.output.results import wilson_interval
from train.precision import Precision
from train.setup.inputs import make_plan
from train.state import Best, TrainState


def assign_folds(labels: Sequence[int], contents: Sequence[bytes], folds: int, seed: int) -> torch.Tensor:
    """The fold of each image, int64 [n]: every class spread evenly, and images of the same bytes together.

    Args:
        labels: the class of each image.
        contents: a digest of each image; empty where it is not known.
        folds: how many.
        seed: of the order in which images are dealt out.

    Raises:
        ConfigError: there are fewer images than folds.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, "folds"))).tolist()
    fold_of: dict[Any, int] = {}
    for index in sorted(order, key=lambda index: labels[index]):  # class by class, and on from fold to fold
        fold_of.setdefault(contents[index] or index, len(fold_of) % folds)
    if len(fold_of) < folds:
        raise ConfigError(f"--folds {folds}: there are {len(fold_of)} different training images; name a smaller number")
    return torch.tensor([fold_of[contents[index] or index] for index in range(len(labels))])


def out_of_fold(
    head: nn.Module,
    features: torch.Tensor,
    labels: Sequence[int],
    fold: torch.Tensor,
    config: Config,
    precision: Precision,
    loss_sum_fn: LossSum,
) -> torch.Tensor:
    """The probabilities of each image by a head that the recipe trained on the other folds: float [n, classes].

    Args:
        head: features [n, d] -> logits; copied, and drawn anew.
        features: float [n, d].
        labels: the class of each image.
        fold: of `assign_folds`.
        config: its recipe and seed.
        precision: of the computation.
        loss_sum_fn: the training loss.
    """
    targets = torch.as_tensor(labels)
    found = torch.empty(len(targets), len(head.bias))
    for number in range(int(fold.max()) + 1):
        rows = torch.nonzero(fold != number).flatten()
        trained = _train_head(head, features[rows], targets[rows], config, precision, loss_sum_fn)
        with torch.no_grad(), precision.autocast():
            logits = trained(features[fold == number].to(precision.device))
        found[fold == number] = logits.float().softmax(-1).cpu()
    if not found.isfinite().all():  # after the last update, which no loss has judged
        raise ConfigError("--folds: the head of a fold answers nan; try a lower --learning_rate")
    return found


def _train_head(
    head: nn.Module,
    features: torch.Tensor,
    targets: torch.Tensor,
    config: Config,
    precision: Precision,
    loss_sum_fn: LossSum,
) -> nn.Module:
    # What belongs to the whole network, or to a run's log, has no meaning for the head of a fold.
    recipe = replace(config.recipe, layer_decay=1.0, ema=None)
    balance = Balance(targets.tolist()) if config.augment.sampler == "balanced" else None
    plan = make_plan(recipe, len(targets), config.run, config.data.dataloader_drop_last, balance)
    state = _head_state(head, recipe, config.run, precision, loss_sum_fn, plan.total_updates)
    for update in range(1, plan.total_updates + 1):
        rows = [[index for _, index in samples] for samples in plan.micro_batches(update)]
        batches = [{"pixel_values": features[some], "labels": targets[some]} for some in rows]
        batches = [{name: tensor.to(precision.device) for name, tensor in batch.items()} for batch in batches]
        step = train_step(state, batches, plan.samples_in(update), recipe.max_grad_norm)
        if step.applied:
            state.schedule.step()
        try:
            state.precision.raise_if_not_finite(update)
        except NonFiniteError as error:
            raise ConfigError(f"--folds: update {update}: {error.what}; try a lower --learning_rate") from error
    return state.raw_model


def _head_state(
    head: nn.Module, recipe: RecipeConfig, run: RunConfig, precision: Precision, loss_sum_fn: LossSum, updates: int
) -> TrainState:
    torch.manual_seed(run.seed)
    fresh = copy.deepcopy(head)
    nn.init.normal_(fresh.weight, std=0.02)
    nn.init.zeros_(fresh.bias)
    optimizer = build_optimizer(fresh, recipe)
    schedule = build_schedule(optimizer, recipe, updates)
    own = Precision(precision.name, precision.device)  # its scaler belongs to one optimizer
    return TrainState(fresh, optimizer, schedule, own, Best("loss", False), loss_sum_fn)


def summary(probabilities: torch.Tensor, labels: Sequence[int], label_names: list[str], folds: int) -> dict[str, Any]:
    """What run.json holds of the estimate."""
    targets, predicted = torch.as_tensor(labels), probabilities.argmax(-1)
    confusion = torch.zeros(len(label_names), len(label_names), dtype=torch.int64)
    confusion.index_put_((targets, predicted), torch.ones_like(targets), accumulate=True)
    correct, total = int((targets == predicted).sum()), len(targets)
    recall = confusion.diagonal() / confusion.sum(1).clamp(min=1)
    return {
        "folds": folds,
        "images": total,
        "accuracy": correct / total,
        "accuracy_wilson_95": list(wilson_interval(correct, total)),
        "balanced_accuracy": balanced_accuracy(confusion).item(),
        "recall": dict(zip(label_names, recall.tolist(), strict=True)),
    }
