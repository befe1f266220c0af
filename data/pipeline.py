"""From splits to batches on a device: a `DataPipeline`, for stored images, streams, or a data set of your own."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from data import DataError
from data.augment import Augmentation, augmented
from data.cache.check import check_images
from data.cache.prepared import CachePolicy, Decoded, Kept, Pixels, prepare_images
from data.cores import usable_cores
from data.loading.loader import Images, InOrder, OwnImages, PlannedSampler, batches_on, build_loader
from data.loading.streaming import Streams, batched, rows_in_order, shuffled_rows, stream_batches
from data.loading.workers import LEAST_SHARED, resilient_batches, shared_memory_left
from data.plan import Batch, Plan, Sample, StreamPlan
from data.reading.decode import Resize
from data.reading.repeats import WARNING
from data.reading.splits import Splits

Say = Callable[[str], None]
UNCHANGED = Augmentation()


@dataclass(frozen=True)
class DataPipeline:
    """Everything the loop needs to know about the data."""

    plan: Plan | StreamPlan  # which images make up which update
    train_batches: Callable[[int], Iterator[Batch]]  # the plan's micro-batches after that many updates
    validation_batches: Callable[[], Iterator[Batch]]  # every validation image once, in order
    label_names: list[str]
    image_name: Callable[[int], str]  # what to call a training image in a message
    validation_names: Callable[[], Iterable[str]]  # the same of the validation images, in order
    fingerprint: str | None = None  # identity of the data; None if it is not known
    validation_fingerprint: str | None = None  # of the validation images alone
    notes: list[str] = field(default_factory=list)  # how images get to the device, and why
    train_images: Callable[[], Iterator[Batch]] | None = None  # every training image once, in order; not of a stream
    test_batches: Callable[[], Iterator[Batch]] | None = None  # every test image once, in order, if there is any
    validation_image: Callable[[int], bytes] | None = None  # as encoded, by its index; only of stored images


@dataclass(frozen=True)
class LoadingOptions:
    """How stored images are loaded. None of these changes a pixel."""

    eval_batch_size: int
    workers: str = "0"  # processes that prepare batches, or auto
    timeout: float = 120  # seconds after which a worker that delivers nothing has failed; 0 waits


def stored_pipeline(
    splits: Splits,
    make_plan: Callable[[list[int]], Plan],
    resize: Resize,
    device: torch.device,
    policy: CachePolicy,
    options: LoadingOptions,
    skip_bad: bool,
    say: Say,
    augmentation: Augmentation = UNCHANGED,
    test: Splits | None = None,
) -> tuple[Splits, DataPipeline]:
    """The pipeline of a data set that is stored. Every image is decoded once now, so that a bad one is known at once.

    Args:
        splits: encoded images.
        make_plan: called with the class of each training image that can be used.
        resize: to the size the model takes.
        device: where batches go.
        policy: where decoded images may be kept.
        options: batch size of evaluation, workers.
        skip_bad: leave out images that cannot be decoded, instead of refusing the data.
        say: told what a person should know.
        augmentation: of the training images.
        test: the test split, as `validation`, of the same classes.

    Returns:
        The splits without bad images, and the pipeline.

    Raises:
        DataError: an image cannot be decoded, or an option does not fit.
    """
    splits, pixels, kind, reason = prepare_images(
        splits, resize, policy, skip_bad, say, train_resize=augmentation.stored(resize)
    )
    notes = [f"image cache {kind} ({reason})"]
    if _fits_on(device, pixels) and not augmentation.active:  # which changes one image at a time, slow on a GPU
        pixels = {name: Kept(kept.storage.to(device), kept.rows.to(device)) for name, kept in pixels.items()}
        notes.append("on the GPU")
    plan, names, augment = make_plan(splits.train.labels), splits.label_names, augmentation.build(resize)
    train = Images(pixels["train"], splits.train.labels, plan.seed, augment)
    validation = Images(pixels["validation"], splits.validation.labels)
    workers, why = choose_workers(options.workers, train if len(train) else validation, device)
    notes.append(f"{workers} workers ({why})")
    options = replace(options, workers=str(workers))
    judged = _images_to_test(test, resize, policy, skip_bad, splits.notes) if test else None
    pipeline = dataset_pipeline(train, validation, plan, device, names, options, say, judged)
    called = {"image_name": splits.train.image_name, "validation_names": splits.validation.image_names}
    known = {"fingerprint": splits.fingerprint(), "validation_fingerprint": splits.validation_fingerprint()}
    return splits, replace(pipeline, **called, **known, notes=notes, validation_image=splits.validation.read)


def _images_to_test(
    test: Splits, resize: Resize, policy: CachePolicy, skip_bad: bool, notes: list[str]
) -> Images | None:
    """The test split: decoded once now, so that a bad image is known at once, and again when it is evaluated.

    None if it has bad images that may not be left out: no reason not to train.
    """
    known = len(test.notes)
    try:
        sound = check_images(test, skip_bad, policy.folder)
    except DataError as error:
        notes.append(f"{WARNING}no evaluation on the test split at the end: {error}")
        return None
    notes.extend(sound.notes[known:])
    return Images(Decoded(sound.validation, resize), sound.validation.labels)


def dataset_pipeline(
    train: Images | OwnImages,
    validation: Images | OwnImages,
    plan: Plan,
    device: torch.device,
    label_names: list[str],
    options: LoadingOptions,
    say: Say,
    test: Images | None = None,
) -> DataPipeline:
    """The pipeline of two data sets, or three, that return whole batches."""

    def batches(images: Any, batches_after: Callable[[int], Sampler[list[Sample]]]) -> Iterator[Batch]:
        pin = device.type == "cuda" and not getattr(images, "on_device", False)

        def make_loader(skip: int) -> DataLoader:
            sampler, workers = batches_after(skip), int(options.workers)
            return build_loader(images, sampler, workers=workers, timeout=options.timeout, pin_memory=pin)

        return batches_on(device, resilient_batches(make_loader, warn=lambda text: say(f"warning: {text}")))

    def train_batches(after: int) -> Iterator[Batch]:
        return batches(train, lambda skip: PlannedSampler(plan, after, skip))

    def in_order(images: Images | OwnImages) -> Iterator[Batch]:
        count, size = len(images), options.eval_batch_size
        return batches(images, lambda skip: InOrder(count, size, skip, plan.rank, plan.world))

    def image_name(index: int) -> str:
        return f"image {index}"

    return DataPipeline(
        plan,
        train_batches,
        lambda: in_order(validation),
        label_names,
        image_name,
        lambda: map(image_name, range(len(validation))),
        train_images=lambda: in_order(train),
        test_batches=(lambda: in_order(test)) if test else None,
    )


def streamed_pipeline(
    streams: Streams,
    plan: StreamPlan,
    resize: Resize,
    device: torch.device,
    eval_batch_size: int,
    threads: int,
    shuffle_buffer: int,
    augmentation: Augmentation = UNCHANGED,
) -> DataPipeline:
    """The pipeline of a data set that is read while training and never stored."""
    augment, stored = augmentation.build(resize), augmentation.stored(resize)

    def train_batches(after: int) -> Iterator[Batch]:
        rows = shuffled_rows(streams.train, plan.seed, shuffle_buffer, plan.rank, plan.world)
        rest = itertools.islice(rows, after * plan.accumulation * plan.batch_size, None)
        batches = stream_batches(batched(rest, plan.batch_size), stored, threads)
        # In this thread: what is drawn comes from one generator, which decoding threads would share.
        return batches_on(device, batches if augment is None else map(change, batches))

    def change(batch: Batch) -> Batch:
        samples = [(plan.rank, number) for number in batch["index"].tolist()]  # numbers count on from epoch to epoch
        return batch | {"pixel_values": augmented(augment, batch["pixel_values"], plan.seed, samples)}

    def validation_batches() -> Iterator[Batch]:
        rows = rows_in_order(streams.validation, plan.rank, plan.world)
        return batches_on(device, stream_batches(batched(rows, eval_batch_size), resize, threads))

    note = f"streaming, 1 reader and {threads} decoding threads, shuffled among {shuffle_buffer} images"
    return DataPipeline(
        plan,
        train_batches,
        validation_batches,
        streams.label_names,
        streams.train.image_name,
        lambda: map(streams.validation.image_name, itertools.count()),
        streams.fingerprint(),
        streams.validation_fingerprint(),
        [note],
    )


def _fits_on(device: torch.device, pixels: dict[str, Pixels]) -> bool:
    """Whether the prepared images are in memory and take at most an eighth of what is free on a GPU."""
    if device.type != "cuda" or not all(isinstance(kept, Kept) for kept in pixels.values()):
        return False
    return pixels["train"].storage.nbytes <= torch.cuda.mem_get_info(device)[0] / 8


def choose_workers(asked: str, images: Images, device: torch.device) -> tuple[int, str]:
    """How many processes prepare batches, and why: measured on the first images.

    Raises:
        DataError: workers were asked for, but the images are on the GPU, where workers cannot reach them.
    """
    if asked != "auto":
        if int(asked) and images.on_device:
            raise DataError(f"--dataloader_num_workers {asked}: the images are on the GPU; add --image_cache none")
        return int(asked), "as asked"
    kept = isinstance(images.pixels, Kept)
    if kept and images.augment is None:
        return 0, "a batch is a copy from the cache"
    if shared_memory_left() < LEAST_SHARED:
        return 0, "too little shared memory for workers (/dev/shm)"
    first = [(0, index) for index in range(min(8, len(images)))]
    started = time.perf_counter()
    images.__getitems__(first)
    each = (time.perf_counter() - started) / len(first)
    # On a CPU, preparing and training share the cores, and one worker keeps ahead of both; more would take cores from
    # training. A GPU trains while all cores prepare (not measured).
    workers = 1 if device.type == "cpu" else max(1, usable_cores() - 1)
    what = "augmenting" if kept else "decoding" if images.augment is None else "decoding and augmenting"
    return workers, f"{what} takes {each * 1e3:.1f} ms per image, in parallel with training"
