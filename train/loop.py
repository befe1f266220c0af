"""The training loop. Each iteration of the loop in `fit` is one optimizer update.

train/main.py calls `fit`. Model, optimizer, schedule and loss arrive in `state`: train/setup/ puts them there as the
flags say, and train/optim.py, train/loss.py and models/classifier.py are the files to edit for your own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_

from data.pipeline import DataPipeline
from data.plan import Batch
from data.seeds import derive_seed
from train.config.schema import RecipeConfig
from train.distributed.collectives import all_reduce_mean
from train.distributed.parallel import full_tensor, sync_gradients
from train.evaluate import evaluate
from train.output.run_output import RunOutput
from train.state import TrainState


def fit(
    state: TrainState,
    data: DataPipeline,
    recipe: RecipeConfig,
    output: RunOutput,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from `state.step` to the end of the plan, changing `state` in place. A stop saves a checkpoint.

    Args:
        state: model, optimizer, schedule, loss and counters.
        data: batches, and the plan that says which images make up which update.
        recipe: how often to log, evaluate and save, and the limit of the gradient norm.
        output: the log, and the run's checkpoints.
        should_stop: asked after every update and evaluation; in several processes, all must get the same answer.

    Raises:
        NonFiniteError: a loss or gradient was NaN or infinite. The weights are those from before that update.
    """
    plan, precision = data.plan, state.precision
    batches = data.train_batches(after=state.step)
    state.model.train()
    while state.step < plan.stop_at and not state.ended:  # stop_at: the total, or less with --stop_after
        update = state.step + 1
        final = update == plan.total_updates or state.time_is_up()
        with state.timed("data"):
            micro_batches = [next(batches) for _ in range(plan.micro_batch_count(update))]
        # Seed after fetching: the loader may draw from this generator, and dropout must depend on the update alone.
        torch.manual_seed(derive_seed(plan.seed, "update", update, plan.rank))

        with state.timed("compute"):
            learning_rate = state.learning_rate
            # DDP averages gradients over processes, and the mean of sums / (images / processes) is sum / images.
            loss_divisor = plan.samples_in(update) / plan.world
            loss, grad_norm, applied = train_step(state, micro_batches, loss_divisor, recipe.max_grad_norm)
            stop = update == plan.stop_at or should_stop()
            should_log = final or update % recipe.logging_steps == 0
            should_evaluate = final or update % recipe.eval_steps == 0
            should_save = update % recipe.save_steps == 0
            # Reading the result makes the CPU wait for the GPU, so on CUDA it is read only where something needs it.
            if should_log or should_evaluate or should_save or stop or precision.checks_every_update:
                precision.raise_if_not_finite(update)

        state.count_update(loss, applied)  # adds 1 to state.step
        if applied:  # not after an fp16 overflow: the scaler skipped the weights, so the schedule must not move either
            state.schedule.step()
            state.update_average()  # with --ema
        output.advance(plan.samples_in(update))
        if should_log:
            mean_loss = state.take_logged_loss()
            output.log_training(state, plan.epoch(update), mean_loss, grad_norm.item(), learning_rate)

        improved = False
        if should_evaluate:
            with state.timed("evaluation"):  # evaluate() puts the model back into training mode
                metrics = evaluate(state.evaluated_model, data.validation_batches(), precision, data.label_names)
            improved = state.update_best(metrics)
            state.schedule.step_on_metric(metrics.values[state.best.metric])  # ReduceLROnPlateau; others ignore it
            output.log_evaluation(state, plan.epoch(update), metrics, improved)
            state.end_early(metrics)  # --until, --early_stopping_patience, --max_time: `ended` says which
            stop = stop or bool(state.ended) or should_stop()  # evaluation may have taken minutes
        if improved or should_save or stop:  # a new best at once, or the log would name one that is not on the disk
            with state.timed("saving"):
                output.save_checkpoint(state)
        if stop:
            return


class Step(NamedTuple):
    """What one update did."""

    loss: torch.Tensor  # mean over the images of the update
    grad_norm: torch.Tensor  # global, before clipping
    applied: bool  # False: fp16 overflowed and the scaler skipped it, which is normal. (A NaN ends the run instead.)


def train_step(state: TrainState, micro_batches: list[Batch], loss_divisor: float, max_grad_norm: float) -> Step:
    """One optimizer update from one accumulation window.

    `state.loss_sum_fn` returns a *sum* over images. Dividing by the number of images in the whole update gives the
    gradient of their mean, whatever the sizes of the micro-batches are.
    """
    model, optimizer, precision = state.model, state.optimizer, state.precision
    total_loss = torch.zeros((), dtype=precision.dtype, device=precision.device)
    for batch in micro_batches:
        with sync_gradients(model, enabled=batch is micro_batches[-1]):
            pixel_values, labels = state.mix(batch["pixel_values"], batch["labels"])  # MixUp, CutMix; else as they are
            with precision.autocast():
                logits = model(pixel_values)
                loss = state.loss_sum_fn(logits, labels) / loss_divisor
            precision.scaler.scale(loss).backward()
        total_loss += loss.detach()
    total_loss = all_reduce_mean(total_loss)  # mean over processes of sum / (images / processes)
    precision.scaler.unscale_(optimizer)
    grad_norm = full_tensor(clip_grad_norm_(model.parameters(), max_grad_norm or math.inf))  # inf: measure, do not clip
    applied = precision.step(optimizer, total_loss, grad_norm)  # refuses an update with a NaN or an infinity in it
    optimizer.zero_grad()
    return Step(total_loss, grad_norm, applied)
