"""From sections of the configuration to the things that `fit` works with. Each decision is said once."""

import math
import platform
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

from data.check import check_images
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
from train import hub
from train.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from train.evaluate import Metrics, choose_metric, evaluate
from train.optim import build_optimizer, build_scheduler
from train.precision import Precision, choose_device, choose_precision
from train.state import Best, TrainState
from train.tracking import say


def choose_compute(run: RunConfig) -> tuple[Precision, str]:
    """The device and precision to compute in, and why."""
    device = choose_device(run.device)
    name, reason = choose_precision(run.precision, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    say(f"computing on {device} ({where}) in {name}: {reason}")
    return Precision(name, device), reason


def choose_attention(precision: Precision) -> str:
    """Plain attention for bf16 on a CPU: there, at 65 to 197 tokens, an update takes 0.5 to 0.8 of SDPA's time."""
    return "eager" if precision.device.type == "cpu" and precision.name == "bf16" else "sdpa"


def is_offline(data: DataConfig, model: ModelConfig) -> bool:
    """Whether the Hub, if a name on it is to be loaded at all, cannot be reached."""
    if not (hub.is_hub_name(data.dataset) or hub.is_hub_name(model.model)):
        return False
    unreachable = hub.why_unreachable()
    if unreachable:
        say(f"{unreachable}: only what its local cache holds can be loaded")
    return unreachable is not None


def load_data(data: DataConfig, run: RunConfig, offline: bool) -> Splits:
    """Both splits, every image of which has been decoded once."""
    splits = load_splits(
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
    splits = check_images(splits, data.skip_bad_images, run.cache_dir)
    for note in splits.notes:
        say(f"data: {note}")
    sizes = f"{len(splits.train)} training and {len(splits.validation)} validation images"
    say(f"data: {splits.dataset}: {sizes}, {len(splits.label_names)} classes: {', '.join(splits.label_names)}")
    return splits


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
    data: DataConfig

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
                workers=self.data.dataloader_num_workers,
                timeout=self.data.dataloader_timeout,
                pin_memory=self.precision.device.type == "cuda",
            )

        batches = resilient_batches(make_loader, warn=lambda text: say(f"warning: {text}"))
        return batches_on(self.precision.device, batches)


def build_feed(
    splits: Splits, processor: dict[str, Any], precision: Precision, data: DataConfig, train: TrainConfig, seed: int
) -> Feed:
    """Preprocessing as the checkpoint's processor says, and what is needed to make loaders."""
    preprocessing = read_preprocessing(processor)
    return Feed(
        Images(splits.train, preprocessing.resize, seed),
        Images(splits.validation, preprocessing.resize, seed),
        Normalize(preprocessing, precision.dtype).to(precision.device),
        precision,
        splits.label_names,
        train.per_device_eval_batch_size,
        data,
    )


def describe(preset: str, reason: str, precision: Precision, why: str, splits: Splits, plan: Plan) -> dict[str, Any]:
    """What was decided automatically, and what the bits of a run depend on beside its flags."""
    return {
        "preset": preset,
        "preset_reason": reason,
        "device": str(precision.device),
        "precision": precision.name,
        "precision_reason": why,
        "attention": choose_attention(precision),
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
