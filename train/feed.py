"""The way from images, wherever they are, to batches on the device."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from data.cache import CachePolicy, Kept, Pixels, prepare_images
from data.cores import usable_cores
from data.loader import Batch, Images, InOrder, Key, Plan, PlannedSampler, batches_on, build_loader
from data.sources import Splits
from data.streaming import StreamPlan, Streams, batched, rows_in_order, shuffled_rows, stream_batches
from data.transforms import Normalize, Preprocessing, read_preprocessing
from data.workers import resilient_batches
from train import ConfigError, launch
from train.config import DataConfig, RunConfig, TrainConfig
from train.evaluate import Metrics, evaluate
from train.precision import Precision
from train.tracking import say


@dataclass(frozen=True)
class Feed:
    """The way from images, wherever they are, to batches on the device, for training and for evaluation."""

    training: Callable[[Plan | StreamPlan, int], Iterator[Batch]]  # a plan's micro-batches after so many updates
    validation: Callable[[], Iterator[Batch]]  # the validation images, once, in order
    normalize: Normalize
    precision: Precision
    label_names: list[str]
    notes: list[str]  # how images get to the device, and why so
    preparation_seconds: float  # that making it took

    def validate(self, network: nn.Module) -> Metrics:
        """One evaluation on the whole validation split."""
        return evaluate(network, self.validation(), self.normalize, self.precision, self.label_names)


def prepare(
    splits: Splits | Streams,
    processor: dict[str, Any],
    precision: Precision,
    data: DataConfig,
    train: TrainConfig,
    run: RunConfig,
) -> tuple[Splits | Streams, Feed]:
    """The way from the images to the device; those of a data set that is stored are all decoded once before."""
    started = time.perf_counter()
    preprocessing = read_preprocessing(processor)
    if isinstance(splits, Streams):
        training, validation, notes = stream(splits, preprocessing, data, train, run.seed, precision.device)
        sizes = "images read while training"
    else:
        splits, training, validation, notes = keep(splits, preprocessing, data, train, run, precision.device)
        sizes = f"{len(splits.train)} training and {len(splits.validation)} validation images"
    for note in splits.notes:
        say(f"data: {note}")
    say(f"data: {splits.dataset}: {sizes}, {len(splits.label_names)} classes: {', '.join(splits.label_names)}")
    normalize = Normalize(preprocessing, precision.dtype).to(precision.device)
    took = time.perf_counter() - started
    return splits, Feed(training, validation, normalize, precision, splits.label_names, notes, took)


def keep(
    splits: Splits,
    preprocessing: Preprocessing,
    data: DataConfig,
    train: TrainConfig,
    run: RunConfig,
    device: torch.device,
) -> tuple[Splits, Callable, Callable, list[str]]:
    """For a data set that is stored: the splits without bad images, both ways of a `Feed`, and what was decided."""
    shared = launch.world_size() > 1
    policy = CachePolicy(data.image_cache, data.cache_memory, data.cache_size, run.cache_dir, shared)
    splits, pixels, kind, reason = prepare_images(splits, preprocessing, policy, data.skip_bad_images, say)
    notes = [f"image cache {kind} ({reason})"]
    if fits_on(device, pixels):
        storage = pixels["train"].storage.to(device)  # of both splits
        pixels = {name: Kept(storage, kept.rows.to(device)) for name, kept in pixels.items()}
        notes.append("which lies on the GPU")
    workers, why = choose_workers(data.dataloader_num_workers, pixels["train"], device)
    notes.append(f"{workers} workers ({why})")

    def batches(images: Images, batches_after: Callable[[int], Sampler[list[Key]]]) -> Iterator[Batch]:
        pin = device.type == "cuda" and not images.on_device
        options = {"workers": workers, "timeout": data.dataloader_timeout, "pin_memory": pin}

        def make_loader(skip: int) -> DataLoader:
            return build_loader(images, batches_after(skip), **options)

        return batches_on(device, resilient_batches(make_loader, warn=lambda text: say(f"warning: {text}")))

    def training(plan: Plan, start: int) -> Iterator[Batch]:
        images = Images(pixels["train"], splits.train.labels)
        return batches(images, lambda skip: PlannedSampler(plan, start, skip))

    def validation() -> Iterator[Batch]:
        images, size = Images(pixels["validation"], splits.validation.labels), train.per_device_eval_batch_size
        rank, world = launch.rank(), launch.world_size()
        return batches(images, lambda skip: InOrder(len(images), size, skip, rank, world))

    return splits, training, validation, notes


def stream(
    streams: Streams,
    preprocessing: Preprocessing,
    data: DataConfig,
    train: TrainConfig,
    seed: int,
    device: torch.device,
) -> tuple[Callable, Callable, list[str]]:
    """For a data set that is read while training: both ways of a `Feed`, and what was decided."""
    rank, world = launch.rank(), launch.world_size()
    threads = usable_cores() if data.dataloader_num_workers == "auto" else max(1, int(data.dataloader_num_workers))

    def training(plan: StreamPlan, start: int) -> Iterator[Batch]:
        rows = shuffled_rows(streams.train, seed, data.shuffle_buffer, rank, world)
        rest = itertools.islice(rows, start * plan.accumulation * plan.batch_size, None)
        return batches_on(device, stream_batches(batched(rest, plan.batch_size), preprocessing.resize, threads))

    def validation() -> Iterator[Batch]:
        rows = rows_in_order(streams.validation, rank, world)
        groups = batched(rows, train.per_device_eval_batch_size)
        return batches_on(device, stream_batches(groups, preprocessing.resize, threads))

    note = f"streaming, 1 reading thread, {threads} decoding ones, order shuffled among {data.shuffle_buffer} images"
    return training, validation, [note]


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
    # On a CPU, decoding and training share the cores, and one worker runs ahead of both; more would take cores from
    # training. A GPU trains while all cores decode (not measured).
    workers = 1 if device.type == "cpu" else max(1, usable_cores() - 1)
    return workers, f"decoding takes {each * 1e3:.1f} ms an image, beside training instead of before it"
