"""From inputs to everything that `fit` takes: state, data and output."""

import platform
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import torchvision
import transformers

from data.augment import Mix, as_they_are, build_mix
from data.loading.streaming import Streams
from data.pipeline import DataPipeline
from data.plan import Plan, StreamPlan
from data.reading.splits import Splits
from train.checkpoint import resume
from train.checkpoint.folder import CheckpointFolder
from train.config.checks import why_features_change
from train.config.early_end import parse_early_end
from train.config.metrics import check_metric, choose_metric
from train.config.record import RECORD, read_record
from train.config.schema import AugmentConfig, Config, RecipeConfig, RunConfig
from train.distributed.collectives import on_rank_zero
from train.distributed.env import rank
from train.distributed.parallel import replicate
from train.loss import LossSum, build_loss, check_is_sum, cross_entropy_sum
from train.optim import build_optimizer, build_schedule
from train.optimizers.schedules import Schedule
from train.output.run_folder import open_run
from train.output.run_output import RunOutput
from train.output.trackers import open_trackers
from train.precision import Precision
from train.setup.class_weights import class_weights, log_shares
from train.setup.features import on_features
from train.setup.folds import assign_folds, out_of_fold, summary
from train.setup.inputs import Inputs, cache_policy
from train.state import Best, TrainState, average_of
from train.system.compile import choose_compile, compile_model
from train.system.console import say
from train.system.device import choose_attention
from train.system.lock import Lock
from train.system.memory import keep_freed_memory
from train.system.profiler import profiled


@dataclass(frozen=True)
class Job:
    """A run that is ready to train."""

    state: TrainState
    data: DataPipeline
    output: RunOutput
    decided: dict[str, Any]  # see `describe`


def build_job(config: Config, inputs: Inputs, lock: Lock) -> Job:
    """Optimizer, schedule and output; of a resumed run, as the checkpoint has them."""
    recipe, plan, model = config.recipe, inputs.data.plan, inputs.loaded.model
    loss_sum_fn, mix = choose_loss(config.augment, inputs)
    names, data, estimate, preparation = inputs.data.label_names, inputs.data, {}, inputs.preparation_seconds
    if why_features_change(config) is None:
        started = time.perf_counter()
        data, features = on_features(inputs, recipe.per_device_eval_batch_size, cache_policy(config))
        preparation += time.perf_counter() - started
        if config.run.folds:
            estimate = {"folds": estimate_by_folds(config, inputs, features, loss_sum_fn)}
    if inputs.checkpoint and not estimate:  # made at an earlier start
        estimate = {n: v for n, v in read_record(inputs.checkpoint.parent / RECORD).items() if n == "folds"}
    state = build_state(model, recipe, inputs.precision, plan.total_updates, names, loss_sum_fn, mix)
    speed = _tune(config.run, state, plan, data)
    decided = (
        describe(config, inputs.precision, inputs.data)
        | estimate
        | {
            "speed": speed,
            "train_images": len(inputs.splits.train),
            "train_counts": train_counts(inputs.splits),
            "validation_images": len(inputs.splits.validation),
            "data_notes": inputs.splits.notes,
            "preparation_seconds": preparation,
        }
    )
    output = open_output(config, state, decided, inputs.checkpoint, lock, weights_loaded=not inputs.loaded.new_head)
    return Job(state, profiled(data, output.folder) if config.run.torch_profiler else data, output, decided)


def train_counts(splits: Splits | Streams) -> list[int] | None:
    """Training images of each class; None for a stream, which is not counted."""
    if isinstance(splits, Streams):
        return None
    counts = Counter(splits.train.labels)
    return [counts[index] for index in range(len(splits.label_names))]


def estimate_by_folds(config: Config, inputs: Inputs, features: torch.Tensor, loss_sum_fn: LossSum) -> dict[str, Any]:
    """Cross-validate the head on the training images; printed and returned."""
    split, names, count = inputs.splits.train, inputs.data.label_names, config.run.folds
    digests = [split.digest(index) for index in range(len(split))]
    fold = assign_folds(split.labels, digests, count, config.run.seed)
    head = inputs.loaded.model.vit.classifier
    found = summary(
        out_of_fold(head, features, split.labels, fold, config, inputs.precision, loss_sum_fn),
        split.labels,
        names,
        count,
    )
    low, high = found["accuracy_wilson_95"]
    counts = Counter(split.labels)
    if alone := [name for index, name in enumerate(names) if counts[index] == 1]:
        say(f"warning: {', '.join(alone)}: with one training image, no head has seen the class that it is judged on")
    say(
        f"folds: accuracy {found['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), balanced accuracy"
        f" {found['balanced_accuracy']:.4f}, of {len(split)} training images, each judged by a head that was trained on"
        f" the other {count - 1} of {count} folds"
    )
    return found


def open_output(
    config: Config,
    state: TrainState,
    decided: dict[str, Any],
    checkpoint: Path | None,
    lock: Lock,
    weights_loaded: bool,
) -> RunOutput:
    """The run's folder, log and checkpoints; restores `state` from `checkpoint`, if there is one.

    Args:
        config: every flag, for the record.
        state: at update 0.
        decided: what was decided automatically, for the record.
        checkpoint: of the same run.
        lock: holds the folder from now on.
        weights_loaded: the model was built from `checkpoint`, whose weights need not be read again.
    """
    run, total = config.run, decided["total_updates"]
    identity = resume.identity(config, decided, state.schedule.depends_on_length)
    log_bytes = resume.bring_back(state, checkpoint, identity, total, weights_loaded)
    folder, run_id = on_rank_zero(lambda: open_run(run.output_dir, config.flat(), decided, lock))
    keep = config.recipe.save_total_limit
    checkpoints = CheckpointFolder(folder, run_id, identity, keep, run.async_save, writes=rank() == 0)
    trackers = open_trackers(run.trackers, folder, run_id, config.flat(), state.step) if rank() == 0 else None
    return RunOutput(checkpoints, lock, total, state.step, log_bytes, trackers)


def choose_loss(augment: AugmentConfig, inputs: Inputs) -> tuple[LossSum, Mix]:
    """The training loss, and how images and labels are mixed before it; printed where it is not plain cross-entropy."""
    names, precision, notes = inputs.data.label_names, inputs.precision, []
    weight = None
    if augment.class_weights is not None:
        labels = inputs.splits.train.labels if isinstance(inputs.splits, Splits) else None
        weights = class_weights(augment.class_weights, names, labels)
        weight = torch.tensor(weights, dtype=precision.dtype, device=precision.device)
        notes.append("class weights " + ", ".join(f"{w:.3g} {name}" for name, w in zip(names, weights, strict=True)))
    adjustment = None
    if augment.logit_adjustment:
        shares = torch.tensor(log_shares(names, inputs.splits.train.labels), dtype=precision.dtype)
        adjustment = (augment.logit_adjustment * shares).to(precision.device)
        notes.append(f"logit adjustment {augment.logit_adjustment:g}")
    if augment.label_smoothing:
        notes.append(f"label smoothing {augment.label_smoothing:g}")
    notes += [f"{name} {alpha:g}" for name, alpha in (("MixUp", augment.mixup), ("CutMix", augment.cutmix)) if alpha]
    if notes:
        say(f"training loss: cross-entropy with {'; '.join(notes)}; that of evaluations is without")
    loss_sum_fn = build_loss(weight, augment.label_smoothing, adjustment)
    check_is_sum(loss_sum_fn, len(names), precision)
    return loss_sum_fn, build_mix(augment.mixup, augment.cutmix, len(names))


def build_state(
    model: torch.nn.Module,
    recipe: RecipeConfig,
    precision: Precision,
    total_updates: int,
    label_names: list[str],
    loss_sum_fn: LossSum = cross_entropy_sum,
    mix: Mix = as_they_are,
) -> TrainState:
    """Optimizer, schedule, loss and counters at update 0."""
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, total_updates)
    return start_state(model, optimizer, schedule, precision, recipe, label_names, loss_sum_fn, total_updates, mix)


def start_state(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    precision: Precision,
    recipe: RecipeConfig,
    label_names: list[str],
    loss_sum_fn: LossSum,
    total_updates: int,
    mix: Mix = as_they_are,
) -> TrainState:
    """The state at update 0, with what `recipe` says of the best model, of averaging and of an early end."""
    best = Best(*choose_metric(recipe.metric_for_best_model, recipe.greater_is_better, label_names))
    early_end = parse_early_end(recipe.early_stopping_patience, recipe.until, recipe.max_time)
    if early_end.until is not None:
        check_metric("until", early_end.until[0], label_names)
    average = average_of(model, recipe.ema) if recipe.ema is not None else None
    if recipe.ema is not None and 1 / (1 - recipe.ema) > total_updates:
        say(f"warning: --ema {recipe.ema} averages over more updates than the {total_updates} of this run")
    state = TrainState(model, optimizer, schedule, precision, best, loss_sum_fn, mix, average, early_end)
    state.model = replicate(model)
    return state


def _tune(run: RunConfig, state: TrainState, plan: Plan | StreamPlan, data: DataPipeline) -> list[str]:
    """Switch the remaining fast paths on or off and print which are on; `run` keeps what was decided."""
    device, precision = state.precision.device, state.precision.name
    images = plan.total_updates * plan.batch_size * plan.accumulation  # of this process
    if state.raw_model.on_features:
        compiling, why = False, "a head alone trains"
    else:
        compiling, why = choose_compile(run.torch_compile, device, precision, images)
    run.torch_compile = "on" if compiling else "off"  # recorded, so that a resume computes the same bits
    if compiling:
        compile_model(state.raw_model.vit, plan.batch_size, device, plan.accumulation)
    fused = "fused " if state.optimizer.defaults.get("fused") else ""
    notes = [f"{'FSDP2' if run.fsdp else 'DDP'} over {plan.world} processes"] if plan.world > 1 else []
    notes += [
        *data.notes,
        f"{choose_attention(device, precision)} attention",
        f"{fused}{type(state.optimizer).__name__}",
        f"torch.compile {run.torch_compile} ({why})",
        f"checkpoints written {'in the background' if run.async_save else 'while training waits'}",
    ]
    if device.type == "cpu":
        notes.append(f"malloc {'keeps' if run.tune_malloc and keep_freed_memory() else 'returns'} freed memory")
    if device.type == "cuda":
        notes.append(f"TF32 {'on' if run.tf32 else 'off'}")
    say(f"speed: {'; '.join(notes if run.verbose else [note.partition(' (')[0] for note in notes])}")
    return notes


def describe(config: Config, precision: Precision, data: DataPipeline) -> dict[str, Any]:
    """What was decided automatically, and what the bits of a run depend on besides its flags."""
    return {
        "preset": config.run.preset,
        "preset_reason": config.preset_reason,
        "flag_notes": config.notes,
        "device": str(precision.device),
        "precision": precision.name,
        "precision_reason": precision.reason,
        "attention": choose_attention(precision.device, precision.name),
        "dataset_fingerprint": data.fingerprint,
        "validation_fingerprint": data.validation_fingerprint,
        "label_names": data.label_names,
        "total_updates": data.plan.total_updates,
        "processes": data.plan.world,
        "versions": {library.__name__: library.__version__ for library in (torch, torchvision, transformers, datasets)}
        | {"python": platform.python_version()},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
