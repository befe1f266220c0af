"""Data and model of a run. Every automatic decision is printed once and recorded."""

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data import DataError, files
from data.augment import Augmentation
from data.cache.prepared import CachePolicy
from data.cores import usable_cores
from data.loading.streaming import Streams
from data.pipeline import DataPipeline, LoadingOptions, stored_pipeline, streamed_pipeline
from data.plan import Balance, Plan, StreamPlan, batches_per_epoch
from data.reading.content import NOTHING
from data.reading.rare import few_validation_images, unequal_classes
from data.reading.repeats import WARNING
from data.reading.splits import Split, Splits
from data.reading.tables import DatasetSpec
from data.sources import NoSuchSplitError, load_for_evaluation, load_splits, load_streams
from models.classifier import Classifier
from models.loading import LoadedModel, load_model, names_to_evaluate
from models.preprocessing import Preprocessing
from train.checkpoint import resume
from train.config.schema import AugmentConfig, Config, DataConfig, ModelConfig, RecipeConfig, RunConfig
from train.distributed.collectives import on_rank_zero
from train.distributed.env import rank, world_size
from train.distributed.parallel import shard
from train.inference.predictor import resize_for
from train.precision import Precision
from train.setup.intervals import settle_intervals
from train.system import hub
from train.system.console import say
from train.system.device import choose_attention
from train.system.lock import Lock


@dataclass(frozen=True)
class Inputs:
    """What training and a mere evaluation have in common."""

    precision: Precision
    checkpoint: Path | None  # to resume from
    loaded: LoadedModel
    splits: Splits | Streams
    data: DataPipeline
    preparation_seconds: float  # spent decoding images before the first update


def load_inputs(config: Config, precision: Precision, lock: Lock) -> Inputs:
    """Data and model; the model from a checkpoint if the run is resumed."""
    run = config.run
    offline = hub.is_offline(config.data.dataset, config.model.model)
    splits = load_data(config, offline)
    checkpoint = on_rank_zero(lambda: resume.find_checkpoint(run, lock))
    torch.manual_seed(run.seed)  # before the model is built: the new head is drawn from it
    loaded = load_classifier(config, checkpoint, splits.label_names, precision, offline)
    started = time.perf_counter()
    test = load_test(config, splits, offline)
    splits, data = _build_pipeline(config, splits, loaded.model, precision.device, test)
    if not run.eval_only:
        settle_intervals(config, data.plan)
    data = replace(data, fingerprint=resume.fingerprint_as_saved(checkpoint, splits))
    return Inputs(precision, checkpoint, loaded, splits, data, time.perf_counter() - started)


def load_data(config: Config, offline: bool) -> Splits | Streams:
    """Both splits; no image has been looked at yet. For a mere evaluation, `train` is empty."""
    data, run = config.data, config.run
    spec, seed = dataset_spec(data, run.cache_dir, offline), run.seed if data.split_seed is None else data.split_seed
    if data.streaming:
        return load_streams(spec)
    drawn = {"validation_fraction": data.train_val_split, "seed": seed}
    if run.eval_only:
        return load_for_evaluation(spec, max_eval_samples=data.max_eval_samples, **drawn)
    limits = {"max_train_samples": data.max_train_samples, "max_eval_samples": data.max_eval_samples}
    return load_splits(spec, **limits, **drawn)


def load_test(config: Config, splits: Splits | Streams, offline: bool) -> Splits | None:
    """The test split, as `validation`, for one evaluation at the end; None if the data set has none.

    One that cannot be used, such as one without labels, is a warning and no reason not to train.
    """
    if config.run.eval_only or not config.run.test_at_end:
        return None
    if isinstance(splits, Streams):
        splits.notes.append("a stream's test split is not evaluated at the end; plainloop evaluate does")
        return None
    try:
        spec = dataset_spec(config.data, config.run.cache_dir, offline)
        test = load_for_evaluation(spec, ("test",), label_names=splits.label_names)
    except NoSuchSplitError:
        return None
    except DataError as error:
        splits.notes.append(f"{WARNING}no evaluation on the test split at the end: {error}")
        return None
    splits.notes.extend(note for note in test.notes if note not in splits.notes)
    splits.notes.append(f"test: {len(test.validation)} images, judged once, at the end")
    if copies := _in_both(test.validation, splits):
        splits.notes.append(f"{WARNING}{copies} of the test images are in train or validation, too, byte for byte")
    return test


def _in_both(test: Split, splits: Splits) -> int:
    others = (splits.train, splits.validation)
    digests = {split.digest(index) for split in others for index in range(len(split))} - {b"", NOTHING}
    return sum(test.digest(index) in digests for index in range(len(test)))


def dataset_spec(data: DataConfig, cache_dir: str | None, offline: bool) -> DatasetSpec:
    """Which data set the flags ask for, and how it is to be read."""
    folders = {"train": data.train_dir, "validation": data.validation_dir, "test": data.test_dir}
    return DatasetSpec(
        data.dataset,
        data.dataset_config_name,
        data.image_column_name,
        data.label_column_name,
        cache_dir,
        offline,
        {split: folder for split, folder in folders.items() if folder is not None},
    )


def load_classifier(
    config: Config, checkpoint: Path | None, label_names: list[str], precision: Precision, offline: bool
) -> LoadedModel:
    """The model on its device, in the precision's dtype, with what is frozen in it."""
    run, asked, name = config.run, config.model, str(checkpoint or files.follow(config.model.model))
    if checkpoint and (given := {"model", "model_revision"} & set(config.named)):
        say(f"resume: --{min(given)} is not read: the run goes on from its own checkpoint")
    attention = choose_attention(precision.device, precision.name)
    where = {"cache_dir": run.cache_dir, "offline": offline, "revision": None if checkpoint else asked.model_revision}
    if run.eval_only:  # the data may have fewer classes than the model
        label_names = names_to_evaluate(name, label_names, **where)
    options = {"attention": attention, "image_size": asked.image_size, **where}
    # Loaded as float32 and then widened, so that a new head is the same draw in every precision.
    loaded = load_model(name, label_names, **options)
    if precision.name == "fp64" and not loaded.new_head:  # it may have been saved in float64
        loaded = load_model(name, label_names, dtype=precision.dtype, **options)
    model = loaded.model.to(precision.device)
    model.vit.to(precision.dtype)
    notes = [name, *loaded.notes, *_as_asked(asked, model)]
    height, width = model.preprocessing.height, model.preprocessing.width
    size = height if height == width else f"{height} x {width}"
    say(f"model: {'; '.join(notes)}, {size} pixels, {attention} attention")
    if run.fsdp:
        shard(model, model.blocks)
    return loaded


def _as_asked(asked: ModelConfig, model: Classifier) -> list[str]:
    """Freeze and checkpoint as the flags say; what that is, and the number of parameters, for people to read."""
    notes = []
    if asked.gradient_checkpointing:
        model.recompute_activations()
        notes.append("activations computed again in the backward pass")
    count = sum(parameter.numel() for parameter in model.parameters())
    if asked.freeze is None:
        return [*notes, f"{_short(count)} parameters"]
    notes.append(model.freeze(asked.freeze))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return [*notes, f"{_short(trained)} of {_short(count)} parameters train"]


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def cache_policy(config: Config) -> CachePolicy:
    """Where what was prepared may be kept."""
    data = config.data
    return CachePolicy(
        data.image_cache, data.cache_memory, data.cache_size, config.run.cache_dir, shared=world_size() > 1
    )


def _build_pipeline(
    config: Config,
    splits: Splits | Streams,
    model: Classifier,
    device: torch.device,
    test: Splits | None,
) -> tuple[Splits | Streams, DataPipeline]:
    data, recipe, run = config.data, config.recipe, config.run
    resize = resize_for(model)
    augmentation = _augmentation(config.augment, model.preprocessing)
    balance = Balance if config.augment.sampler == "balanced" else lambda labels: None
    if isinstance(splits, Streams):
        sizes = "images read while training"
        asked = data.dataloader_num_workers
        threads = usable_cores() if asked == "auto" else max(1, int(asked))
        plan = make_stream_plan(recipe, splits.train.samples, run)
        pipeline = streamed_pipeline(
            splits,
            plan,
            resize,
            device,
            recipe.per_device_eval_batch_size,
            threads,
            data.shuffle_buffer,
            augmentation,
        )
    else:
        options = LoadingOptions(
            recipe.per_device_eval_batch_size, data.dataloader_num_workers, data.dataloader_timeout
        )
        splits, pipeline = stored_pipeline(
            splits,
            lambda labels: make_plan(recipe, len(labels), run, data.dataloader_drop_last, balance(labels)),
            resize,
            device,
            cache_policy(config),
            options,
            data.skip_bad_images,
            say,
            augmentation,
            test,
        )
        splits.notes.extend(_on_rare_classes(splits, recipe.metric_for_best_model, config.augment))
        sizes = f"{len(splits.train)} training and {len(splits.validation)} validation images"
    _say_what_there_is(splits, sizes)
    if not run.eval_only and (changes := _described(config.augment)):
        say(f"training images: {'; '.join(changes)}")
    return splits, pipeline


def _say_what_there_is(splits: Splits | Streams, sizes: str) -> None:
    for note in splits.notes:
        say(note if note.startswith(WARNING) else f"data: {note}")
    say(f"data: {splits.dataset}: {sizes}, {len(splits.label_names)} classes: {', '.join(splits.label_names)}")
    if isinstance(splits, Splits):
        for split in (splits.train, splits.validation) if len(splits.train) else (splits.validation,):
            say(f"data: {split.name}: {split.counts(splits.label_names)}")


def _described(augment: AugmentConfig) -> list[str]:
    """How training images are drawn and changed, for people to read."""
    changes = ["every class drawn equally often"] if augment.sampler == "balanced" else []
    if augment.random_resized_crop is not None:
        changes.append(f"random crops of at least {augment.random_resized_crop:g} of the area")
    if augment.augment != "none":
        changes.append(f"augmentation {augment.augment}")
    if augment.random_erasing:
        changes.append(f"a rectangle erased in {augment.random_erasing:g} of them")
    return changes


def _augmentation(augment: AugmentConfig, wanted: Preprocessing) -> Augmentation:
    mean = wanted.mean or (0.0, 0.0, 0.0)
    fill = tuple(round(value / wanted.rescale_factor) for value in mean)
    crop, erasing = augment.random_resized_crop, augment.random_erasing
    return Augmentation(augment.augment, augment.augment_magnitude, crop, erasing, fill)


def _on_rare_classes(splits: Splits, metric: str, augment: AugmentConfig) -> list[str]:
    """What figures of rare classes are worth, for people to read."""
    names, unequal = splits.label_names, unequal_classes(splits)
    notes = few_validation_images(names, Counter(splits.validation.labels))
    if unequal and metric.removeprefix("eval_") in ("loss", "accuracy"):
        balanced = augment.logit_adjustment or augment.class_weights or augment.sampler == "balanced"
        notes.append(
            f"classes are unequal ({unequal[0]}, {unequal[1]} training images), and {metric} hides the rare ones;"
            f" --metric_for_best_model balanced_accuracy counts all alike"
            f"{'' if balanced else ', and --logit_adjustment 1 trains for them'}"
        )
    return notes


def make_plan(
    recipe: RecipeConfig, samples: int, run: RunConfig, drop_last: bool = False, balance: Balance | None = None
) -> Plan:
    """The plan for a data set of known size; updates are counted as the Trainer counts them."""
    batch_size, accumulation = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    batches = batches_per_epoch(samples, batch_size * world_size(), drop_last)
    updates_per_epoch = math.ceil(batches / accumulation)
    by_epochs = max(math.ceil(recipe.num_train_epochs * updates_per_epoch), recipe.min_steps)
    total = recipe.max_steps if recipe.max_steps > 0 else by_epochs
    return Plan(
        samples, batch_size, accumulation, total, run.seed, drop_last, rank(), world_size(), run.stop_after, balance
    )


def make_stream_plan(recipe: RecipeConfig, samples: int | None, run: RunConfig) -> StreamPlan:
    """The plan for a stream, whose length may be unknown: --max_steps updates."""
    batch_size, accumulation = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    return StreamPlan(
        batch_size, accumulation, recipe.max_steps, run.seed, samples, rank(), world_size(), run.stop_after
    )
