"""The loop. One iteration of `fit` is one optimizer update; everything around it has a room of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

from data.loader import Batch, Plan
from data.seeds import key
from train import distributed
from train.checkpoint import CheckpointFolder
from train.config import TrainConfig
from train.feed import Feed
from train.optim import needs_metric
from train.precision import Precision
from train.state import TrainState
from train.tracking import Tracker


def fit(
    state: TrainState,
    plan: Plan,
    feed: Feed,
    recipe: TrainConfig,
    checkpoints: CheckpointFolder,
    tracker: Tracker,
    stop_after: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Train from `state.step` to the end of the plan; `state` changes in place. Stops early only with a checkpoint.

    Args:
        state: model, optimizer, schedule and counters.
        plan: which images make up which update.
        feed: where the plan's micro-batches come from, on the model's device, and how to evaluate.
        recipe: when to log, evaluate and save, and how to clip.
        checkpoints: where the state is saved.
        tracker: where progress is shown and recorded.
        stop_after: stop after so many updates; schedule and order stay those of the whole run.
        interrupted: asked after each update whether to stop now.

    Raises:
        NonFiniteError: a loss or a gradient was nan or infinite. The weights are those of the update before. On CUDA
            it is raised where the host waits for the device anyway: at the next record, evaluation or save.
    """
    last = min(plan.total_updates, stop_after or plan.total_updates)
    batches, normalize = feed.training(plan, state.step), feed.normalize
    state.model.train()
    while state.step < last:
        update = state.step + 1
        with state.timed("data"):
            # The whole accumulation window first: the loss is divided by its number of samples.
            micro_batches = [next(batches) for _ in range(plan.micro_batch_count(update))]
        # After the fetch, which in one process draws from the same generator: dropout depends on the update alone.
        torch.manual_seed(key(plan.seed, "update", update, plan.rank))
        learning_rate = state.learning_rate
        at_end = update == plan.total_updates
        logs = update % recipe.logging_steps == 0 or at_end
        evaluates = update % recipe.eval_steps == 0 or at_end
        saves = update % recipe.save_steps == 0
        with state.timed("compute"):
            samples = plan.samples_in(update)
            step = train_step(
                state.replica, micro_batches, samples, state.optimizer, state.precision, normalize, recipe.max_grad_norm
            )
            stop = update == last or interrupted()
            # The host runs ahead of a GPU, which refuses by itself what is no number, and is asked only when needed.
            if state.precision.waits or logs or evaluates or saves or stop:
                state.precision.health.check(update)
        # On fp16 overflow the scaler skipped the update, and then the schedule must not move either.
        state.count_update(step.loss, step.applied)
        if step.applied and not needs_metric(state.scheduler):
            state.scheduler.step()
        tracker.advance(samples)

        if logs:
            tracker.log_training(state, plan.epoch(update), step.grad_norm.item(), learning_rate)
        improved = False
        if evaluates:
            with state.timed("evaluation"):
                metrics = feed.validate(state.model)
            improved = state.keep_best(metrics)
            tracker.log_evaluation(state, plan.epoch(update), metrics, improved)
            if needs_metric(state.scheduler):
                state.scheduler.step(metrics.values[state.best.metric])
            stop = stop or interrupted()  # an evaluation may take long
        # A new best is saved whenever it is found, so that the folder `best` is never behind.
        if improved or saves or stop:
            with state.timed("saving"):
                checkpoints.save(state, log_bytes=tracker.log_bytes())
        if stop:
            return


@dataclass(frozen=True)
class Step:
    """What one update did."""

    loss: torch.Tensor  # mean over the samples of the update
    grad_norm: torch.Tensor  # global, before clipping
    applied: bool  # False if the scaler skipped it


def train_step(
    model: nn.Module,
    micro_batches: list[Batch],
    samples: int,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    normalize: nn.Module,
    max_grad_norm: float,
) -> Step:
    """One optimizer update from one accumulation window.

    The loss of each micro-batch is a sum divided by the samples of the whole window, so that the gradient is that of
    the mean over the window, however it is cut, over processes too, and however short its last piece is.
    """
    # Processes average their gradients. Each divides by the samples of one, so that the average is over all samples.
    samples_here = samples / distributed.world_size()
    total_loss = torch.zeros((), dtype=precision.dtype, device=precision.device)
    for batch in micro_batches:
        with distributed.gradients_averaged(model, when=batch is micro_batches[-1]):
            with precision.autocast():
                # As many as there are labels: of a short last batch, a process may have but a stand-in.
                logits = model(normalize(batch["pixel_values"])).logits[: len(batch["labels"])]
                loss = F.cross_entropy(logits, batch["labels"], reduction="sum") / samples_here
            precision.scaler.scale(loss).backward()
        total_loss += loss.detach()
    total_loss = distributed.mean(total_loss)
    precision.scaler.unscale_(optimizer)
    grad_norm = distributed.whole(clip_grad_norm_(model.parameters(), max_grad_norm or math.inf))
    applied = precision.step(optimizer, total_loss, grad_norm)  # not if one of them is no number
    optimizer.zero_grad(set_to_none=True)
    return Step(total_loss, grad_norm, applied)
