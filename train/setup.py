"""From sections of the configuration to the things that `fit` works with. Each decision is said once."""

import math
import platform
from pathlib import Path
from typing import Any

import datasets
import torch
import torchvision
import transformers
from torch import nn

from data.loader import Plan, batches_per_epoch
from data.sources import Splits, load_splits, load_streams
from data.streaming import StreamPlan, Streams
from models.vit import LoadedModel, load_model, read_weights
from train import distributed, hub, launch
from train.compute import choose_attention, choose_compile, compile_network, keep_freed_memory
from train.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from train.evaluate import choose_metric
from train.feed import Feed
from train.optim import build_optimizer, build_scheduler
from train.precision import Precision
from train.state import Best, TrainState
from train.tracking import say


def is_offline(data: DataConfig, model: ModelConfig) -> bool:
    """Whether the Hub, if a name on it is to be loaded at all, cannot be reached."""
    if not (hub.is_hub_name(data.dataset) or hub.is_hub_name(model.model)):
        return False
    unreachable = hub.why_unreachable()
    if unreachable:
        say(f"{unreachable}: only what its local cache holds can be loaded")
    return unreachable is not None


def load_data(data: DataConfig, run: RunConfig, offline: bool) -> Splits | Streams:
    """Both splits, the images of which have not been looked at yet."""
    columns = {
        "config_name": data.dataset_config_name,
        "image_column": data.image_column_name,
        "label_column": data.label_column_name,
    }
    if data.streaming:
        return load_streams(data.dataset, **columns, cache_dir=run.cache_dir, offline=offline)
    return load_splits(
        data.dataset,
        **columns,
        validation_fraction=data.train_val_split,
        max_train_samples=data.max_train_samples,
        max_eval_samples=data.max_eval_samples,
        seed=run.seed,
        cache_dir=run.cache_dir,
        offline=offline,
    )


def load_network(
    model: str, label_names: list[str], precision: Precision, run: RunConfig, offline: bool
) -> LoadedModel:
    """The network on its device in the precision's dtype, and the processor's settings."""
    attention = choose_attention(precision)
    loaded = load_model(model, label_names, attention=attention, cache_dir=run.cache_dir, offline=offline)
    # Loaded as float32 and then widened, so that a new head is the same draw in every precision.
    loaded.network.to(device=precision.device, dtype=precision.dtype)
    if precision.name == "fp64" and not loaded.new_head:
        # What was trained in float64 was saved in it.
        loaded.network.load_state_dict(read_weights(loaded.network, Path(model)), strict=True)
    millions = sum(parameter.numel() for parameter in loaded.network.parameters()) / 1e6
    size = loaded.network.config.image_size
    say(
        f"model: {'; '.join([model, *loaded.notes])}; {millions:.1f} M parameters, {size} pixels, {attention} attention"
    )
    if run.fsdp:
        distributed.shard(loaded.network)
    return loaded


def plan_for(splits: Splits | Streams, train: TrainConfig, seed: int, drop_last: bool) -> Plan | StreamPlan:
    """Which images make up which update, and how many updates there are."""
    if not isinstance(splits, Streams):
        return make_plan(train, len(splits.train), seed, drop_last)
    batch_size, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    known, rank, world = splits.train.samples, launch.rank(), launch.world_size()
    return StreamPlan(batch_size, accumulation, train.max_steps, seed, known, rank, world)


def make_plan(train: TrainConfig, samples: int, seed: int, drop_last: bool) -> Plan:
    """The plan for a data set of a known size: updates are counted as the Trainer counts them."""
    batch_size, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    batches = batches_per_epoch(samples, batch_size * launch.world_size(), drop_last)
    updates_per_epoch = math.ceil(batches / accumulation)
    total = train.max_steps if train.max_steps > 0 else math.ceil(train.num_train_epochs * updates_per_epoch)
    return Plan(samples, batch_size, accumulation, total, seed, drop_last, launch.rank(), launch.world_size())


def build_state(
    network: nn.Module, train: TrainConfig, precision: Precision, total_updates: int, label_names: list[str]
) -> TrainState:
    """Optimizer, schedule and counters at update 0."""
    metric, greater_is_better = choose_metric(train.metric_for_best_model, train.greater_is_better, label_names)
    optimizer = build_optimizer(network, train.optim, train.optim_args, train.learning_rate, train.weight_decay)
    scheduler = build_scheduler(
        optimizer, train.lr_scheduler_type, train.lr_scheduler_kwargs, train.warmup_steps, total_updates
    )
    replica = distributed.replicate(network)
    return TrainState(network, optimizer, scheduler, precision, Best(metric, greater_is_better), replica)


def tune(
    run: RunConfig, network: nn.Module, precision: Precision, plan: Plan, optimizer: torch.optim.Optimizer, feed: Feed
) -> list[str]:
    """Switch the remaining fast paths on or off, and say in one line which are on; `run` keeps what was decided."""
    images = plan.total_updates * plan.batch_size * plan.accumulation  # of this process
    compiling, why = choose_compile(run.torch_compile, precision, images)
    run.torch_compile = "on" if compiling else "off"  # recorded, so that a resume computes the same bits
    if compiling:
        compile_network(network, plan.batch_size, precision.device, plan.accumulation)
    fused = "fused " if optimizer.defaults.get("fused") else ""
    engine = "FSDP2" if run.fsdp else "DDP"
    notes = [f"{engine} over {plan.world} processes"] if plan.world > 1 else []
    notes += [
        *feed.notes,
        f"{choose_attention(precision)} attention",
        f"{fused}{type(optimizer).__name__}",
        f"torch.compile {run.torch_compile} ({why})",
        f"checkpoints written {'while training goes on' if run.async_save else 'while training waits'}",
    ]
    if precision.device.type == "cpu":
        notes.append(f"malloc {'keeps' if run.tune_malloc and keep_freed_memory() else 'returns'} freed memory")
    if precision.device.type == "cuda":
        notes.append(f"TF32 {'on' if run.tf32 else 'off'}")
    say(f"speed: {'; '.join(notes)}")
    return notes


def describe(
    preset: str, reason: str, precision: Precision, why: str, splits: Splits, plan: Plan, speed: list[str]
) -> dict[str, Any]:
    """What was decided automatically, and what the bits of a run depend on beside its flags."""
    return {
        "preset": preset,
        "preset_reason": reason,
        "device": str(precision.device),
        "precision": precision.name,
        "precision_reason": why,
        "attention": choose_attention(precision),
        "speed": speed,
        "dataset_fingerprint": splits.fingerprint(),
        "label_names": splits.label_names,
        "train_images": len(splits.train),
        "validation_images": len(splits.validation),
        "data_notes": splits.notes,
        "total_updates": plan.total_updates,
        "processes": plan.world,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
