"""From sections of the configuration to the things that `fit` works with. Each decision is said once."""

import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import torchvision
import transformers
from torch import nn
from torch.utils.data import DataLoader, Sampler

from data.cache import CachePolicy, Kept, Pixels, prepare_images
from data.cores import usable_cores
from data.loader import (
    Batch,
    Images,
    InOrder,
    Key,
    Plan,
    PlannedSampler,
    batches_on,
    batches_per_epoch,
    build_loader,
)
from data.sources import Splits, load_splits
from data.transforms import Normalize, read_preprocessing
from data.workers import resilient_batches
from models.vit import LoadedModel, load_model, load_weights
from train import ConfigError, hub
from train.compute import choose_attention, choose_compile, compile_network, keep_freed_memory
from train.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from train.evaluate import Metrics, choose_metric, evaluate
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


def load_data(data: DataConfig, run: RunConfig, offline: bool) -> Splits:
    """Both splits, the images of which have not been looked at yet."""
    return load_splits(
        data.dataset,
        config_name=data.dataset_config_name,
        image_column=data.image_column_name,
        label_column=data.label_column_name,
        validation_fraction=data.train_val_split,
        max_train_samples=data.max_train_samples,
        max_eval_samples=data.max_eval_samples,
        seed=run.seed,
        cache_dir=run.cache_dir,
        offline=offline,
    )


def load_network(
    model: str, label_names: list[str], precision: Precision, cache_dir: str | None, offline: bool
) -> LoadedModel:
    """The network on its device in the precision's dtype, and the processor's settings."""
    attention = choose_attention(precision)
    loaded = load_model(model, label_names, attention=attention, cache_dir=cache_dir, offline=offline)
    # Loaded as float32 and then widened, so that a new head is the same draw in every precision.
    loaded.network.to(device=precision.device, dtype=precision.dtype)
    if precision.name == "fp64" and not loaded.new_head:
        load_weights(loaded.network, Path(model))  # what was trained in float64 was saved in it
    millions = sum(parameter.numel() for parameter in loaded.network.parameters()) / 1e6
    size = loaded.network.config.image_size
    say(
        f"model: {'; '.join([model, *loaded.notes])}; {millions:.1f} M parameters, {size} pixels, {attention} attention"
    )
    return loaded


def make_plan(train: TrainConfig, samples: int, seed: int, drop_last: bool) -> Plan:
    """Which images make up which update, and how many updates there are: counted as the Trainer counts them."""
    batch_size, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    updates_per_epoch = math.ceil(batches_per_epoch(samples, batch_size, drop_last) / accumulation)
    total = train.max_steps if train.max_steps > 0 else math.ceil(train.num_train_epochs * updates_per_epoch)
    return Plan(samples, batch_size, accumulation, total, seed, drop_last)


def build_state(
    network: nn.Module, train: TrainConfig, precision: Precision, total_updates: int, label_names: list[str]
) -> TrainState:
    """Optimizer, schedule and counters at update 0."""
    metric, greater_is_better = choose_metric(train.metric_for_best_model, train.greater_is_better, label_names)
    optimizer = build_optimizer(network, train.optim, train.optim_args, train.learning_rate, train.weight_decay)
    scheduler = build_scheduler(
        optimizer, train.lr_scheduler_type, train.lr_scheduler_kwargs, train.warmup_steps, total_updates
    )
    return TrainState(network, optimizer, scheduler, precision, Best(metric, greater_is_better))


@dataclass(frozen=True)
class Feed:
    """The way from images on disk to batches on the device, for training and for evaluation."""

    train_images: Images
    validation_images: Images
    normalize: Normalize
    precision: Precision
    label_names: list[str]
    eval_batch_size: int
    workers: int
    timeout: float  # seconds
    notes: list[str]  # how images get to the device, and why so
    preparation_seconds: float  # that making it took

    def training(self, plan: Plan, start: int) -> Iterator[Batch]:
        """The plan's micro-batches after `start` updates."""
        return self._batches(self.train_images, lambda skip: PlannedSampler(plan, start, skip))

    def validation(self) -> Iterator[Batch]:
        """The validation images, once, in order."""
        images = self.validation_images
        return self._batches(images, lambda skip: InOrder(len(images), self.eval_batch_size, skip))

    def validate(self, network: nn.Module) -> Metrics:
        """One evaluation on the whole validation split."""
        return evaluate(network, self.validation(), self.normalize, self.precision, self.label_names)

    def _batches(self, images: Images, batches_after: Callable[[int], Sampler[list[Key]]]) -> Iterator[Batch]:
        def make_loader(skip: int) -> DataLoader:
            return build_loader(
                images,
                batches_after(skip),
                workers=self.workers,
                timeout=self.timeout,
                pin_memory=self.precision.device.type == "cuda" and not images.on_device,
            )

        batches = resilient_batches(make_loader, warn=lambda text: say(f"warning: {text}"))
        return batches_on(self.precision.device, batches)


def prepare(
    splits: Splits,
    processor: dict[str, Any],
    precision: Precision,
    data: DataConfig,
    train: TrainConfig,
    run: RunConfig,
) -> tuple[Splits, Feed]:
    """Every image decoded once, as the checkpoint's processor wants it; and the way from there to the device."""
    started = time.perf_counter()
    preprocessing = read_preprocessing(processor)
    policy = CachePolicy(data.image_cache, data.cache_memory, data.cache_size, run.cache_dir)
    splits, pixels, kind, reason = prepare_images(splits, preprocessing, policy, data.skip_bad_images, say)
    for note in splits.notes:
        say(f"data: {note}")
    sizes = f"{len(splits.train)} training and {len(splits.validation)} validation images"
    say(f"data: {splits.dataset}: {sizes}, {len(splits.label_names)} classes: {', '.join(splits.label_names)}")
    notes = [f"image cache {kind} ({reason})"]
    if fits_on(precision.device, pixels):
        pixels = {name: kept.to(precision.device) for name, kept in pixels.items()}
        notes.append("which lies on the GPU")
    workers, why = choose_workers(data.dataloader_num_workers, pixels["train"], precision.device)
    notes.append(f"{workers} workers ({why})")
    feed = Feed(
        Images(pixels["train"], splits.train.labels),
        Images(pixels["validation"], splits.validation.labels),
        Normalize(preprocessing, precision.dtype).to(precision.device),
        precision,
        splits.label_names,
        train.per_device_eval_batch_size,
        workers,
        data.dataloader_timeout,
        notes,
        time.perf_counter() - started,
    )
    return splits, feed


def fits_on(device: torch.device, pixels: dict[str, Pixels]) -> bool:
    """Whether the prepared images are in memory and take at most an eighth of what is free on a GPU."""
    if device.type != "cuda" or not all(isinstance(kept, Kept) for kept in pixels.values()):
        return False
    return pixels["train"].storage.nbytes <= torch.cuda.mem_get_info(device)[0] / 8


def choose_workers(asked: str, pixels: Pixels, device: torch.device) -> tuple[int, str]:
    """How many processes prepare batches, and why, in words: measured on the first images.

    Raises:
        ConfigError: workers were asked for, and the images lie on the GPU, where they cannot reach.
    """
    if asked != "auto":
        if int(asked) and isinstance(pixels, Kept) and pixels.storage.is_cuda:
            raise ConfigError(f"--dataloader_num_workers {asked}: the images lie on the GPU; add --image_cache none")
        return int(asked), "as asked"
    if isinstance(pixels, Kept):
        return 0, "a batch is a copy out of the cache"
    some = list(range(min(8, len(pixels.split))))
    started = time.perf_counter()
    pixels[some]
    each = (time.perf_counter() - started) / len(some)
    # On a CPU, decoding and training share the cores: one worker that runs ahead is as good as many. A GPU trains
    # while all cores decode.
    workers = 1 if device.type == "cpu" else max(1, usable_cores() - 1)
    return workers, f"decoding takes {each * 1e3:.1f} ms an image, beside training instead of before it"


def tune(
    run: RunConfig, network: nn.Module, precision: Precision, plan: Plan, optimizer: torch.optim.Optimizer, feed: Feed
) -> list[str]:
    """Switch the remaining fast paths on or off, and say in one line which are on; `run` keeps what was decided."""
    images = plan.total_updates * plan.batch_size * plan.accumulation
    compiling, why = choose_compile(run.torch_compile, precision, images)
    run.torch_compile = "on" if compiling else "off"  # recorded, so that a resume computes the same bits
    if compiling:
        compile_network(network, plan.batch_size, precision.device)
    fused = "fused " if optimizer.defaults.get("fused") else ""
    notes = [
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
