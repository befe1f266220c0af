"""From inputs to everything that `fit` takes: state, data and output."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import torchvision
import transformers

from data.pipeline import DataPipeline
from data.plan import Plan, StreamPlan
from train.checkpoint import resume
from train.checkpoint.folder import CheckpointFolder
from train.config.metrics import choose_metric
from train.config.schema import Config, RecipeConfig, RunConfig
from train.distributed.collectives import on_rank_zero
from train.distributed.env import rank
from train.distributed.parallel import replicate
from train.loss import check_is_sum, cross_entropy_sum
from train.optim import build_optimizer, build_schedule
from train.output.run_folder import open_run
from train.output.run_output import RunOutput
from train.precision import Precision
from train.setup.inputs import Inputs
from train.state import Best, TrainState
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
    state = build_state(model, recipe, inputs.precision, plan.total_updates, inputs.data.label_names)
    speed = _tune(config.run, state, plan, inputs.data)
    decided = describe(config, inputs.precision, inputs.data) | {
        "speed": speed,
        "train_images": len(inputs.splits.train),
        "validation_images": len(inputs.splits.validation),
        "data_notes": inputs.splits.notes,
        "preparation_seconds": inputs.preparation_seconds,
    }
    output = open_output(config, state, decided, inputs.checkpoint, lock, weights_loaded=not inputs.loaded.new_head)
    data = profiled(inputs.data, output.folder) if config.run.torch_profiler else inputs.data
    return Job(state, data, output, decided)


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
    return RunOutput(checkpoints, lock, total, state.step, log_bytes)


def build_state(
    model: torch.nn.Module, recipe: RecipeConfig, precision: Precision, total_updates: int, label_names: list[str]
) -> TrainState:
    """Optimizer, schedule, loss and counters at update 0."""
    metric, greater_is_better = choose_metric(recipe.metric_for_best_model, recipe.greater_is_better, label_names)
    check_is_sum(cross_entropy_sum, len(label_names))
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, total_updates)
    best = Best(metric, greater_is_better)
    return TrainState(model, optimizer, schedule, precision, best, cross_entropy_sum, replicate(model))


def _tune(run: RunConfig, state: TrainState, plan: Plan | StreamPlan, data: DataPipeline) -> list[str]:
    """Switch the remaining fast paths on or off and print which are on; `run` keeps what was decided."""
    device, precision = state.precision.device, state.precision.name
    images = plan.total_updates * plan.batch_size * plan.accumulation  # of this process
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
